"""Closing the gaps that removal leaves: what is kept moves up to the continuation, in its order.

Rotary attention depends on differences of positions alone, so that moving the kept keys to the positions right before
the continuation is what numbering positions inside the cache does (StreamingLLM, arXiv:2309.17453), layer by layer and
head by head, and the continuation's own positions stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


def close_gaps(cache: SelectiveCache, trace: Trace) -> SelectiveCache:
    """Move the keys that a branch of the trace's cache holds to the positions n - held ... n - 1; changes it in place.

    Raises:
        UsageError: the trace was recorded without its rotation.
    """
    if trace.rotation is None:
        raise UsageError("keys cannot be moved: the context was recorded without its rotation (record(rotation=True))")
    for index in trace.layers:
        layer = cache.layers[index]
        assert isinstance(layer, SelectiveLayer) and layer.keys is not None
        before = layer.positions()
        after = torch.arange(trace.n - before.shape[1], trace.n, device=before.device).expand_as(before)
        layer.keys.copy_(moved(trace.rotation, index, layer.keys[0], before.clamp_min(0), after)[None])
    return cache


def moved(rotation: Rotation, layer: int, keys: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Keys (kv_heads, k, d) that were rotated to positions `before` (kv_heads, k), rotated to `after` instead."""
    flat = at_least_float32(keys).reshape(1, -1, keys.shape[-1])
    plain = rotation.at(layer, before.reshape(-1), flat).undo(flat)
    return rotation.at(layer, after.reshape(-1), flat).apply(plain).reshape(keys.shape).to(keys.dtype)
