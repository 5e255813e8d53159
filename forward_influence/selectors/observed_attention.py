"""Observed attention (kvpress; after H2O, arXiv:2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("observed-attention", source="kvpress; after H2O, arXiv:2306.14048")
@dataclass(frozen=True, kw_only=True)
class ObservedAttention(Selector):
    """Attention received, divided by the number of queries that could see the token: no bonus for being early."""

    @property
    def needs(self) -> frozenset[str]:
        """Accumulated attention."""
        return frozenset({"accumulated_attention"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        total = trace.accumulated_attention
        return total / (trace.seen - trace.positions).to(total.dtype)
