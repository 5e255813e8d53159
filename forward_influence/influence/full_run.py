"""A recorded context with the tokens that follow it, and their run under the full cache, the baseline of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.replay import Entries, continuation_entries, noting
from forward_influence.models.loading import Model
from forward_influence.tracing.trace import Trace


@dataclass(frozen=True)
class Continuation:
    """What runs once in full and once per ablation.

    Attributes:
        model, trace: the model and its context.
        tokens: (m,) ids that follow the context, on the model's device.
        chunk: tokens per forward pass.
        entries: the full run's keys and values per layer, for ablations that replay them; else empty.
    """

    model: Model
    trace: Trace
    tokens: Tensor
    chunk: int
    entries: Entries = ()


@dataclass(frozen=True)
class Baseline:
    """The continuation's run under the full cache.

    Attributes:
        hidden: its last hidden states, (m, hidden).
        entries: its keys and values per layer, where they are kept for what replays them; else empty.
    """

    hidden: Tensor
    entries: Entries = ()


def run_in_full(model: Model, trace: Trace, continuation: Tensor, chunk: int, keeps: bool) -> Baseline:
    """Run a continuation (m,) under the whole cache.

    Args:
        keeps: whether its keys and values will be replayed, as far as this model's can be.
    """
    keeps = keeps and model.anatomy.replayable
    continuation = continuation.to(model.device)
    m = len(continuation)
    cache = trace.cache.branch(None, m)
    if keeps:
        cache = noting(cache, model.model.config)
    with torch.no_grad(), Instrument(model.model, cache=cache, span=trace.span) as instrument:
        hidden = continuation_hidden(model.model, continuation, instrument, chunk)
    return Baseline(hidden, continuation_entries(cache, m) if keeps else ())
