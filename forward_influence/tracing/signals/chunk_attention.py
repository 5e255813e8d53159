"""Attention within chunks, where every token of a chunk sees all of it (Compactor, arXiv:2507.08143)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forward_influence.instrument.attention import Geometry, attention_logits, softmax_with_sinks
from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal, entries
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes

#: Tokens at the start and at the end that are in no chunk, as in kvpress' CompactorPress.
OUTSIDE_FIRST, OUTSIDE_LAST = 8, 4
DEFAULT_CHUNK = 256


class ChunkAttention(Signal):
    """(L, H, n), summed over the queries of a token's chunk and averaged over a kv head's query heads.

    Chunks of so many tokens follow one another from the 9th token on; the last one is what is left before the last 4
    tokens. The first 8 and the last 4 tokens have 0.
    """

    name = "chunk_attention"
    about = "attention received within chunks in which every token sees all others; costs a part of attention again"
    label = "attention within chunks"
    default = DEFAULT_CHUNK

    def recording(self, number: int, setting: Setting) -> Recording:
        """Sums of the chunks that are through, and queries and keys of the one that is not."""
        return _Recording(number, setting)

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """A number per token; meanwhile the queries and keys of a chunk in every layer, and one layer's attention."""
        waiting = sizes.layers * (sizes.query_heads + sizes.kv_heads) * sizes.head_size * (number + chunk)
        return Cost(
            kept=entries(sizes, context) * sizes.wide,
            recording=waiting * sizes.itemsize + 2 * sizes.query_heads * number**2 * sizes.wide,
        )


class _Recording(Recording):
    """Sums are kept by position and never evicted: a hundredth of what the entries themselves take."""

    def __init__(self, size: int, setting: Setting) -> None:
        self._size, self._layers, self._device = size, setting.layers, setting.device
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}  # (heads, tokens, d) of what is in no whole chunk yet
        self._sums: dict[int, list[Tensor]] = {}
        self._geometry: dict[int, Geometry] = {}

    def attention(self, attended: Attended) -> None:
        layer, length = attended.layer, attended.query.shape[1]
        self._geometry[layer] = attended.geometry
        skip = max(0, OUTSIDE_FIRST - attended.before)
        queries, keys = attended.query[:, skip:], attended.key[:, attended.key.shape[1] - length + skip :]
        if layer in self._waiting:
            queries, keys = (
                torch.cat([old, new], 1) for old, new in zip(self._waiting[layer], (queries, keys), strict=True)
            )
        sums = self._sums.setdefault(layer, [])
        # the last tokens are in no chunk, and which are the last is not known before the end
        while queries.shape[1] >= self._size + OUTSIDE_LAST:
            sums.append(self._received(layer, queries[:, : self._size], keys[:, : self._size]))
            queries, keys = queries[:, self._size :], keys[:, self._size :]
        self._waiting[layer] = queries.clone(), keys.clone()

    def _received(self, layer: int, queries: Tensor, keys: Tensor) -> Tensor:
        """(kv_heads, tokens): what a chunk's tokens get from all of them."""
        geometry = self._geometry[layer]
        weights = softmax_with_sinks(attention_logits(queries, keys, geometry), geometry.sinks)
        return weights.sum(2).mean(1)

    def value(self, part: Part) -> Tensor | None:
        """At the positions that the part holds, (layers, kv_heads, n); 0 where an entry only pads."""
        if not part.n:
            return None
        heads = list(part.group.heads)
        rows = [self._by_position(self._layers[row], part.seen)[heads] for row in part.group.rows]
        by_position = torch.stack([row.to(self._device) for row in rows])
        return by_position.gather(-1, part.positions.clamp_min(0)).masked_fill(part.positions < 0, 0)

    def _by_position(self, layer: int, seen: int) -> Tensor:
        """(kv_heads, seen)."""
        queries, keys = self._waiting[layer]
        left = max(0, queries.shape[1] - OUTSIDE_LAST)
        rest = [self._received(layer, queries[:, :left], keys[:, :left])] if left else []
        inside = [*self._sums[layer], *rest]
        empty = self._received(layer, queries[:, :0], keys[:, :0]) if not inside else inside[0][:, :0]
        first = empty.new_zeros(empty.shape[0], min(OUTSIDE_FIRST, seen))
        last = empty.new_zeros(empty.shape[0], seen - first.shape[1] - sum(part.shape[1] for part in inside))
        return torch.cat([first, *inside, last], dim=1)


register(ChunkAttention())
