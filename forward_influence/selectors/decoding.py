"""Scores of methods that compress while decoding, read here on a context as if it had been generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import attention_logits
from forward_influence.selectors.attention import pooled
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

_SIMILARITIES = 1 << 24  # key similarities held at a time


def logits_before_window(trace: Trace, layer: int, window: int) -> Tensor:
    """Logits of the last `window` queries to the tokens before them, (kv_heads, group, window, n - window)."""
    return attention_logits(
        trace.queries(layer, window), trace.keys(layer)[:, : -window or None], trace.geometry[layer]
    )


def padded(scores: list[Tensor], n: int) -> Tensor:
    """Layers' scores of the tokens before the window, stacked; 0 inside it, where they are not defined."""
    stacked = torch.stack(scores)
    return F.pad(stacked, (0, n - stacked.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class _Windowed(Selector):
    """A rule with an observation window and a pooling kernel.

    Attributes:
        window: queries of the observation window.
        kernel: width of the pooling, odd.
    """

    window: int = 32
    kernel: int = 7

    def validate(self) -> None:
        """A window that observes something, an odd kernel."""
        if self.window < 1:
            raise UsageError(f"{self.name}: window={self.window} observes nothing; give at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"{self.name}: kernel={self.kernel} must be an odd number from 1")

    @property
    def needs(self) -> frozenset[str]:
        """The window's queries."""
        return frozenset({f"window:{self.window}"})

    @property
    def observation_window(self) -> int:
        """The window, which is always kept."""
        return self.window


@selector("rpc", source="RPC, arXiv:2505.13866")
@dataclass(frozen=True, kw_only=True)
class ReasoningPath(_Windowed):
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


@selector("rkv", source="R-KV, arXiv:2505.24133")
@dataclass(frozen=True, kw_only=True)
class RedundancyAware(_Windowed):
    """Importance less redundancy: lambda * attention - (1 - lambda) * softmax(mean similarity to the other keys).

    Attention: logits of the last queries, maximum over a group, softmax over the tokens before them, mean over the
    queries, max-pooled. Similarity: cosine of keys without a key's own and, per row, without the last one above
    `threshold`, so that of several alike the latest counts as new.

    Attributes:
        window: queries of the observation window.
        kernel: width of the max-pooling, odd.
        weight: lambda.
        threshold: cosine above which two keys are alike.
    """

    window: int = 8
    weight: float = 0.07
    threshold: float = 0.5

    def validate(self) -> None:
        """As the window demands, and 0 <= weight <= 1."""
        super().validate()
        if not 0 <= self.weight <= 1:
            raise UsageError(f"{self.name}: weight={self.weight} lies outside 0 to 1")

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        window = min(trace.observed(self.window), trace.n - 1)
        rows = []
        for layer in range(len(trace.layers)):
            attention = logits_before_window(trace, layer, window).amax(1).softmax(-1).mean(1)
            attention = pooled(attention[:, None], self.kernel, "max")[:, 0]
            redundancy = self._redundancy(at_least_float32(trace.keys(layer)))[:, : attention.shape[-1]]
            rows.append(self.weight * attention - (1 - self.weight) * redundancy)
        return padded(rows, trace.n)

    def _redundancy(self, keys: Tensor) -> Tensor:
        """(kv_heads, tokens), summing to 1 over tokens; rows of the similarity matrix go in blocks."""
        unit = F.normalize(keys, dim=-1)
        heads, n, _ = unit.shape
        total = torch.zeros(heads, n, dtype=unit.dtype, device=unit.device)
        places = torch.arange(n, device=unit.device)
        for rows in places.split(max(1, _SIMILARITIES // (heads * n))):
            similar = unit[:, rows] @ unit.transpose(1, 2)
            similar[:, torch.arange(len(rows)), rows] = 0
            latest = torch.where(similar > self.threshold, places, -1).amax(-1, keepdim=True)
            total += similar.masked_fill(places == latest, 0).sum(1)
        return (total / n).softmax(-1)
