"""RPC (arXiv:2505.13866), which compresses while decoding: its scores on a context, read as if that were generated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import (
    Windowed,
    logits_before_window,
    padded,
    pooled,
)
from forward_influence.tracing.trace import Trace


@selector("rpc", source="RPC, arXiv:2505.13866")
@dataclass(frozen=True, kw_only=True)
class ReasoningPath(Windowed):
    """Attention of the last queries among the tokens before them: summed, mean over all query heads, average-pooled.

    Attributes:
        window: queries that select, R.
        kernel: width of the average pooling, odd.
    """

    def scores(self, trace: Trace) -> Tensor:
        """(layers, 1, tokens)."""
        window = min(trace.observed(self.window), trace.n - 1)
        rows = []
        for layer in range(len(trace.layers)):
            attention = logits_before_window(trace, layer, window).softmax(-1).sum(2)
            rows.append(pooled(attention.mean((0, 1))[None, None], self.kernel, "average")[0])
        return padded(rows, trace.n)
