"""Gradients of the continuation by the gates of the context's entries, for rules that look ahead.

`attribution` computes them once the continuation is known, and puts them into `trace.future`; here is what they are
called and what they cost to hold. What the backward passes take is a term of its own in the memory formula.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forward_influence.tracing.signals.base import Cost, Signal, entries
from forward_influence.tracing.signals.registry import register
from forward_influence.utils.distances import ZONES

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes
    from forward_influence.tracing.needs import Needs

GRADIENTS = "gradients_"
CLOSING = "closing_"
DEFAULT_SAMPLES = 8


class _LookingAhead(Signal):
    live = False
    looks_ahead = True
    kept = False

    def passes(self, number: int) -> int:
        """Backward passes over the continuation, each of which leaves a number per entry."""
        raise NotImplementedError

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """A number per entry and pass."""
        return Cost(kept=self.passes(number) * entries(sizes, context) * sizes.wide)


class Gradients(_LookingAhead):
    """Fisher gradients of a zone, (samples, L, H, n). All zones have as many samples: their labels are drawn together.

    Args:
        zone: of the continuation.
    """

    default = DEFAULT_SAMPLES
    largest = True
    family = GRADIENTS

    def __init__(self, zone: str) -> None:
        self.zone, self.name = zone, f"{GRADIENTS}{zone}"
        self.about = f"Fisher gradients of the continuation's {zone} zone, R label samples: backward passes over it"

    def passes(self, number: int) -> int:
        """One a label sample."""
        return number


class Closing(_LookingAhead):
    """Gradients of a zone's divergence while gates close, (L, H, n).

    Args:
        zone: of the continuation.
    """

    def __init__(self, zone: str) -> None:
        self.zone, self.name = zone, f"{CLOSING}{zone}"
        self.about = f"gradients of the continuation's divergence in its {zone} zone while gates close: a backward pass"

    def passes(self, number: int) -> int:
        """One."""
        return 1


def fisher_zones(needs: Needs) -> tuple[str, ...]:
    """The zones whose Fisher gradients are needed."""
    return tuple(zone for zone in ZONES if f"{GRADIENTS}{zone}" in needs)


def closing_zones(needs: Needs) -> tuple[str, ...]:
    """The zones whose gradients are needed while gates close."""
    return tuple(zone for zone in ZONES if f"{CLOSING}{zone}" in needs)


def label_samples(needs: Needs) -> int:
    """Label samples of the Fisher gradients, the same for all zones; 0 where none are needed."""
    return max((number for zone in ZONES for number in needs.numbers(f"{GRADIENTS}{zone}")), default=0)


def backward_passes(needs: Needs) -> int:
    """Backward passes over the continuation for rules that look ahead."""
    return sum(signal.passes(number) for signal, number in needs.asked if isinstance(signal, _LookingAhead))


for _zone in ZONES:
    register(Gradients(_zone))
    register(Closing(_zone))
