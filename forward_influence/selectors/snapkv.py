"""SnapKV (arXiv:2404.14469): attention of the last tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import (
    check_window,
    window_attention,
)
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.tracing.trace import Trace


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
