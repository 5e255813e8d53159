"""Several sequences in one pass, each with its own held entries: caches side by side in one cache for a batch.

Each sequence of a batch, a *row*, keeps a cache of its own, whose layers count and place what that row holds. Their
keys and values lie in one store per layer, so that the unmodified model reads all rows at once; rows that hold fewer
entries are padded in front. A pass may bring fewer tokens for some rows: those are padded in front, too (`Padding`),
and what only pads is neither held nor seen by any token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.selective_layer import SPARE, SelectiveLayer


@dataclass
class Padding:
    """What the layers of a batch share.

    Attributes:
        pads: for each row, how many tokens of the running pass only pad, in front.
        evicted: whether any row holds less than it has seen, so that every layer needs a mask of its own.
    """

    pads: list[int] = field(default_factory=list)
    evicted: bool = False


class BatchLayer(SelectiveLayer):
    """One layer's keys and values of several rows.

    Args:
        rows: a layer for each; what they hold is copied into one store, and they become views of it.
        padding: shared with the other layers.

    Attributes:
        keys, values: (rows, kv_heads, held, d), aligned at their end.
        held: the most entries that a row holds, or as many as the last pass brought.
        seen: tokens that went through, padding included.
    """

    def __init__(self, rows: Sequence[SelectiveLayer], padding: Padding) -> None:
        super().__init__()
        self.rows, self.padding = list(rows), padding
        self.seen = max(row.seen for row in self.rows)
        self._end = 0
        self._visible = torch.empty(0)
        self._plain = True
        self.gather()

    def gather(self, room: int = SPARE) -> None:
        """Put what the rows hold into one store: once they are joined, and after some of them changed."""
        filled = next((row for row in self.rows if row.keys is not None), None)
        self.padding.evicted |= any(not row.whole for row in self.rows)
        if filled is None:
            return
        assert filled.keys is not None and filled.values is not None
        held = max(row.held for row in self.rows)
        self._take(filled.keys, filled.values, held + room)
        assert self._key_store is not None and self._value_store is not None
        for i, row in enumerate(self.rows):
            if row.keys is None or row.values is None:
                continue
            start = held - row.held
            self._key_store[i, :, start:held], self._value_store[i, :, start:held] = row.keys[0], row.values[0]
            self._visible[i, :, start:held] = True
            if row.holes is not None:
                self._visible[i, :, start : start + row.holes.shape[1]] = ~row.holes
        self._end = held
        self._expose()

    def _take(self, keys: Tensor, values: Tensor, size: int) -> None:
        """Take a store; zeros, since what only pads is multiplied by a weight of 0, which must not give NaN."""
        count = len(self.rows)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._key_store = keys.new_zeros(count, keys.shape[1], size, keys.shape[-1])
        self._value_store = values.new_zeros(count, values.shape[1], size, values.shape[-1])
        self._visible = torch.zeros(count, keys.shape[1], size, dtype=torch.bool, device=keys.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, kv_heads, q, d) and return all that is held."""
        pads, length = self.padding.pads, key_states.shape[-2]
        if key_states.shape[0] != len(self.rows) or len(pads) != len(self.rows):
            raise UsageError(f"this cache holds {len(self.rows)} sequences, and a pass brought {key_states.shape[0]}")
        if not self.is_initialized:
            self._take(key_states, value_states, length + SPARE)
        self._make_room(length)
        assert self._key_store is not None and self._value_store is not None
        start, end = self._end, self._end + length
        self._key_store[:, :, start:end], self._value_store[:, :, start:end] = key_states, value_states
        self._visible[:, :, start:end] = True
        for i, (row, pad) in enumerate(zip(self.rows, pads, strict=True)):
            if pad:
                self._close_gap(i, start - row.held, start, pad)
            row.held, row.seen = row.held + length - pad, row.seen + length - pad
        self._end, self.seen = end, self.seen + length
        self._expose(length)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _make_room(self, length: int) -> None:
        """Room for `length` tokens more; what stands before the longest row is given up."""
        assert self._key_store is not None
        if self._end + length <= self._key_store.shape[-2]:
            return
        held = max(row.held for row in self.rows)
        for name in ("_key_store", "_value_store", "_visible"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], held + length + SPARE, *old.shape[3:])
            new[:, :, :held] = old[:, :, self._end - held : self._end]
            setattr(self, name, new)
        self._end = held

    def _close_gap(self, i: int, start: int, end: int, pad: int) -> None:
        """Move a row's entries over the padding that came behind them."""
        for store in (self._key_store, self._value_store, self._visible):
            assert store is not None
            store[i, :, start + pad : end + pad] = store[i, :, start:end].clone()
        self._visible[i, :, start : start + pad] = False

    def _expose(self, least: int = 0) -> None:
        assert self._key_store is not None and self._value_store is not None
        self.held = max(least, *(row.held for row in self.rows))
        begin, end = self._end - self.held, self._end
        self.keys, self.values = self._key_store[:, :, begin:end], self._value_store[:, :, begin:end]
        self._plain = True
        for i, row in enumerate(self.rows):
            keys, values = self._key_store[i : i + 1], self._value_store[i : i + 1]
            row.show(keys[:, :, end - row.held : end], values[:, :, end - row.held : end])
            self._plain &= row.held == self.held and row.holes is None

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Its own once a row holds less than it has seen: bool (rows, 1 | kv_heads, q, held), None for all visible."""
        if not self.padding.evicted:
            return False, None
        padded = any(self.padding.pads)
        if query_length == 1 and self._plain and not padded:
            return True, None
        visible = self._visible[:, :, None, self._end - self.held : self._end]
        if all(row.holes is None for row in self.rows):
            visible = visible[:, :1]
        if query_length > 1:
            visible = visible & causal_tail(query_length, self.held, visible.device)
        return True, seeing_something(visible) if padded else visible

    def leave(self, staying: Sequence[int]) -> None:
        """Go on with the rows at these places alone."""
        self.rows = [self.rows[i] for i in staying]
        self.gather()

    def positions(self) -> Tensor:
        """Refused: each row has its own."""
        raise UsageError("the sequences of a batch hold different positions; ask each row's layer")

    def branch(self, index: Tensor | None, holes: Tensor | None, room: int) -> SelectiveLayer:
        """Refused: selections are made row by row."""
        raise UsageError("the sequences of a batch are compressed one by one; branch a row's own cache")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: rows would go back to different places."""
        raise UsageError("the sequences of a batch cannot go back; start from their contexts")

    def reset(self) -> None:
        """Refused, as for other caches that belong to a run."""
        raise UsageError("the sequences of a batch cannot start anew in one cache; make another")


class RowOfLayer:
    """One row of a layer that transformers itself keeps for the whole batch, to be counted.

    Attributes:
        index: the row's place in the batch.
    """

    def __init__(self, layer: CacheLayerMixin, index: int) -> None:
        self._layer, self.index = layer, index

    @property
    def keys(self) -> Tensor | None:
        """(1, kv_heads, tokens, d)."""
        return None if self._layer.keys is None else self._layer.keys[self.index : self.index + 1]

    @property
    def values(self) -> Tensor | None:
        """(1, kv_heads, tokens, d)."""
        return None if self._layer.values is None else self._layer.values[self.index : self.index + 1]


def seeing_something(visible: Tensor) -> Tensor:
    """A bool mask (..., q, k) in which queries that see nothing see everything: those only pad, and must not be NaN."""
    return visible | ~visible.any(-1, keepdim=True)


def can_stack(cache: SelectiveCache) -> bool:
    """Whether all layers are of kinds that can be put side by side: entries only, no states and no index keys beside
    them, and none that reads what another layer holds."""
    return all(type(layer) in (SelectiveLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def batch_layers(caches: Sequence[SelectiveCache], padding: Padding) -> list[CacheLayerMixin]:
    """The layers of caches side by side; the layers that can be selected from stay, as rows of the result.

    Raises:
        UsageError: a layer of a kind that cannot be put side by side.
    """
    padding.pads = [0] * len(caches)
    layers: list[CacheLayerMixin] = []
    for column in zip(*(cache.layers for cache in caches), strict=True):
        if type(column[0]) is SelectiveLayer:
            layers.append(BatchLayer([layer for layer in column if isinstance(layer, SelectiveLayer)], padding))
        elif type(column[0]) is DynamicSlidingWindowLayer:
            layers.append(_windows(column))
        else:
            raise UsageError(
                f"sequences of a model with {type(column[0]).__name__}s cannot run side by side; run them one by one"
            )
    return layers


def _windows(layers: Sequence[DynamicSlidingWindowLayer]) -> DynamicSlidingWindowLayer:
    """Layers that hold a window each as one for a batch, shorter ones padded in front."""
    joined: DynamicSlidingWindowLayer = object.__new__(type(layers[0]))
    joined.__dict__.update(layers[0].__dict__)
    if not layers[0].is_initialized:
        return joined
    joined.cumulative_length = max(layer.cumulative_length for layer in layers)
    for name in ("keys", "values"):
        tensors = [getattr(layer, name) for layer in layers]
        longest, first = max(t.shape[2] for t in tensors), tensors[0]
        store = first.new_zeros(len(tensors), first.shape[1], longest, first.shape[-1])
        for row, tensor in zip(store, tensors, strict=True):
            row[:, longest - tensor.shape[2] :] = tensor[0]
        setattr(joined, name, store)
    return joined


def stack(caches: Sequence[SelectiveCache]) -> SelectiveCache:
    """Caches that have seen equally many tokens as one cache for a batch; they become views of it.

    Raises:
        UsageError: they have seen different numbers of tokens, or have layers that cannot be put side by side.
    """
    if len({cache.get_seq_length() for cache in caches}) != 1:
        raise UsageError("only caches that have seen equally many tokens can be run side by side")
    padding = Padding()
    batch = SelectiveCache.of_layers(batch_layers(caches, padding))
    batch.padding = padding
    return batch


def leave(batch: SelectiveCache, staying: Sequence[int]) -> None:
    """Go on with the rows at these places alone, so that the others cost nothing more."""
    if batch.padding is not None:
        batch.padding.pads = [batch.padding.pads[i] for i in staying]
    for layer in batch.layers:
        if isinstance(layer, BatchLayer):
            layer.leave(staying)
        elif layer.keys is not None:
            layer.batch_select_indices(torch.tensor(staying, device=layer.keys.device))
