"""ChunkKV (arXiv:2502.00299): tokens are chosen in chunks of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.modifier import Modifier
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("chunkkv", source="ChunkKV, arXiv:2502.00299")
@dataclass(frozen=True, kw_only=True)
class ChunkKV(Modifier):
    """Another rule's scores, averaged over chunks of neighbouring candidates and summed over a layer's heads.

    Chunks are counted from the sequence's first token, so that a token stays in its chunk when others are evicted. All
    candidates of a chunk score alike, and ties go to the earlier token: whole chunks are chosen, and of the last one as
    many tokens as the budget has left (kvpress keeps whole chunks only, so that its budgets are met less exactly).

    Attributes:
        of: the rule whose scores are averaged; its parameters in parentheses.
        length: tokens of a chunk.
    """

    length: int = 20

    def validate(self) -> None:
        """As of every modifier; chunks of at least one token, and the same budget for a layer's heads."""
        super().validate()
        if self.length < 1:
            raise UsageError(f"{self.name}: length={self.length} is no number of tokens; give at least 1")
        if self.rule.heads != "equal":
            raise UsageError(f"{self.name}: a chunk is chosen for all heads of a layer; leave out heads=adaptive")

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens); 0 outside the candidates."""
        base = self.base(trace)[..., trace.first : trace.last].double()
        chunks = trace.positions.expand(trace.shape)[..., trace.first : trace.last].to(base.device) // self.length
        chunks = chunks.clamp_min(0)
        totals = torch.zeros(*base.shape[:2], int(chunks.max()) + 1, dtype=base.dtype, device=base.device)
        sizes = totals.scatter_add(-1, chunks, torch.ones_like(base))
        means = totals.scatter_add(-1, chunks, base) / sizes.clamp_min(1)
        of_layer = means.sum(1, keepdim=True).expand_as(means)
        result = torch.zeros(trace.shape, dtype=base.dtype, device=base.device)
        result[..., trace.first : trace.last] = of_layer.gather(-1, chunks)
        return result
