"""Gradients of the divergence itself while the gates of all candidates close together: influence of any set, estimated.

Gates as in `gradients.py`. With the gates of all candidates at the same value c, q^c the predictions, p the full
cache's: K(c) = sum_{t in zone} KL(p_t || q_t^c) rises from 0 at c = 1 to the influence of removing all candidates at
c = 0, and the gradient says which entry adds how much on the way:

    a_j = mean over gates c of -dK/dc_j;        influence of a set S, summed over the zone, is about sum_{j in S} a_j

With gates in the middles of equal steps from 1 to 0, the sum over all candidates tends to the influence of removing
them all (the fundamental theorem of calculus; Aumann and Shapley's values). For a set the way is another one: the other
candidates, which stay in truth, are half closed too. That is meant: an entry whose loss the others make up for at c = 1
shows only when they are weaker, which is why the local estimate at 1 misjudges whole selections (docs/oracle.md).

There are no labels to draw, so that nothing is random.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forward_influence.attribution.gate_gradients import (
    GRADIENT_CHUNK,
    HEAD_BLOCK,
    WAITING_BYTES,
    Task,
    backward_passes,
    full_run,
    gated_cache,
)
from forward_influence.instrument.forward import forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.lm_head import Head
from forward_influence.instrument.replay import Entries, Queries
from forward_influence.models.loading import Model
from forward_influence.tracing.trace import Trace
from forward_influence.utils.progress import Progress, Silent


def gate_values(count: int) -> list[float]:
    """The middles of `count` equal steps from 1 to 0: 0.5; 0.75, 0.25; ..."""
    return [1 - (k + 0.5) / count for k in range(count)]


def closing_gradients(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    bins: Mapping[str, tuple[int, int]],
    gates: int = 1,
    *,
    chunk: int = GRADIENT_CHUNK,
    waiting_bytes: int = WAITING_BYTES,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """What each entry adds to each bin's summed divergence at each gate value, -dK/dc_j in nats.

    Args:
        continuation: (m,) token ids.
        bins: name -> (first, behind the last) distance.
        gates: how many values of the candidates' gates; each costs a forward pass over the continuation and a backward
            pass up to each bin's end.
        chunk: tokens per backward pass; memory grows with it, results do not change.
        waiting_bytes: for gradients that wait, on top.

    Returns:
        Name -> (gates, L, H, n), in the model's dtype, at least float32.
    """
    progress = progress or Silent()
    continuation = continuation.to(model.device)
    hidden, later = full_run(model, trace, continuation, chunk)
    progress.advance(len(continuation), "full cache")

    def upper(states: Tensor, rows: slice, numbers: list[int]) -> Tensor:
        return divergence_gradients(model.anatomy.head, hidden[rows], states)[None]

    tasks = [Task(name, *bins[name]) for name in bins]
    found: dict[str, list[Tensor]] = {name: [] for name in bins}
    for gate in gate_values(gates):
        _run_gated(model, trace, continuation, later, gate, chunk)
        progress.advance(len(continuation), "gates half closed")
        passes = backward_passes(model, trace, continuation, later, tasks, upper, gate, chunk, waiting_bytes, progress)
        for task, one in zip(tasks, passes, strict=True):
            found[task.bin].append(-one)
    return {name: torch.stack(some) for name, some in found.items()}


def _run_gated(model: Model, trace: Trace, continuation: Tensor, later: Entries, gate: float, chunk: int) -> None:
    """Run the continuation with the candidates' gates at `gate`; its keys and values take the place of `later`'s."""
    with torch.no_grad():
        for distances in torch.arange(len(continuation), device=continuation.device).split(chunk):
            queries = Queries(trace.n, distances, together=True)
            cache, _ = gated_cache(trace, later, queries, gate)
            with Instrument(model.model, cache=cache, span=trace.span) as instrument:
                forward_hidden(model.model, continuation[distances], instrument, queries.positions)
            for layer, entries in zip(cache.layers, later, strict=True):
                for new, kept in zip(layer.own, entries, strict=True):  # type: ignore[attr-defined]
                    kept[:, :, distances] = new


def divergence_gradients(head: Head, full: Tensor, hidden: Tensor) -> Tensor:
    """Gradients of KL(p || q) by the last hidden states of q, (rows, hidden).

    Args:
        full, hidden: (rows, hidden) of p and of q.
    """
    parts = []
    for before, after in zip(full.split(HEAD_BLOCK), hidden.split(HEAD_BLOCK), strict=True):
        with torch.enable_grad():
            states = after.detach().requires_grad_()
            p = head(before.detach()).softmax(-1)
            log_q = head(states).log_softmax(-1)
            possible = torch.where(p > 0, log_q, 0)  # a word that does not exist has p = 0 and log q = -inf
            crossed = -(p * possible).sum()  # but for p's entropy, which does not change
            [found] = torch.autograd.grad(crossed, states)
        parts.append(found)
    return torch.cat(parts)
