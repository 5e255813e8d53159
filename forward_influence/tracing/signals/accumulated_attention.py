"""Attention that each entry received from all queries at or after it (H2O, arXiv:2306.14048)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.instrument.attention import SCORE_ELEMENTS, ReceivedAttention
from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal, entries
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes


class AccumulatedAttention(Signal):
    """(L, H, n), summed over queries and averaged over a kv head's query heads."""

    name = "accumulated_attention"
    about = "attention received from every later query; costs attention a second time"

    def recording(self, number: int, setting: Setting) -> Recording:
        """A total per entry that is held."""
        return _Recording(setting)

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """The totals; meanwhile a block of attention logits and one of weights, which all layers share."""
        logits = min(SCORE_ELEMENTS, sizes.query_heads * chunk * context)
        return Cost(kept=entries(sizes, context) * sizes.wide, recording=2 * logits * sizes.wide)


class _Recording(Recording):
    def __init__(self, setting: Setting) -> None:
        self._layers, self._device = setting.layers, setting.device
        self._received, self._latent = ReceivedAttention(), bool(setting.anatomy.latent)
        self.totals: dict[int, Tensor] = {}

    def attention(self, attended: Attended) -> None:
        key = attended.key
        received = self._received.of(attended.query, key, attended.geometry, attended.visible)
        if self._latent:  # the keys of all heads are made of one entry
            received = received.mean(0, keepdim=True)
        before = self.totals.get(attended.layer)
        if before is None:
            before = received.new_zeros(received.shape[0], 0)
        self.totals[attended.layer] = F.pad(before, (0, key.shape[1] - before.shape[1])) + received

    def evict(self, layer: int, index: Tensor, holes: Tensor | None) -> None:
        kept = self.totals[layer].gather(1, index)
        self.totals[layer] = kept if holes is None else kept.masked_fill(holes, 0)

    def value(self, part: Part) -> Tensor | None:
        """Of the last n entries of the group's heads, (layers, kv_heads, n); None of a part that holds none."""
        if not part.group.n:
            return None
        n, heads = part.n, list(part.group.heads)
        totals = [self.totals[self._layers[row]] for row in part.group.rows]
        return torch.stack([total[heads, total.shape[1] - n :].to(self._device) for total in totals])


register(AccumulatedAttention())
