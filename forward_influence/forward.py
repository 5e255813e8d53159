"""Running tokens through an instrumented model, to last hidden states."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.backbone import backbone
from forward_influence.instrument import Instrument


def forward_hidden(
    model: PreTrainedModel, tokens: Tensor, instrument: Instrument, positions: Tensor | None = None
) -> Tensor:
    """Last hidden states (q, hidden) of tokens (q,) that follow what the instrument's cache has seen.

    Args:
        positions: (q,) their positions, where they do not simply follow.
    """
    extra = {} if positions is None else {"position_ids": positions[None]}
    output = backbone(model)(tokens[None], past_key_values=instrument.cache, use_cache=True, **extra)
    return output[0][0]


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
