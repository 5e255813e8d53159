"""Rules that rank tokens by attention, other than SnapKV's and H2O's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("tova", source="TOVA, arXiv:2401.06104")
@dataclass(frozen=True, kw_only=True)
class LastQuery(Selector):
    """Attention of the last query, mean over all query heads: the same for every kv head of a layer."""

    @property
    def needs(self) -> frozenset[str]:
        """The last query."""
        return frozenset({"window:1"})

    @property
    def observation_window(self) -> int:
        """The last token, which is always kept."""
        return 1

    def scores(self, trace: Trace) -> Tensor:
        """(layers, 1, tokens)."""
        rows = [trace.attention(layer, 1).mean((0, 1)) for layer in range(len(trace.layers))]
        return torch.stack(rows)


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
