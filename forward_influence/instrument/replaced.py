"""Other values in the place of some entries' values, while their keys stay: in a branch, or by masks in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.layer_kinds import SharingLayer
from forward_influence.instrument.selective_layer import SelectiveLayer


def replace_values(cache: SelectiveCache, where: Tensor, fills: Sequence[Tensor]) -> SelectiveCache:
    """Put other values in the place of some entries' values of a branch that holds everything; changes it in place.

    Args:
        where: (layers, kv_heads, held) bool over `cache.full_layers()`.
        fills: per full layer the value that entries of each head get, (kv_heads, d_v).
    """
    for index, gone, fill in zip(cache.full_layers(), where, fills, strict=True):
        values = cache.layers[index].values
        assert values is not None
        values[0] = _replaced(values[0], gone, fill)
    return cache


def _replaced(values: Tensor, gone: Tensor, fill: Tensor) -> Tensor:
    """Values (kv_heads, held, d_v) with `fill` (kv_heads, d_v) where `gone` (kv_heads, held) says so."""
    # a selection is made on one device, a model may be spread over several
    return torch.where(gone.to(values.device)[..., None], fill.to(values.device, values.dtype)[:, None], values)


class ReplacingLayer(SelectiveLayer):
    """Holds everything twice: tokens at or after `after` see the second copy, where entries have other values.

    The second way to replace values, against which the first is checked. All tokens go through in one pass, nothing
    that was written changes, and masks alone tell who sees what.
    """

    hidden: Tensor
    fill: Tensor
    after: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[what came | the same with the values of `hidden` (kv_heads, n) replaced by `fill` (kv_heads, d_v)]."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        width = min(self.hidden.shape[1], keys.shape[2])
        replaced = values[0].clone()
        replaced[:, :width] = _replaced(replaced[:, :width], self.hidden[:, :width], self.fill)
        return torch.cat([keys, keys], dim=2), torch.cat([values, replaced[None]], dim=2)

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Causal within one of the copies, (1, 1, q, 2 held)."""
        device = self.keys.device
        visible = causal_tail(query_length, self.held, device)
        late = (torch.arange(self.seen - query_length, self.seen, device=device) >= self.after)[:, None]
        return True, torch.cat([visible & ~late, visible & late], dim=1)[None, None]


def replacing(
    config: PreTrainedConfig, span: int | None, hidden: Iterable[Tensor], fills: Iterable[Tensor], after: int
) -> SelectiveCache:
    """An empty cache whose full layers show other values of `hidden` (kv_heads, tokens) to tokens from `after` on.

    Args:
        fills: per full layer the value of each head that they show instead, (kv_heads, d_v).

    Raises:
        UsageError: layers hold more than entries, or read another layer's.
    """
    cache = SelectiveCache(config, span=span, room=span or 0)
    if any(type(cache.layers[i]) is not SelectiveLayer for i in cache.full_layers()) or any(
        isinstance(layer, SharingLayer) for layer in cache.layers
    ):
        raise UsageError(
            "replaced values cannot be checked a second way in this model, whose layers share entries or hold more "
            "than these; leave out `verify`, or measure ablation 'remove'"
        )
    for i, entries, fill in zip(cache.full_layers(), hidden, fills, strict=True):
        layer = ReplacingLayer(span or 0)
        layer.hidden, layer.fill, layer.after = entries, fill, after
        cache.layers[i] = layer
    return cache
