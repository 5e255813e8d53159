"""KeyDiff (arXiv:2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("keydiff", source="KeyDiff, arXiv:2504.15364")
@dataclass(frozen=True, kw_only=True)
class KeyDifference(Selector):
    """-cos(k_j, mean_i k_i/||k_i||): keys unlike the others."""

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        rows = []
        for layer in range(len(trace.layers)):
            keys = at_least_float32(trace.keys(layer))
            anchor = F.normalize(keys, dim=-1).mean(1, keepdim=True)
            rows.append(-F.cosine_similarity(keys, anchor, dim=-1))
        return torch.stack(rows)
