"""Entropy upside down, its control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.entropy import Entropy
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("low-entropy", source="control for entropy")
@dataclass(frozen=True, kw_only=True)
class LowEntropy(Entropy):
    """The tokens that the model was surest of: entropy upside down, with its parameters."""

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return -super().scores(trace)
