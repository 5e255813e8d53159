"""The controls of every document: an empty selection and one of everything, through the same physical path.

In 16 bits the noise floor is of the size of small influences and is taken off them (`floors`): there it is measured on
every segment and wherever conditions are. Wider numbers have one that is a millionth of any influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forward_influence.influence.ablation import Removal, removal, shuffled
from forward_influence.influence.effects import Effect
from forward_influence.selectors.selection import Candidates, Selection
from forward_influence.tracing.trace import Trace

#: How many positions the controls cover: enough to see a floor and an effect, cheap beside a condition. In 16 bits the
#: floor is of the size of small influences and is taken off them: there it covers what conditions cover.
NOISE_POSITIONS = 256
POSITIVE_POSITIONS = 64
#: Bytes of a number from which on rounding is a millionth of any influence.
WIDE = 4


@dataclass(frozen=True)
class Control:
    """A control of a document: what is ablated, and as which kind of row it is written."""

    kind: str
    ablation: Removal
    selection: Selection

    def described(self, trace: Trace) -> dict[str, Any]:
        """What its row says about it."""
        return {
            "selector": self.kind,
            "selected": self.selection.counts.flatten().tolist(),
            "mode": "drop",
            "effect": self.ablation.effect.name,
            "layers": list(trace.layers),
            "heads": list(range(trace.kv_heads)),
            "distance": self.ablation.distances().tolist(),
        }


def controls_of(
    trace: Trace,
    candidates: Candidates,
    m: int,
    effects: Sequence[Effect],
    *,
    segment: int = 0,
    itemsize: int = WIDE,
    positions: Tensor | None = None,
    everywhere: bool = True,
) -> list[Control]:
    """The noise floor and the positive control, of each effect that is measured.

    Args:
        segment: its number; only the first has a positive control, and others a floor in 16 bits alone.
        itemsize: bytes of a number in the model's dtype.
        positions: distances at which conditions are measured; None for all m.
        everywhere: whether `positions` stand for all m, so that controls may be measured at others; where spans are
            measured, nothing is elsewhere.
    """
    wide = itemsize >= WIDE
    if wide and segment:
        return []
    length, where = (min(NOISE_POSITIONS, m), None) if wide else (m, positions)
    most, near = min(POSITIVE_POSITIONS, m), None
    if not everywhere:
        assert positions is not None
        where = positions[:NOISE_POSITIONS] if wide else positions
        near = positions[:POSITIVE_POSITIONS]
        length, most = int(where[-1]) + 1, int(near[-1]) + 1
    everything = torch.zeros(trace.shape, dtype=torch.bool, device=trace.tokens.device)
    nothing = Selection(everything.clone(), trace.layers)
    everything[..., candidates.first : candidates.last] = True
    all_candidates = Selection(everything, trace.layers)
    controls = []
    for effect in effects:
        controls.append(Control("noise_floor", shuffled(trace, length, effect=effect, positions=where), nothing))
        if not segment:
            label = "dropping all candidates"
            positive = removal(trace, all_candidates, "drop", most, label, near, effect=effect)
            controls.append(Control("positive_control", positive, all_candidates))
    return controls
