"""Attention as arithmetic: the probabilities that rules read, and the attending that models do, of one layer.

Queries and keys come after the rotary embedding. Everything a transformers model may pass to its attention is honoured:
scaling, soft-capping, attention sinks, an additive position bias, a boolean or additive mask.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.utils.numerics import at_least_float32

#: Attention scores held at a time where attention received is added up.
SCORE_ELEMENTS = 1 << 22
#: Score elements held at a time on the manual path, which soft-capping and sinks need.
_MANUAL_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Geometry:
    """What a layer's attention logits depend on beside queries and keys.

    Attributes:
        scaling: factor on q.k.
        softcap: logits become softcap * tanh(logits / softcap); None for none.
        sinks: (query_heads,) logits of an extra key without a value (gpt-oss), or None.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None


@lru_cache(maxsize=1)  # every layer of a pass asks for the same one
def causal_tail(query_length: int, key_length: int, device: torch.device) -> Tensor:
    """(query_length, key_length) bool: the last `query_length` keys are the queries' own, seen causally; others all."""
    with torch.inference_mode(False):  # kept between calls, so that it must also serve a backward pass
        ones = torch.ones(query_length, key_length, dtype=torch.bool, device=device)
        return ones.tril(key_length - query_length)


def attention_logits(query: Tensor, key: Tensor, geometry: Geometry, out: Tensor | None = None) -> Tensor:
    """Scaled and capped logits, at least float32.

    Args:
        query: (query_heads, q, d).
        key: (kv_heads, k, d); query head h reads kv head h // (query_heads // kv_heads).
        out: (kv_heads, group, q, k) to write into; no gradients then.

    Returns:
        (kv_heads, group, q, k).
    """
    kv_heads, group = key.shape[0], query.shape[0] // key.shape[0]
    grouped = at_least_float32(query).reshape(kv_heads, group, *query.shape[1:])
    logits = torch.matmul(grouped, at_least_float32(key)[:, None].transpose(-1, -2), out=out)
    logits = logits.mul_(geometry.scaling) if not logits.requires_grad else logits * geometry.scaling
    if geometry.softcap is not None:
        logits = geometry.softcap * torch.tanh(logits / geometry.softcap)
    return logits


class ReceivedAttention:
    """Adds up the attention that keys receive from queries, in memory that is taken once: a few rows at a time."""

    def __init__(self) -> None:
        self._store: Tensor | None = None

    def of(self, query: Tensor, key: Tensor, geometry: Geometry, visible: Tensor) -> Tensor:
        """Attention received, summed over queries and averaged over a kv head's query heads, (kv_heads, k).

        Args:
            query: (query_heads, q, d).
            key: (kv_heads, k, d).
            visible: (1 | kv_heads, q, k) bool.
        """
        (heads, length), (kv_heads, count) = query.shape[:2], key.shape[:2]
        total = at_least_float32(key.new_empty(0)).new_zeros(kv_heads, count)
        step = max(1, min(length, SCORE_ELEMENTS // (heads * count)))
        needed = max(SCORE_ELEMENTS if length > 1 else 0, heads * step * count)
        store = self._store
        if store is None or store.shape[1] < needed or (store.dtype, store.device) != (total.dtype, total.device):
            self._store = store = None  # before the new one is taken
            self._store = store = total.new_empty(2, needed)
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            shape = (kv_heads, heads // kv_heads, rows.stop - start, count)
            size = heads * (rows.stop - start) * count
            logits, weights = (half[:size].view(shape) for half in store)
            logits = attention_logits(query[:, rows], key, geometry, out=logits)
            logits.masked_fill_(~visible[:, None, rows], float("-inf"))
            if geometry.sinks is None:
                torch.softmax(logits, -1, out=weights)
            else:
                weights = softmax_with_sinks(logits, geometry.sinks)
            total += weights.sum(2).mean(1)
        return total


def softmax_with_sinks(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last axis of (kv_heads, group, q, k), where each query head's sink takes its share too."""
    if sinks is None:
        return logits.softmax(-1)
    column = sinks.to(logits.dtype).reshape(*logits.shape[:2], 1, 1).expand(*logits.shape[:3], 1)
    return torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1]


def probabilities(query: Tensor, key: Tensor, geometry: Geometry, visible: Tensor | None = None) -> Tensor:
    """Attention probabilities (kv_heads, group, q, k) of queries (query_heads, q, d) over keys (kv_heads, k, d).

    Args:
        visible: bool, broadcastable to (kv_heads, group, q, k); None: the last q keys are the queries' own (causal).
    """
    logits = attention_logits(query, key, geometry)
    if visible is None:
        visible = causal_tail(query.shape[1], key.shape[1], query.device)
    return softmax_with_sinks(logits.masked_fill(~visible, float("-inf")), geometry.sinks)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    geometry: Geometry,
    mask: Tensor | None,
    bias: Tensor | None = None,
    causal: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """Attention output (batch, query_heads, q, d_v).

    Args:
        query: (batch, query_heads, q, d).
        key, value: (batch, kv_heads, k, d), (batch, kv_heads, k, d_v).
        mask: bool (True: visible) or additive, (batch | 1, 1 | kv_heads | query_heads, q, k); None: everything is
            visible, unless `causal`.
        bias: additive position bias, broadcastable to (batch, query_heads, q, k).
        causal: with no mask and as many keys as queries, the ordinary causal pattern.
        gate: (kv_heads | 1, k) added to the logits of each key: the logarithm of a factor on its weight. Gradients
            reach it without a (q, k) matrix being kept, where there is neither soft-capping nor a sink nor a bias.
    """
    if gate is not None and gate.shape[0] != key.shape[1]:  # one latent gives the keys of all heads
        gate = gate.expand(key.shape[1], -1)
    if gate is not None and (geometry.softcap is not None or geometry.sinks is not None or bias is not None):
        spread = gate.repeat_interleave(query.shape[1] // key.shape[1], dim=0)[None, :, None]
        bias, gate = (spread if bias is None else bias + spread), None
    if mask is not None and mask.shape[1] not in (1, query.shape[1]):
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    if geometry.softcap is not None or geometry.sinks is not None:
        return _attend_by_hand(query, key, value, geometry, mask, bias, causal)
    if bias is not None:
        if mask is None and causal:
            mask = causal_tail(query.shape[2], key.shape[2], query.device)[None, None]
        mask = bias if mask is None else _added(bias, mask)
        causal = False
    size = value.shape[-1]
    if gate is not None:
        query, key, value = _with_gate(query, key, value, gate, geometry.scaling)
    group = query.shape[1] // key.shape[1]
    native_groups = group > 1 and (query.device.type == "cpu" or mask is None)
    if group > 1 and not native_groups:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if mask is not None and mask.dtype == torch.bool and query.device.type == "cpu":
        mask = _additive.of(mask, query.dtype)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=geometry.scaling,
        enable_gqa=native_groups,
    )
    return output[..., :size]


def _with_gate(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with channels more, in which the dot product adds the gate; kernels want eights."""
    width = max(query.shape[-1] + 1, value.shape[-1])
    width += -width % 8
    extra = query.new_zeros(*query.shape[:3], width - query.shape[-1])
    extra[..., 0] = 1 / scaling
    channel = F.pad(gate[None, :, :, None].to(key.dtype), (0, width - key.shape[-1] - 1))
    return (
        torch.cat([query, extra], dim=-1),
        torch.cat([key, channel], dim=-1),
        F.pad(value, (0, width - value.shape[-1])),
    )


class _Additive(threading.local):
    """The additive form of the mask seen last. The kernel would convert it anew in every layer."""

    source: Tensor | None = None
    version = 0
    result: Tensor | None = None

    def of(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where a boolean mask is True, -inf elsewhere."""
        last, result = self.source, self.result
        if last is None or result is None or result.dtype != dtype or not self._is(last, mask):
            with torch.inference_mode(False):
                result = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))
            self.source, self.version, self.result = mask, _version(mask), result
        return result

    def _is(self, last: Tensor, mask: Tensor) -> bool:
        """Whether a mask is the one seen last, unchanged; that one is still held, so that its memory is its own."""
        same = last.data_ptr() == mask.data_ptr() and last.shape == mask.shape and last.stride() == mask.stride()
        return same and self.version == _version(mask)


def _version(mask: Tensor) -> int:
    return -1 if mask.is_inference() else mask._version  # changes of what inference makes are not counted


_additive = _Additive()


def _added(bias: Tensor, mask: Tensor) -> Tensor:
    """A bias and a mask as one additive mask in the bias's dtype."""
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _attend_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    geometry: Geometry,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
) -> Tensor:
    """Attention with soft-capping or sinks, which fused kernels lack; blocks of queries bound the memory."""
    if query.shape[0] > 1:
        each = range(query.shape[0])
        given = [(query[i : i + 1], key[i : i + 1], value[i : i + 1], _of_row(mask, i), _of_row(bias, i)) for i in each]
        return torch.cat([_attend_by_hand(q, k, v, geometry, m, b, causal) for q, k, v, m, b in given])
    heads, length = query.shape[1], query.shape[2]
    if mask is None and causal:
        mask = causal_tail(length, key.shape[2], query.device)[None, None]
    block = max(1, _MANUAL_ELEMENTS // (heads * key.shape[2]))
    outputs = []
    for start in range(0, length, block):
        rows = slice(start, start + block)
        logits = attention_logits(query[0, :, rows], key[0], geometry)
        if bias is not None:
            logits = logits + _rows(bias, rows, logits)
        if mask is not None:
            part = _rows(mask, rows, logits)
            logits = logits.masked_fill(~part, float("-inf")) if mask.dtype == torch.bool else logits + part
        weights = softmax_with_sinks(logits, geometry.sinks).to(value.dtype)
        outputs.append((weights @ value[0][:, None]).reshape(heads, -1, value.shape[-1]))
    return torch.cat(outputs, dim=1)[None]


def _of_row(part: Tensor | None, i: int) -> Tensor | None:
    """What one sequence of a batch has of a tensor (batch | 1, ...)."""
    return part if part is None or part.shape[0] == 1 else part[i : i + 1]


def _rows(extra: Tensor, rows: slice, logits: Tensor) -> Tensor:
    """The rows of a (1, 1 | query_heads, 1 | q, k) mask or bias, shaped like (kv_heads, group, q, k) logits."""
    part = extra[0] if extra.shape[2] == 1 else extra[0, :, rows]
    return part[None] if part.shape[0] == 1 else part.reshape(*logits.shape[:2], *part.shape[1:])
