"""Layers that hold more than entries: states that go on beside them, or the keys by which an indexer picks among them.

Which of transformers' layers becomes which of ours is decided here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from forward_influence.errors import UsageError
from forward_influence.instrument.compat import cache_layer_class
from forward_influence.instrument.selective_layer import MaskedLayer, SelectiveLayer
from forward_influence.instrument.states import carries_state, copy_states, state_bytes

_Stateful: Any = cache_layer_class("LinearAttentionLayer")
_Indexed = cache_layer_class("DynamicIndexedLayer")
#: Holds nothing: its layer does not attend, or attends over what another layer holds.
SharingLayer = cache_layer_class("DummyLayer")

#: The kinds of transformers' layers that are known: keys and values, states, both, index keys beside, or nothing.
KNOWN_KINDS = (
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DynamicIndexedLayer",
    "DummyLayer",
)
#: Those whose tokens can run again over entries that were kept: nothing but keys and values decides what they give.
REPLAYABLE_KINDS = ("DynamicLayer", "DynamicSlidingWindowLayer")


class SelectiveStateLayer(SelectiveLayer, _Stateful):  # type: ignore[misc]
    """A layer that attends and carries states beside: entries are selected from, the states go on as they are."""

    supports_early_init = False

    def __init__(self, room: int = 0, number_of_states: int = 1) -> None:
        SelectiveLayer.__init__(self, room)
        _Stateful.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of the entries where two tensors are given, of a state where names are."""
        (SelectiveLayer if len(args) == 2 else _Stateful).lazy_initialization(self, *args, **kwargs)

    def branch(self, index: Tensor | None, holes: Tensor | None, room: int) -> SelectiveLayer:
        """As a selective layer, with copies of the states."""
        other = super().branch(index, holes, room)
        copy_states(self, other)
        return other

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a state cannot go back."""
        raise UsageError("a layer that carries states cannot take tokens back; start from the context")

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.room, self.number_of_states)  # type: ignore[misc]

    def bytes(self) -> int:
        """Of entries and states."""
        return super().bytes() + state_bytes(self)


class SelectiveIndexedLayer(SelectiveLayer):
    """A layer whose indexer picks among what is held: an entry's index key goes where the entry goes.

    Attributes:
        indexer_keys: (1, held, d); None before the first token, and where another layer's indexer picks.
    """

    def __init__(self, room: int = 0) -> None:
        super().__init__(room)
        self.indexer_keys: Tensor | None = None

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Append (1, q, d) and return all index keys."""
        before = self.indexer_keys
        self.indexer_keys = indexer_key_states if before is None else torch.cat([before, indexer_key_states], dim=1)
        return self.indexer_keys

    def branch(self, index: Tensor | None, holes: Tensor | None, room: int) -> SelectiveLayer:
        """As a selective layer.

        Raises:
            UsageError: heads would hold different tokens, of which each has one index key.
        """
        other = super().branch(index, holes, room)
        assert isinstance(other, SelectiveIndexedLayer)
        keys = self.indexer_keys
        if keys is not None and index is not None:
            if not bool((index == index[:1]).all()):
                raise UsageError("all heads of a layer with an indexer hold the same tokens; choose with per=layer")
            keys = keys[:, index[0].to(keys.device)]
        other.indexer_keys = None if keys is None else keys.clone()
        return other

    def crop(self, tokens_to_remove: int) -> None:
        """As a selective layer, index keys too."""
        super().crop(tokens_to_remove)
        if self.indexer_keys is not None:
            self.indexer_keys = self.indexer_keys[:, : self.held]

    def bytes(self) -> int:
        """Of entries and index keys."""
        keys = self.indexer_keys
        return super().bytes() + (0 if keys is None else keys.numel() * keys.element_size())


class MaskedStateLayer(SelectiveStateLayer):
    """As `MaskedLayer`, of a layer that carries states beside."""

    hidden: Tensor
    after: int
    own_mask = MaskedLayer.own_mask


class MaskedIndexedLayer(SelectiveIndexedLayer):
    """As `MaskedLayer`, of a layer with an indexer."""

    hidden: Tensor
    after: int
    own_mask = MaskedLayer.own_mask


def selective(layer: CacheLayerMixin, room: int = 0) -> SelectiveLayer:
    """The layer of ours that takes the place of one of transformers' that holds an entry per token."""
    if carries_state(layer):
        return SelectiveStateLayer(room, layer.number_of_states)  # type: ignore[attr-defined]
    return SelectiveIndexedLayer(room) if isinstance(layer, _Indexed) else SelectiveLayer(room)


def masking(layer: SelectiveLayer, room: int, hidden: Tensor, after: int) -> SelectiveLayer:
    """An empty layer like `layer` that hides the entries of `hidden` (kv_heads, tokens) from tokens at or after
    `after`."""
    found: Any
    if isinstance(layer, SelectiveStateLayer):
        found = MaskedStateLayer(room, layer.number_of_states)
    else:
        found = (MaskedIndexedLayer if isinstance(layer, SelectiveIndexedLayer) else MaskedLayer)(room)
    found.hidden, found.after = hidden, after
    return found  # type: ignore[no-any-return]


def holds_entries(layer: object) -> bool:
    """Whether a layer of a cache holds keys and values of single tokens."""
    return isinstance(layer, CacheLayerMixin)


def cache_bytes(layer: Any) -> int:
    """Bytes that one layer of a cache holds, states included."""
    if isinstance(layer, SelectiveLayer):
        return layer.bytes()
    held = [t for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if t is not None]
    return sum(t.numel() * t.element_size() for t in held) + state_bytes(layer)


def goes_on(layer: Any) -> Any:
    """A copy of a layer of transformers' own that can go on without changing the original: sliding ones replace their
    tensors, states are written in place."""
    copy = object.__new__(type(layer))
    copy.__dict__.update(layer.__dict__)
    if carries_state(layer):
        copy_states(layer, copy)
    return copy
