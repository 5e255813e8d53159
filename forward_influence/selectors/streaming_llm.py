"""Rules that read positions alone and are published as compressors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("streaming", source="StreamingLLM, arXiv:2309.17453")
@dataclass(frozen=True, kw_only=True)
class Streaming(Selector):
    """The first tokens (attention sinks), then the most recent ones. Where sinks are protected it equals `recent`.

    Attributes:
        sinks: how many of the first tokens come before all others.
    """

    sinks: int = 4

    def validate(self) -> None:
        """No negative count."""
        if self.sinks < 0:
            raise UsageError(f"{self.name}: sinks={self.sinks} is negative; give 0 or more")

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        position = torch.arange(trace.n, dtype=torch.float64)
        return torch.where(position < self.sinks, 2.0 * trace.n - position, position)
