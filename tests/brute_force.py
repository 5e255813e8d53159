"""The judge: one full float64 pass with an attention of its own, masks written out, logits whole, KL by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

_state: dict[str, Any] = {"removed": None, "after": 0, "inputs": None, "change": None}


def _naive(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    length = query.shape[2]
    group = query.shape[1] // key.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if attention_mask is not None:
        given = attention_mask[0, 0, :, :length]  # before 5.2 some models make it a column too wide, and in numbers
        allowed = allowed & (given if given.dtype is torch.bool else given == 0)
    outputs = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    removed = _state["removed"]
    for head in range(query.shape[1]):
        kv = head // group
        logits = query[0, head] @ key[0, kv].T * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        visible = allowed.clone()
        seen = value[0, kv].expand(length, *value.shape[2:]).clone() if _state["change"] else None
        if removed is not None and module.layer_idx in removed:
            gone = removed[module.layer_idx][kv]
            if seen is None:
                visible[_state["after"] :, : len(gone)] &= ~gone
            else:
                seen[_state["after"] :, : len(gone)][:, gone] = _state["change"](value[0, kv])
        logits = logits.masked_fill(~visible, float("-inf"))
        if s_aux is not None:
            logits = torch.cat([logits, s_aux[head].expand(length, 1).to(logits.dtype)], dim=1)
        weights = torch.softmax(logits, dim=-1)[:, :length]
        if _state["inputs"] is not None:
            _state["inputs"].setdefault(module.layer_idx, {})[head] = (weights, query[0, head], key[0, kv])
        if seen is None:
            outputs[0, head] = weights @ value[0, kv]
        else:  # each query with values of its own
            outputs[0, head] = (weights[:, :, None] * seen).sum(1)
    return outputs.transpose(1, 2).contiguous(), None


def logits_of_full_pass(
    model: PreTrainedModel,
    tokens: Tensor,
    removed: dict[int, Tensor] | None = None,
    after: int = 0,
    inputs: dict[int, Any] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    **extra: Any,
) -> Any:
    """The model's output on all tokens at once, no cache; tokens from `after` on do not see `removed`.

    Args:
        removed: layer -> (kv_heads, n) bool.
        change: they do see `removed`, but with another value: what this makes of a head's values (length, d_v).
        inputs: filled with layer -> head -> (attention weights, queries, keys).
    """
    AttentionInterface.register("naive_reference", _naive)
    AttentionMaskInterface.register("naive_reference", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("naive_reference")
    _state.update(removed=removed, after=after, inputs=inputs, change=change)
    try:
        with torch.no_grad():
            return model(tokens[None], use_cache=False, **extra)
    finally:
        _state.update(removed=None, after=0, inputs=None, change=None)
        model.set_attn_implementation(before)


def kl_by_definition(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """sum_v p (log p - log q) in float64, (rows,)."""
    log_p, log_q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def influence(
    model: PreTrainedModel,
    tokens: Tensor,
    n: int,
    removed: dict[int, Tensor],
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, nll_delta, top1_changed) of the continuation tokens[n:], by two full passes."""
    p = logits_of_full_pass(model, tokens).logits[0, n:]
    q = logits_of_full_pass(model, tokens, removed, after=n, change=change).logits[0, n:]
    following = tokens[n + 1 :]
    index = torch.arange(len(following))
    nll_delta = p.log_softmax(-1)[index, following] - q.log_softmax(-1)[index, following]
    return kl_by_definition(p, q), nll_delta, p.argmax(-1) != q.argmax(-1)
