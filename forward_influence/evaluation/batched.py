"""Several compressed caches of one context in one batch: they have seen the same tokens and hold different ones.

A small model spends most of its time reading its own weights (or launching kernels), so that answering from twenty
caches at once costs little more than answering from one. The model is unmodified: a batched layer reports what it has
seen as its length, like a single one, and brings a mask of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import next_logits
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.models.loading import Model
from forward_influence.tracing.trace import Trace

#: Bytes of keys and values in one batch; more caches go in several.
BATCH_BYTES = 1 << 32


class StreamsLayer(SelectiveLayer):
    """One layer's keys and values of several sequences, shorter ones padded in front; see `stack`."""

    _visible: Tensor

    @classmethod
    def stack(cls, layers: Sequence[SelectiveLayer], room: int) -> StreamsLayer:
        """Layers of caches that have seen the same number of tokens, as one.

        Raises:
            UsageError: they have seen different numbers of tokens.
        """
        if len({layer.seen for layer in layers}) != 1 or layers[0].keys is None:
            raise UsageError("only caches that have seen the same context can be run side by side")
        keys = [layer.keys for layer in layers if layer.keys is not None]
        values = [layer.values for layer in layers if layer.values is not None]
        held = max(layer.held for layer in layers)
        other = cls()
        other.dtype, other.device, other.is_initialized = keys[0].dtype, keys[0].device, True
        other.seen, other.held = layers[0].seen, held
        other._key_store, other._value_store = _padded(keys, held, room), _padded(values, held, room)
        visible = torch.ones(len(layers), keys[0].shape[1], 1, held + room, dtype=torch.bool, device=other.device)
        for row, layer in zip(visible, layers, strict=True):
            row[:, :, : held - layer.held] = False
            if layer.holes is not None:
                start = held - layer.held
                row[:, 0, start : start + layer.holes.shape[1]] = ~layer.holes
        other._visible = visible
        other._expose()
        return other

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (streams, kv_heads, q, d) and return all that is held."""
        assert self._key_store is not None and self._value_store is not None
        end = self.held + key_states.shape[-2]
        if end > self._key_store.shape[-2]:
            raise UsageError("more tokens than there is room for; stack the caches with more room")
        self._key_store[:, :, self.held : end] = key_states
        self._value_store[:, :, self.held : end] = value_states
        self.held, self.seen = end, self.seen + key_states.shape[-2]
        self._expose()
        return self.keys, self.values

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Always its own: bool (streams, kv_heads, q, held)."""
        visible = self._visible[..., : self.held]
        if query_length > 1:
            visible = visible & causal_tail(query_length, self.held, visible.device)
        return True, visible

    def branch(self, index: Tensor | None, holes: Tensor | None, room: int) -> SelectiveLayer:
        """Refused: selections are made before caches are stacked."""
        raise UsageError("stacked caches cannot be compressed again; compress them one by one")


def _padded(tensors: Sequence[Tensor], held: int, room: int) -> Tensor:
    """(1, kv_heads, held_i, d) each, as (streams, kv_heads, held + room, d) with zeros in front of the shorter ones."""
    first = tensors[0]
    store = first.new_zeros(len(tensors), first.shape[1], held + room, first.shape[-1])
    for row, tensor in zip(store, tensors, strict=True):
        row[:, held - tensor.shape[2] : held] = tensor[0]
    return store


def stack(caches: Sequence[SelectiveCache], room: int) -> SelectiveCache:
    """Caches of one context as one cache for a batch, with room for `room` more tokens each.

    Layers with a sliding window hold the same for all; they are repeated.
    """
    layers: list[Any] = []
    for column in zip(*(cache.layers for cache in caches), strict=True):
        if isinstance(column[0], SelectiveLayer):
            layers.append(StreamsLayer.stack([layer for layer in column if isinstance(layer, SelectiveLayer)], room))
        else:
            column[0].batch_repeat_interleave(len(caches))
            layers.append(column[0])
    return SelectiveCache.of_layers(layers)


def can_stack(trace: Trace) -> bool:
    """Whether this model's attention takes a batch: soft-capping, attention sinks and states go one by one."""
    plain = all(type(layer) in (SelectiveLayer, DynamicSlidingWindowLayer) for layer in trace.cache.layers)
    return plain and all(g.softcap is None and g.sinks is None for g in trace.geometry)


def grouped(sizes: Sequence[int], limit: int = BATCH_BYTES) -> Iterator[list[int]]:
    """Indices in groups whose largest size times their number stays within `limit` bytes; a group has at least one."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    group: list[int] = []
    for i in order:
        if group and sizes[i] * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def greedy(
    model: Model,
    caches: Sequence[SelectiveCache],
    question: Tensor,
    limit: int,
    finished: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Greedy continuations from several caches of one context, in one batch: the most likely token of the model's own
    logits each time, whatever generation settings its checkpoint brings.

    Args:
        caches: have seen the same context; they are used up.
        question: (q,) tokens that every stream reads first, at least one.
        limit: most tokens of an answer.
        finished: whether an answer (token ids so far) is complete; what follows then is not returned.

    Returns:
        Token ids per cache, the one that completed the answer included.
    """
    question = question.to(model.device)
    answers: list[list[int]] = [[] for _ in caches]
    over = [False] * len(caches)
    cache = stack(caches, len(question) + limit)
    span = cache.get_seq_length() + len(question) + limit
    with torch.no_grad(), Instrument(model.model, cache=cache, span=span):
        tokens = question.expand(len(caches), -1)
        for step in range(limit):
            best = next_logits(model.model, tokens, cache).argmax(-1)
            for stream, token in enumerate(best.tolist()):
                if not over[stream]:
                    answers[stream].append(token)
                    over[stream] = finished(answers[stream])
            if all(over) or step == limit - 1:
                break
            tokens = best[:, None]
    return answers
