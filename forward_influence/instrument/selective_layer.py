"""One layer of a cache that knows what it has seen and holds: some of the tokens that went through, per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import causal_tail
from forward_influence.instrument.compat import Unbounded, query_count

#: Tokens that a growing store makes room for at once: what is spare counts as held memory.
SPARE = 64


class SelectiveLayer(Unbounded, CacheLayerMixin):
    """One layer's keys and values: some of the tokens seen, per head.

    Attributes:
        keys, values: (1, kv_heads, held, d) views of what is held, holes included; None before the first token.
        seen: tokens that went through.
        held: entries per head, holes included (heads that hold fewer are padded in front).
        holes: (kv_heads, held at the last eviction) bool, True where an entry is padding; None where there are none.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room = room
        self.seen = 0
        self.held = 0
        self.holes: Tensor | None = None
        self._kept_positions: Tensor | None = None
        self._key_store: Tensor | None = None
        self._value_store: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take dtype, device and shape from the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        size = max(self.room, key_states.shape[-2])
        self._key_store = key_states.new_empty(*key_states.shape[:2], size, key_states.shape[-1])
        self._value_store = value_states.new_empty(*value_states.shape[:2], size, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, kv_heads, q, d) and return all that is held."""
        if key_states.shape[0] != 1:
            raise UsageError("a selective cache holds one sequence; run the sequences of a batch one by one")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = key_states.shape[-2]
        end = self.held + length
        self._grow(end)
        assert self._key_store is not None and self._value_store is not None
        self._key_store[:, :, self.held : end] = key_states
        self._value_store[:, :, self.held : end] = value_states
        self.held, self.seen = end, self.seen + length
        self._expose()
        return self.keys, self.values

    def _grow(self, size: int) -> None:
        """Make the stores at least `size` long, a few tokens at a time: decoding must not copy at every token."""
        assert self._key_store is not None and self._value_store is not None
        if size <= self._key_store.shape[-2]:
            return
        size += SPARE
        for name in ("_key_store", "_value_store"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], size, old.shape[-1])
            new[:, :, : self.held] = old[:, :, : self.held]
            setattr(self, name, new)

    def show(self, keys: Tensor, values: Tensor) -> None:
        """Hold what a store for several sequences holds of this one, (1, kv_heads, held, d)."""
        self.keys = self._key_store = keys
        self.values = self._value_store = values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    @property
    def whole(self) -> bool:
        """Whether it holds all it has seen, in order."""
        return self.held == self.seen and self.holes is None and self._in_order()

    def evict(self, index: Tensor, holes: Tensor | None) -> None:
        """Hold only the entries at `index` (kv_heads, kept) from now on; as `branch`."""
        self.__dict__.update(self.branch(index, holes, 0).__dict__)

    def _expose(self) -> None:
        assert self._key_store is not None and self._value_store is not None
        self.keys = self._key_store[:, :, : self.held]
        self.values = self._value_store[:, :, : self.held]

    def positions(self) -> Tensor:
        """The logical positions of what is held, (kv_heads, held) int64; -1 marks padding."""
        if self.keys is None:
            return torch.empty(0, 0, dtype=torch.int64)
        heads = self.keys.shape[1]
        if self._kept_positions is None:
            return torch.arange(self.seen, device=self.keys.device).expand(heads, -1)
        kept = self._kept_positions
        if self.holes is not None:
            kept = kept.masked_fill(self.holes, -1)
        tail = torch.arange(self.seen - (self.held - kept.shape[1]), self.seen, device=kept.device)
        return torch.cat([kept, tail.expand(heads, -1)], dim=1)

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Whether this layer brings its own mask, and which: bool (1, 1 | kv_heads, q, held), None for all visible.

        Called after `update` with the query's own keys at the end. A layer that holds all it has seen leaves the mask
        to the model.
        """
        if self.whole:
            return False, None
        if self.holes is None:
            tail = causal_tail(query_length, self.held, self.keys.device)
            return True, None if query_length == 1 else tail[None, None]
        visible = causal_tail(query_length, self.held, self.keys.device).repeat(self.holes.shape[0], 1, 1)
        visible[:, :, : self.holes.shape[1]] &= ~self.holes[:, None]
        return True, visible[None]

    def mask_ahead(self, query_length: int, like: Tensor) -> Tensor | None:
        """The layer's own mask before `update`, of the keys that will be there: (1, 1 | kv_heads, q, held + q) bool.

        None where the layer leaves the mask to the model. What picks among the keys needs it before the layer attends.

        Args:
            like: a tensor on the device where the first keys will be.
        """
        keys = self.keys
        self.keys = like if keys is None else keys
        self.held, self.seen = self.held + query_length, self.seen + query_length
        try:
            own, mask = self.own_mask(query_length)
            if own and mask is None:
                mask = torch.ones(1, 1, query_length, self.held, dtype=torch.bool, device=self.keys.device)
            return mask
        finally:
            self.keys, self.held, self.seen = keys, self.held - query_length, self.seen - query_length

    def gates(self) -> Tensor | None:
        """What is added to the attention logits of what is held, (kv_heads, held); None for nothing."""
        return None

    def _in_order(self) -> bool:
        return self._kept_positions is None

    def branch(self, index: Tensor | None, holes: Tensor | None, room: int) -> SelectiveLayer:
        """A new layer that has seen the same tokens and holds the entries at `index` of this one.

        Args:
            index: (kv_heads, kept) int64 into what is held; None holds everything.
            holes: (kv_heads, kept) bool, True where an entry only pads; None for none.
            room: how many more tokens will follow (the store is made that much longer).
        """
        if self.keys is None:
            raise UsageError("a cache that has seen nothing cannot be branched; run the context first")
        # a selection is made on one device, a model may be spread over several
        index = None if index is None else index.to(self.keys.device)
        holes = None if holes is None else holes.to(self.keys.device)
        other = type(self)()
        other.dtype, other.device, other.is_initialized = self.dtype, self.device, True
        other.seen = self.seen
        other.held = self.held if index is None else index.shape[1]
        for name, source in (("_key_store", self.keys), ("_value_store", self.values)):
            store = source.new_empty(*source.shape[:2], other.held + room, source.shape[-1])
            if index is None:
                store[:, :, : other.held] = source
            else:
                where = index[None, :, :, None].expand(1, -1, -1, source.shape[-1])
                torch.gather(source, 2, where, out=store[:, :, : other.held])
            setattr(other, name, store)
        if index is None:
            other.holes, other._kept_positions = self.holes, self._kept_positions
        else:
            other.holes, other._kept_positions = holes, self.positions().gather(1, index)
        other._expose()
        return other

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens seen.

        Raises:
            UsageError: they reach back to before the last eviction, whose tokens cannot be told apart any more.
        """
        count = -tokens_to_remove
        if count < 0:
            count = self.seen - tokens_to_remove
        kept = 0 if self._kept_positions is None else self._kept_positions.shape[1]
        if count > self.held - kept:
            raise UsageError("a selective cache cannot go back to before its last eviction; start from the context")
        self.held, self.seen = self.held - count, self.seen - count
        if self.is_initialized:
            self._expose()

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """(held + query_length, seen - held)."""
        return self.held + query_count(query_length), self.seen - self.held

    def get_seq_length(self) -> int:
        """Tokens *seen*, from which the model numbers the next ones."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.room)  # type: ignore[misc]

    def bytes(self) -> int:
        """Bytes of the tensors that hold keys and values, spare room included."""
        stores = (self._key_store, self._value_store)
        return sum(s.numel() * s.element_size() for s in stores if s is not None)

    def spare_bytes(self) -> int:
        """Bytes of room that no entry fills yet, which `bytes` counts."""
        stores = [s for s in (self._key_store, self._value_store) if s is not None]
        return sum((s.shape[-2] - self.held) * s.element_size() * (s.numel() // s.shape[-2]) for s in stores)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: beams would need one selection each."""
        raise UsageError("beam search is not supported with a selective cache; use greedy search or sampling")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused unless it changes nothing."""
        if repeats != 1:
            raise UsageError("a selective cache holds one sequence; generate the sequences one by one")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused: there is one sequence."""
        raise UsageError("a selective cache holds one sequence; contrastive search is not supported")


class MaskedLayer(SelectiveLayer):
    """Holds everything and hides the entries of `hidden` from tokens at or after `after`: removal done by masking.

    The second way to ablate, against which physical removal is checked.
    """

    hidden: Tensor
    after: int

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Causal, less what is hidden: (1, kv_heads, q, held)."""
        device = self.keys.device
        visible = causal_tail(query_length, self.held, device).repeat(self.hidden.shape[0], 1, 1)
        late = torch.arange(self.seen - query_length, self.seen, device=device) >= self.after
        width = min(self.hidden.shape[1], self.held)
        visible[:, :, :width] &= ~(self.hidden[:, None, :width].to(device) & late[None, :, None])
        return True, visible[None]


def indices(keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Indices of the entries kept per head, ascending, padded in front to one length; and which of them are padding.

    Args:
        keep: (kv_heads, tokens) bool.

    Returns:
        ((kv_heads, kept) int64, (kv_heads, kept) bool or None where no head needed padding).
    """
    counts = keep.sum(-1)
    longest = int(counts.max())
    order = torch.argsort(keep.to(torch.int8), dim=-1, stable=True)[:, keep.shape[1] - longest :]
    if bool((counts == longest).all()):
        return order, None
    holes = torch.arange(longest, device=keep.device)[None] < (longest - counts)[:, None]
    return order.masked_fill(holes, 0), holes
