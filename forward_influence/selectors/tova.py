"""TOVA (arXiv:2401.06104): attention of the last query."""

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
