"""A condition measured a second way: removal by masking, in passes over everything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError
from forward_influence.influence.ablation import Influence, masked_direct_influence, masked_influence
from forward_influence.measurement.conditions import Condition
from forward_influence.models.loading import Model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace

#: How many positions of a direct effect `verify` computes again: each takes a full pass.
_VERIFIED_POSITIONS = 4

#: What rounding explains of a difference between two ways to one KL: dtype -> (nats, share of the KL). For float32 and
#: float64 far above what is seen (4e-5 of the KL in float32), for 16 bits what docs/testing.md measured.
VERIFY_TOLERANCES = {
    "float64": (1e-10, 1e-8),
    "float32": (1e-5, 1e-3),
    "bfloat16": (0.05, 0.15),
    "float16": (0.01, 0.03),
}


def verify(
    model: Model,
    tokens: Tensor,
    trace: Trace,
    condition: Condition,
    removed: Selection,
    influence: Influence,
    positions: Tensor | None,
) -> dict[str, Any]:
    """One condition against a masked full pass; a direct effect at a few positions.

    Args:
        tokens: (context + continuation,).
        removed: what left the cache.
        influence: what was measured, at `positions` (None: everywhere).

    Returns:
        The condition's label, the largest difference and the largest KL in nats, and the largest difference as a share
        of what rounding explains.

    Raises:
        ForwardInfluenceError: they differ by more than that.
    """
    distances = torch.arange(len(tokens) - trace.n) if positions is None else positions
    here = influence.kl.double()
    if condition.effect == "direct":
        some = torch.linspace(0, len(distances) - 1, min(_VERIFIED_POSITIONS, len(distances))).long()
        here = here[some]
        there = masked_direct_influence(model, tokens, trace, removed, distances[some]).double()
    else:
        there = masked_influence(model, tokens, trace, removed, "drop").kl.double()[distances]
    least, share = VERIFY_TOLERANCES[str(model.dtype).removeprefix("torch.")]
    difference = (here - there).abs()
    of_rounding = float((difference / (least + share * there)).max())
    if not of_rounding <= 1:
        raise ForwardInfluenceError(
            f"{condition.label} differs from a masked full pass by up to {float(difference.max()):.2g} nats, "
            f"{of_rounding:.2g} times what rounding explains; please report this"
        )
    return {
        "condition": condition.label,
        "largest_difference": float(difference.max()),
        "largest_kl": float(there.max()),
        "of_what_rounding_explains": of_rounding,
    }
