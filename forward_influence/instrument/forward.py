"""Running tokens through an instrumented model, to last hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.compat import named_cache
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.steps import steps_of


def run(module: nn.Module, tokens: Tensor, cache: Cache | None, **others: Any) -> Any:
    """Run tokens (batch, q) through a model or its decoder over a cache, whatever it calls that argument.

    In one pass: who has more tokens than may come at once cuts them first (`parts`).
    """
    if cache is not None and "position_ids" not in others:
        others |= steps_of(module).positions(tokens.shape[1], cache.get_seq_length(), tokens.device)
    return module(tokens, use_cache=True, **named_cache(module, cache), **others)


def parts(module: nn.Module, tokens: Tensor, cache: Cache | None, chunk: int) -> tuple[Tensor, ...]:
    """Tokens (..., q) that follow what a cache has seen, cut to what may go through a model or its decoder at once.

    Args:
        chunk: tokens per pass, about.
    """
    seen = 0 if cache is None else cache.get_seq_length()
    return tokens.split(steps_of(module).lengths(tokens.shape[-1], seen, chunk), dim=-1)


@lru_cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def next_logits(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> Tensor:
    """The model's own logits after tokens (batch, q) over a cache, (batch, vocabulary).

    In the dtype in which the model makes them, so that the most likely token is the one that `generate` takes.
    """
    last = {"logits_to_keep": 1} if _keeps_logits(type(model).forward) else {}
    logits = tokens.new_empty(0)
    for part in parts(model, tokens, cache, tokens.shape[1]):
        logits = run(model, part, cache, return_dict=True, **last).logits[:, -1]
    return logits


def forward_hidden(
    model: PreTrainedModel, tokens: Tensor, instrument: Instrument, positions: Tensor | None = None
) -> Tensor:
    """Last hidden states (q, hidden) of tokens (q,) that follow what the instrument's cache has seen.

    Args:
        positions: (q,) their positions, where they do not simply follow.
    """
    extra = {} if positions is None else {"position_ids": positions[None]}
    hidden: Tensor = run(backbone(model), tokens[None], instrument.cache, **extra)[0][0]
    return hidden


def continuation_hidden(
    model: PreTrainedModel, tokens: Tensor, instrument: Instrument, chunk: int, out: Tensor | None = None
) -> Tensor:
    """Last hidden states (m, hidden) of a continuation (m,), in chunks; written into `out` where given."""
    done = 0
    for part in parts(model, tokens, instrument.cache, chunk):
        hidden = forward_hidden(model, part, instrument)
        if out is None:
            out = torch.empty(len(tokens), hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        out[done : done + len(part)] = hidden
        done += len(part)
    assert out is not None
    return out
