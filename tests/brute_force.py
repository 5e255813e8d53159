"""The judge: one full float64 pass with an attention of its own, masks written out, logits whole, KL by definition.

Nothing is cached. Removal is a mask in the layers that attend; states of state-space, linear-attention and convolution
layers are what the whole text makes of them. A layer that reads another layer's keys sees what that layer sees, and an
indexer picks among what its own layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

#: (layer, head of keys, length) -> (length, length) bool: which keys a query may see; None for all.
Visible = Callable[[int, int, int], Tensor | None]

_state: dict[str, Any] = {"visible": None, "inputs": None, "blocks": None, "change": None}


def _layer(module: Any) -> int:
    """Which layer attends; blocks of weights that several layers share do not know, and run in order."""
    index: int | None = module.layer_idx
    return next(_state["blocks"]) if index is None or index < 0 else index


def _naive(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    layer = _layer(module)
    length = query.shape[2]
    group = query.shape[1] // key.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if attention_mask is not None:
        given = attention_mask[0, 0, :, :length]  # before 5.2 some models make it a column too wide, and in numbers
        allowed = allowed & (given if given.dtype is torch.bool else given == 0)
    if indices is not None:  # what an indexer picked
        allowed = allowed & torch.zeros_like(allowed).scatter(-1, indices[0].long(), True)
    outputs = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    for head in range(query.shape[1]):
        kv = head // group
        logits = query[0, head] @ key[0, kv].T * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        visible = _visible(layer, kv, length)
        hidden = torch.zeros_like(allowed) if visible is None else ~visible
        seen = value[0, kv].expand(length, *value.shape[2:]).clone() if _state["change"] else None
        if seen is None:
            logits = logits.masked_fill(~(allowed & ~hidden), float("-inf"))
        else:  # seen with other values
            logits = logits.masked_fill(~allowed, float("-inf"))
            seen[hidden] = _state["change"](value[0, kv])
        if s_aux is not None:
            logits = torch.cat([logits, s_aux[head].expand(length, 1).to(logits.dtype)], dim=1)
        weights = torch.softmax(logits, dim=-1)[:, :length]
        if _state["inputs"] is not None:
            _state["inputs"].setdefault(layer, {})[head] = (weights, query[0, head], key[0, kv])
        if seen is None:
            outputs[0, head] = weights @ value[0, kv]
        else:  # each query with values of its own
            outputs[0, head] = (weights[:, :, None] * seen).sum(1)
    return outputs.transpose(1, 2).contiguous(), None


def _visible(layer: int, kv: int, length: int) -> Tensor | None:
    return None if _state["visible"] is None else _state["visible"](layer, kv, length)


def without(removed: dict[int, Tensor], after: int) -> Visible:
    """Queries from `after` on do not see `removed`, layer -> (kv_heads, n) bool; one row holds for all heads."""

    def visible(layer: int, kv: int, length: int) -> Tensor | None:
        if layer not in removed:
            return None
        gone = removed[layer][min(kv, len(removed[layer]) - 1)]
        seen = torch.ones(length, length, dtype=torch.bool)
        seen[after:, : len(gone)] &= ~gone
        return seen

    return visible


def readers(config: Any) -> dict[int, int]:
    """Layers that read another layer's keys -> that layer: the last of the same kind that has keys of its own."""
    layers, shared = config.num_hidden_layers, getattr(config, "num_kv_shared_layers", 0) or 0
    if shared in (0, layers):
        return {}
    kinds, own = config.layer_types, layers - shared
    return {i: max(j for j in range(own) if kinds[j] == kinds[i]) for i in range(own, layers)}


@contextmanager
def _indexers(model: PreTrainedModel) -> Iterator[None]:
    """Give every indexer the mask of its own layer, from which it picks."""

    def give(module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        mask = named["attention_mask"]
        visible = _visible(module.layer_idx, 0, mask.shape[-1])
        return inputs, {**named, "attention_mask": mask if visible is None else mask & visible}

    modules = [module for module in model.modules() if getattr(module, "indexer", None) is not None]
    handles = [module.register_forward_pre_hook(give, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of_full_pass(
    model: PreTrainedModel,
    tokens: Tensor,
    removed: dict[int, Tensor] | None = None,
    after: int = 0,
    inputs: dict[int, Any] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    visible: Visible | None = None,
    **extra: Any,
) -> Any:
    """The model's output on all tokens at once, no cache; tokens from `after` on do not see `removed`.

    Args:
        removed: layer -> (kv_heads, n) bool.
        change: they do see `removed`, but with another value: what this makes of a head's values (length, d_v).
        inputs: filled with layer -> head -> (attention weights, queries, keys).
        visible: instead of `removed`, what each query sees.
    """
    config = model.config.get_text_config(decoder=True)
    sources = readers(config)
    asked = without(removed, after) if removed is not None else visible
    found = None if asked is None else lambda layer, kv, length: asked(sources.get(layer, layer), kv, length)
    blocks = [i for i, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind == "hybrid"]
    AttentionInterface.register("naive_reference", _naive)
    AttentionMaskInterface.register("naive_reference", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("naive_reference")
    _state.update(visible=found, inputs=inputs, blocks=iter(blocks), change=change)
    try:
        with torch.no_grad(), _indexers(model):
            return model(tokens[None], use_cache=False, **extra)
    finally:
        _state.update(visible=None, inputs=None, blocks=None, change=None)
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
