"""What rules that look ahead read: gradients of the continuation's zones by the gates of the context's entries."""

from __future__ import annotations

from torch import Tensor

from forward_influence.attribution.gate_gradients import continuation_gradients
from forward_influence.attribution.integrated_gradients import closing_gradients
from forward_influence.models.loading import Model
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.signals.gradients import CLOSING, closing_zones, fisher_zones, label_samples
from forward_influence.tracing.trace import Trace
from forward_influence.utils.distances import zones
from forward_influence.utils.progress import Progress


def look_ahead(
    model: Model, trace: Trace, continuation: Tensor, needs: Needs, seed: int, *, progress: Progress | None = None
) -> dict[str, Tensor]:
    """What a trace's `future` holds for rules with these needs.

    Args:
        continuation: (m,) token ids.
        seed: of the label samples.

    Returns:
        Zone -> Fisher gradients (samples, L, H, n); "closing_" and the zone -> gradients while gates close (L, H, n).
    """
    ends = zones(len(continuation))
    found: dict[str, Tensor] = {}
    if wanted := {zone: ends[zone] for zone in ends if zone in fisher_zones(needs)}:
        found |= continuation_gradients(
            model, trace, continuation, wanted, label_samples(needs), seed, progress=progress
        )
    if wanted := {zone: ends[zone] for zone in ends if zone in closing_zones(needs)}:
        closing = closing_gradients(model, trace, continuation, wanted, progress=progress)
        found |= {f"{CLOSING}{zone}": gates.mean(0) for zone, gates in closing.items()}
    return found
