"""R-KV (arXiv:2505.24133), which compresses while decoding: its scores on a context, read as if that were generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import (
    Windowed,
    logits_before_window,
    padded,
    pooled,
)
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

_SIMILARITIES = 1 << 24  # key similarities held at a time


@selector("rkv", source="R-KV, arXiv:2505.24133")
@dataclass(frozen=True, kw_only=True)
class RedundancyAware(Windowed):
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
