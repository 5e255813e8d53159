"""Rules that rank tokens by the attention they received."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.tracing.trace import Trace

POOLINGS = ("average", "max", "none")
REDUCTIONS = ("mean", "max", "sum")


def pooled(scores: Tensor, kernel: int, pooling: str) -> Tensor:
    """Pool over the last axis of (heads, group, tokens), stride 1, zero padding counted in averages."""
    if pooling == "none" or kernel == 1:
        return scores
    if pooling == "average":
        return F.avg_pool1d(scores, kernel, stride=1, padding=kernel // 2)
    return F.max_pool1d(scores, kernel, stride=1, padding=kernel // 2)


def reduced(scores: Tensor, how: str) -> Tensor:
    """(heads, group, tokens) -> (heads, tokens)."""
    if how == "mean":
        return scores.mean(1)
    return scores.amax(1) if how == "max" else scores.sum(1)


def window_attention(trace: Trace, window: int, kernel: int, pooling: str, group: str) -> Tensor:
    """SnapKV's score (L, H, n) for the tokens before the window; 0 inside it, where it is not defined."""

    observed = trace.observed(window)

    def compute() -> Tensor:
        result = torch.zeros(trace.shape, dtype=torch.float32, device=trace.tokens.device)
        for layer in range(len(trace.layers)):
            seen = trace.attention(layer, observed)[..., : trace.n - observed].mean(2)
            result = result.to(seen.dtype)
            if seen.shape[-1]:
                result[layer, :, : trace.n - observed] = reduced(pooled(seen, kernel, pooling), group)
        return result

    return trace.memo(("window_attention", observed, kernel, pooling, group), compute)


def check_window(rule: Selector, window: int, kernel: int, pooling: str, group: str) -> None:
    """Refuse window parameters that make no sense."""
    if window < 1:
        raise UsageError(f"{rule.name}: window={window} observes nothing; give at least 1")
    if kernel < 1 or kernel % 2 == 0:
        raise UsageError(f"{rule.name}: kernel={kernel} must be an odd number from 1")
    if pooling not in POOLINGS:
        raise UsageError(f"{rule.name}: pooling={pooling} is unknown; it is one of {', '.join(POOLINGS)}")
    if group not in REDUCTIONS:
        raise UsageError(f"{rule.name}: group={group} is unknown; it is one of {', '.join(REDUCTIONS)}")


@selector("attention", source="SnapKV, arXiv:2404.14469")
@dataclass(frozen=True, kw_only=True)
class Attention(Selector):
    """Attention of the last tokens: mean over the observation window, pooled over neighbours, reduced over a group.

    Attributes:
        window: queries of the observation window, W.
        kernel: width of the pooling, odd.
        pooling: average (zero padding counted), max or none.
        group: how the query heads of a kv head are joined: mean, max or sum; after pooling.
    """

    window: int = DEFAULT_WINDOW
    kernel: int = 5
    pooling: str = "average"
    group: str = "mean"

    def validate(self) -> None:
        """Window at least 1, kernel odd, known poolings and reductions."""
        check_window(self, self.window, self.kernel, self.pooling, self.group)

    @property
    def needs(self) -> frozenset[str]:
        """The window's queries."""
        return frozenset({f"window:{self.window}"})

    @property
    def observation_window(self) -> int:
        """W."""
        return self.window

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return window_attention(trace, self.window, self.kernel, self.pooling, self.group)


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
