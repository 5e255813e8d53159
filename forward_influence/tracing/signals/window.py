"""The last queries of every layer, for attention of the observation window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes

DEFAULT_WINDOW = 64


class Window(Signal):
    """Per full layer (query_heads, W, d), the last W queries after the rotary embedding; fewer where fewer passed."""

    name = "window"
    about = "the last W queries of every layer; attention of the observation window"
    label = "window queries"
    default = DEFAULT_WINDOW
    largest = True

    def recording(self, number: int, setting: Setting) -> Recording | None:
        """W is the number; a window of 0 is none."""
        return _Recording(number, setting) if number else None

    def packed(self, value: list[Tensor]) -> dict[str, Tensor]:
        """One tensor a layer."""
        return {str(i): queries for i, queries in enumerate(value)}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """In the order of layers."""
        return [tensors[str(i)] for i in range(len(tensors))]

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """The queries; while choosing, a layer's attention of the window: logits, weights and what they become."""
        window = min(number, context)
        return Cost(
            kept=sizes.attending * sizes.query_heads * sizes.head_size * window * sizes.itemsize,
            choosing=3 * sizes.query_heads * window * context * sizes.wide,
        )


class _Recording(Recording):
    """Queries are no entries of the cache: an eviction leaves them."""

    def __init__(self, count: int, setting: Setting) -> None:
        self._count, self._layers = count, setting.layers
        self._last = {layer: LastRows(count) for layer in setting.layers}

    def attention(self, attended: Attended) -> None:
        self._last[attended.layer].add(attended.query)

    def value(self, part: Part) -> list[Tensor]:
        rows = [self._last[self._layers[row]].rows(self._count) for row in part.group.rows]
        if not part.all_heads:
            return [queries[part.query_heads] for queries in rows]
        return [queries.clone() for queries in rows] if part.lasting else rows


class LastRows:
    """The last rows of a growing (heads, rows, d) tensor: a store with room for as many again, left when it is full.

    Args:
        count: how many rows are wanted at most.
    """

    def __init__(self, count: int) -> None:
        self._count, self._end = count, 0
        self._store: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Append (heads, q, d); what is older than the last `count` rows may go."""
        rows = rows[:, -self._count :]
        new = rows.shape[1]
        if self._store is None or self._end + new > self._store.shape[1]:
            # what fills the window alone, as a chunk of a context does, needs no room beyond
            room = self._count if new == self._count else 2 * self._count
            store = rows.new_empty(rows.shape[0], room, rows.shape[2])
            kept = min(self._end, self._count - new)
            if self._store is not None:
                store[:, :kept] = self._store[:, self._end - kept : self._end]
            self._store, self._end = store, kept
        self._store[:, self._end : self._end + new] = rows
        self._end += new

    def rows(self, count: int) -> Tensor:
        """The last `count` rows, or as many as there are: (heads, rows, d)."""
        assert self._store is not None
        return self._store[:, self._end - min(count, self._end) : self._end]


register(Window())
