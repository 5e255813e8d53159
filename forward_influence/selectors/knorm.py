"""Norms of keys (arXiv:2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("knorm", source="L2 norm of keys, arXiv:2406.11430")
@dataclass(frozen=True, kw_only=True)
class KeyNorm(Selector):
    """-||k||: keys of small norm tend to receive much attention."""

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return torch.stack([-at_least_float32(trace.keys(i)).norm(dim=-1) for i in range(len(trace.layers))])
