"""What a rule could know if it knew the continuation: a mark to set other rules beside, not one to compress by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.signals.gradients import CLOSING, DEFAULT_SAMPLES, GRADIENTS
from forward_influence.tracing.trace import Trace
from forward_influence.utils.distances import ZONES

WAYS = ("closing", "fisher")
MOST_SAMPLES = 10_000


@selector("oracle", source="gradients by gates, of the continuation itself")
@dataclass(frozen=True, kw_only=True)
class Oracle(Selector):
    """How much the predictions of the continuation that follows answer to each entry, by the gradient of its gate.

    by=closing: what each entry adds to the divergence while the gates of all candidates close, half way.
    by=fisher: 1/2 mean g^2 over label samples, g the gradient of the zone's summed log p(label) with all gates open,
    a local estimate; with per=layer and per=token, g is first summed over what goes together.

    Attributes:
        zone: "near", "middle", "far" or "all" of the continuation.
        by: "closing" or "fisher".
        samples: of labels, for fisher; more is less noise and more backward passes.
    """

    zone: str = "all"
    by: str = "closing"
    samples: int = DEFAULT_SAMPLES
    positional = "zone"

    def validate(self) -> None:
        """A zone and a way that there are, at least one sample."""
        if self.zone not in (*ZONES, "all"):
            raise UsageError(f"{self.name}: zone={self.zone} is unknown; it is one of {', '.join(ZONES)}, all")
        if self.by not in WAYS:
            raise UsageError(f"{self.name}: by={self.by} is unknown; it is one of {', '.join(WAYS)}")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise UsageError(f"{self.name}: samples={self.samples} is a backward pass each; give 1 to {MOST_SAMPLES}")

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones whose divergence is added up."""
        return ZONES if self.zone == "all" else (self.zone,)

    @property
    def needs(self) -> frozenset[str]:
        """The zones' gradients."""
        if self.by == "closing":
            return frozenset(f"{CLOSING}{zone}" for zone in self.zones)
        return frozenset(f"{GRADIENTS}{zone}:{self.samples}" for zone in self.zones)

    def scores(self, trace: Trace) -> Tensor:
        """(L, H, tokens); by=fisher (L, H, tokens), (L, 1, tokens) or (1, 1, tokens), by the grain."""
        score = self._closing if self.by == "closing" else self._fisher
        return torch.stack([score(trace, zone) for zone in self.zones]).sum(0)

    def _closing(self, trace: Trace, zone: str) -> Tensor:
        found = trace.future.get(f"{CLOSING}{zone}")
        if found is None:
            raise UsageError(
                f"gradients of the {zone} continuation while gates close are missing: rules that look ahead work where "
                f'the continuation is known (measure, screen) and declare needs={{"{CLOSING}{zone}"}}'
            )
        return found

    def _fisher(self, trace: Trace, zone: str) -> Tensor:
        together = {"entry": (), "layer": (2,), "token": (1, 2)}[self.per]
        gradients = trace.gradients(zone, self.samples)
        return (gradients.sum(together, keepdim=True) if together else gradients).square().mean(0) / 2
