"""What a rule could know if it knew the continuation: a mark to set other rules beside, not one to compress by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.signals import DEFAULT_SAMPLES, GRADIENTS
from forward_influence.trace import Trace
from forward_influence.zones import ZONES


@selector("oracle", source="Fisher information of gates, from the continuation itself")
@dataclass(frozen=True, kw_only=True)
class Oracle(Selector):
    """How much the predictions of the continuation that follows answer to each entry: Fisher information of its gate.

    1/2 mean g^2 over label samples, g the gradient of the zone's summed log p(label). With per=layer and per=token, g
    is first summed over what goes together. A local estimate of what removal does; see `gradients.py`.

    Attributes:
        zone: "near", "middle", "far" or "all" of the continuation.
        samples: of labels; more is less noise and more backward passes.
    """

    zone: str = "all"
    samples: int = DEFAULT_SAMPLES
    positional = "zone"

    def validate(self) -> None:
        """A zone that there is, at least one sample."""
        if self.zone not in (*ZONES, "all"):
            raise UsageError(f"{self.name}: zone={self.zone} is unknown; it is one of {', '.join(ZONES)}, all")
        if self.samples < 1:
            raise UsageError(f"{self.name}: samples={self.samples} says nothing; give at least 1")

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones whose information is added up."""
        return ZONES if self.zone == "all" else (self.zone,)

    @property
    def needs(self) -> frozenset[str]:
        """The zones' gradients."""
        return frozenset(f"{GRADIENTS}{zone}:{self.samples}" for zone in self.zones)

    def scores(self, trace: Trace) -> Tensor:
        """(L, H, tokens), (L, 1, tokens) or (1, 1, tokens), by the grain."""
        together = {"entry": (), "layer": (2,), "token": (1, 2)}[self.per]
        total = trace.gradients(self.zones[0], self.samples).new_zeros(())
        for zone in self.zones:
            gradients = trace.gradients(zone, self.samples)
            total = total + (gradients.sum(together, keepdim=True) if together else gradients).square().mean(0) / 2
        return total
