"""Rules that read keys alone: cheap, and blind to queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


def per_layer(trace: Trace) -> list[Tensor]:
    """Each layer's keys (kv_heads, tokens, d), float32 at least."""
    return [at_least_float32(trace.keys(layer)) for layer in range(len(trace.layers))]


@selector("knorm", source="L2 norm of keys, arXiv:2406.11430")
@dataclass(frozen=True, kw_only=True)
class KeyNorm(Selector):
    """-||k||: keys of small norm tend to receive much attention."""

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return torch.stack([-keys.norm(dim=-1) for keys in per_layer(trace)])


@selector("keydiff", source="KeyDiff, arXiv:2504.15364")
@dataclass(frozen=True, kw_only=True)
class KeyDifference(Selector):
    """-cos(k_j, mean_i k_i/||k_i||): keys unlike the others."""

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        rows = []
        for keys in per_layer(trace):
            anchor = F.normalize(keys, dim=-1).mean(1, keepdim=True)
            rows.append(-F.cosine_similarity(keys, anchor, dim=-1))
        return torch.stack(rows)
