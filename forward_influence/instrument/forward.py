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


def run(module: nn.Module, tokens: Tensor, cache: Cache | None, **others: Any) -> Any:
    """Run tokens (batch, q) through a model or its decoder over a cache, whatever it calls that argument."""
    return module(tokens, use_cache=True, **named_cache(module, cache), **others)


@lru_cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def next_logits(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> Tensor:
    """The model's own logits after tokens (batch, q) over a cache, (batch, vocabulary).

    In the dtype in which the model makes them, so that the most likely token is the one that `generate` takes.
    """
    last = {"logits_to_keep": 1} if _keeps_logits(type(model).forward) else {}
    logits: Tensor = run(model, tokens, cache, return_dict=True, **last).logits[:, -1]
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
    for part in tokens.split(chunk):
        hidden = forward_hidden(model, part, instrument)
        if out is None:
            out = torch.empty(len(tokens), hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        out[done : done + len(part)] = hidden
        done += len(part)
    assert out is not None
    return out
