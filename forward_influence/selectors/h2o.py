"""H2O (arXiv:2306.14048): attention accumulated over all queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("h2o", source="H2O, arXiv:2306.14048")
@dataclass(frozen=True, kw_only=True)
class HeavyHitters(Selector):
    """Attention accumulated over all queries that could see a token, mean over a kv head's query heads.

    Early tokens are seen by more queries and so collect more: that is the rule as published.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Accumulated attention."""
        return frozenset({"accumulated_attention"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return trace.accumulated_attention
