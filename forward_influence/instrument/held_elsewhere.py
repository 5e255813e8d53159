"""Whose entries a layer attends over, and which of them: where another layer holds them, or an indexer picks some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forward_influence.instrument.attention import causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.layer_kinds import SharingLayer
from forward_influence.instrument.selective_layer import SelectiveLayer


def attending_layer(module: nn.Module, cache: SelectiveCache | None) -> int | None:
    """The index of the layer that attends; None where it cannot be told.

    Zamba's attention modules serve several layers and have no index, or -1: it is the one whose cache was appended to.
    """
    if not hasattr(module, "layer_idx"):
        return None
    index = module.layer_idx
    if isinstance(index, int) and index >= 0:
        return index
    return None if cache is None else cache.updated


def holding_layer(cache: SelectiveCache, index: int, key: Tensor) -> Any:
    """The layer of a cache that holds the keys (1, kv_heads, k, d) over which a layer attends.

    Where that layer's own holds nothing, it is the layer that gave these very keys; None where a window did, whose mask
    is the model's.
    """
    layer = cache.layers[index]
    if not isinstance(layer, SharingLayer):
        return layer
    full = [one for one in cache.layers if isinstance(one, SelectiveLayer) and one.keys is not None]
    alike = [one for one in full if one.keys.shape == key.shape]  # type: ignore[union-attr]
    for one in alike:
        if one.keys.data_ptr() == key.data_ptr():  # type: ignore[union-attr]
            return one
    # a model that is spread over devices copies them
    return next((one for one in alike if torch.equal(one.keys.to(key.device), key)), None)  # type: ignore[union-attr]


def has_indexer(module: nn.Module) -> bool:
    """Whether an attention module attends to what an indexer picked, its own or that of a layer before it."""
    picks = getattr(module, "indexer", None) is not None or getattr(module, "skip_topk", False)
    return picks and isinstance(getattr(module, "layer_idx", None), int)


def with_picked(
    indices: Tensor, mask: Tensor | None, cache: SelectiveCache | None, layer: Any, length: int, held: int
) -> Tensor:
    """A mask that leaves only the keys that an indexer picked, bool (1, 1, q, held).

    Args:
        indices: (1, q, picked) into what the picking layer holds.
        mask: bool, of what is visible otherwise; None for all before, or at, each query.
        layer: that attends; it may hold other tokens than the one that picked.
        length: queries.
        held: keys.
    """
    if mask is None:
        mask = causal_tail(length, held, indices.device)[None, None]
    source = None if cache is None or cache.picking is None else cache.layers[cache.picking]
    if source is layer or not isinstance(layer, SelectiveLayer) or not isinstance(source, SelectiveLayer):
        picked = torch.zeros(*indices.shape[:2], held, dtype=torch.bool, device=indices.device)
        return mask & picked.scatter_(-1, indices.long(), True)[:, None]
    by_position = torch.zeros(*indices.shape[:2], layer.seen, dtype=torch.bool, device=indices.device)
    by_position.scatter_(-1, source.positions()[0].to(indices.device)[indices.long()], True)
    return mask & by_position[..., layer.positions()[0].to(indices.device)][:, None]
