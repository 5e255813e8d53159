"""Gradients by gates: how a continuation's predictions answer to each entry of the context's cache.

A gate multiplies exp(score) of a (layer, kv head, context token) entry as the continuation sees it: its logarithm is
added to the entry's attention logits, so that the softmax renormalises, as it does when the entry is removed. At 1 it
changes nothing, at 0 the entry is gone.

Here, Fisher gradients at 1: labels y_t are drawn from the model's own p_t. The gradient of sum_{t in zone} log p_t(y_t)
by all gates takes one backward pass, and since score functions at different t are uncorrelated, its outer square is
unbiased for the zone's summed Fisher information: KL of removing a set S, summed over the zone, is about 1/2 mean
(sum_{S} g)^2 over samples, for sets whose removal changes little. `closing.py` has gradients on the way from 1 to 0.

Memory is bounded by a chunk: chunks go backwards from the last, each run again over the whole run's keys and values,
and what reaches earlier keys and values waits there for its chunk. The result is that of one pass over everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import continuation_hidden, forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.lm_head import Head, LinearHead
from forward_influence.instrument.replay import Entries, Queries, ReplayLayer, continuation_entries, noting
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.models.loading import Model
from forward_influence.tracing.trace import Trace
from forward_influence.utils.progress import Progress, Silent

GRADIENT_CHUNK = 256
#: Bytes for gradients that wait at earlier keys and values; more label samples go in several groups.
WAITING_BYTES = 1 << 30
HEAD_BLOCK = 64


class GatedLayer(ReplayLayer):
    """A layer whose context entries have gates, and whose earlier continuation entries take gradients.

    Attributes:
        gate: (kv_heads, held) a leaf, the gates' logarithms; None for sliding layers, which are not ablated.
        leaves: keys and values (1, kv_heads, stop, d) of the earlier continuation.
    """

    gate: Tensor | None
    leaves: tuple[Tensor, Tensor]

    def earlier(self) -> tuple[Tensor, Tensor]:
        """The leaves."""
        return self.leaves

    def gates(self) -> Tensor | None:
        """The gate, and 0 for everything that is not of the context."""
        if self.gate is None:
            return None
        rest = self.length - self.gate.shape[1]
        return torch.cat([self.gate, self.gate.new_zeros(self.gate.shape[0], rest)], dim=1)


@dataclass
class Task:
    """One backward pass.

    Attributes:
        bin: whose sum over positions is differentiated; `low`, `high`: its distances.
        number: of the function of each position that is summed: a label sample, say.
    """

    bin: str
    low: int
    high: int
    number: int = 0


#: Last hidden states (rows, hidden) of some rows of the continuation, and the numbers of functions of a position ->
#: gradients of each by the states, (numbers, rows, hidden).
Upper = Callable[[Tensor, slice, list[int]], Tensor]


def continuation_gradients(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    bins: Mapping[str, tuple[int, int]],
    samples: int,
    seed: int,
    *,
    chunk: int = GRADIENT_CHUNK,
    waiting_bytes: int = WAITING_BYTES,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Gradients of each bin's summed log p_t(y_t) by all gates at 1.

    Args:
        continuation: (m,) token ids.
        bins: name -> (first, behind the last) distance.
        samples: of labels; every one costs a backward pass over the continuation up to a bin's end.
        seed: of the labels.
        chunk: tokens per backward pass; memory grows with it, results do not change.
        waiting_bytes: for gradients that wait, on top.

    Returns:
        Name -> (samples, L, H, n), in the model's dtype, at least float32.
    """
    progress = progress or Silent()
    continuation = continuation.to(model.device)
    hidden, later = full_run(model, trace, continuation, chunk)
    progress.advance(len(continuation), "full cache")
    labels = sampled_labels(model.anatomy.head, hidden, samples, seed)

    def upper(states: Tensor, rows: slice, numbers: list[int]) -> Tensor:
        return head_gradients(model.anatomy.head, states, labels[numbers][:, rows])

    tasks = [Task(name, *bins[name], sample) for sample in range(samples) for name in bins]
    found = backward_passes(model, trace, continuation, later, tasks, upper, 1.0, chunk, waiting_bytes, progress)
    return {name: torch.stack([found[i] for i, t in enumerate(tasks) if t.bin == name]) for name in bins}


def full_run(model: Model, trace: Trace, continuation: Tensor, chunk: int) -> tuple[Tensor, Entries]:
    """The continuation under the whole cache: last hidden states (m, hidden), and its keys and values per layer."""
    m = len(continuation)
    with torch.no_grad(), Instrument(model.model, span=trace.span) as instrument:
        instrument.cache = noting(trace.cache.branch(None, m), model.model.config)
        hidden = continuation_hidden(model.model, continuation, instrument, chunk)
        later = continuation_entries(instrument.cache, m)
        instrument.cache = None
    return hidden, later


def backward_passes(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    later: Entries,
    tasks: Sequence[Task],
    upper: Upper,
    gate: float,
    chunk: int,
    waiting_bytes: int,
    progress: Progress,
) -> list[Tensor]:
    """Each task's gradient by the gates of all entries, (L, H, n), where the candidates' gates are at `gate`.

    Args:
        later: keys and values of the continuation at these gates.
        upper: see `Upper`.
    """
    size = sum(t.numel() * t.element_size() for pair in later for t in pair)
    dtype = torch.float64 if later[0][0].dtype == torch.float64 else torch.float32
    found = [torch.zeros(trace.shape, dtype=dtype, device=model.device) for _ in tasks]
    at_once = max(1, waiting_bytes // max(1, size))
    for start in range(0, len(tasks), at_once):
        some = range(start, min(start + at_once, len(tasks)))
        waiting = {i: [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in later] for i in some}
        end = max(tasks[i].high for i in some)
        for low in reversed(range(0, end, chunk)):
            rows = slice(low, min(low + chunk, end))
            queries = Queries(trace.n, torch.arange(rows.start, rows.stop, device=model.device), together=True)
            cache, gated = gated_cache(trace, later, queries, gate)
            with torch.enable_grad(), Instrument(model.model, cache=cache, span=trace.span) as instrument:
                hidden = forward_hidden(model.model, continuation[rows], instrument, queries.positions)
            numbers = sorted({tasks[i].number for i in some})
            above = dict(zip(numbers, upper(hidden.detach(), rows, numbers), strict=True))
            for i in some:
                if tasks[i].high > rows.start:
                    _backward(tasks[i], cache, gated, hidden, above[tasks[i].number], rows, waiting[i], found[i])
            progress.advance((rows.stop - rows.start) * len(some), "gradients")
    for one in found:
        one[..., trace.first : trace.last] /= gate  # so far by the gate's logarithm
    return found


def sampled_labels(head: Head, hidden: Tensor, samples: int, seed: int) -> Tensor:
    """(samples, m) token ids drawn from the next-token distributions of last hidden states (m, hidden)."""
    generator = torch.Generator(device=hidden.device).manual_seed(seed)
    parts = [
        torch.multinomial(head(rows).softmax(-1), samples, replacement=True, generator=generator)
        for rows in hidden.split(HEAD_BLOCK)
    ]
    return torch.cat(parts).T


def _backward(
    task: Task,
    cache: SelectiveCache,
    gated: list[GatedLayer],
    hidden: Tensor,
    above: Tensor,
    rows: slice,
    waiting: list[tuple[Tensor, Tensor]],
    found: Tensor,
) -> None:
    """Send a task's gradient through a chunk; what reaches earlier keys and values waits, the gates' is added up."""
    own = [t for layer in cache.layers for t in layer.own]  # type: ignore[attr-defined]
    flows = [i for i, t in enumerate(own) if t.requires_grad]
    leaves = [t for layer in cache.layers for t in layer.leaves]  # type: ignore[attr-defined]
    distances = torch.arange(rows.start, rows.stop, device=hidden.device)
    inside = (distances >= task.low) & (distances < task.high)
    waited = [t[:, :, rows] for pair in waiting for t in pair]
    results = torch.autograd.grad(
        [hidden, *(own[i] for i in flows)],
        [layer.gate for layer in gated if layer.gate is not None] + leaves,
        [above * inside[:, None], *(waited[i] for i in flows)],
        retain_graph=True,
        allow_unused=True,
    )
    for i in range(len(gated)):
        if results[i] is not None:
            found[i] += results[i]
    for i, more in enumerate(results[len(gated) :]):
        if more is not None:
            waiting[i // 2][i % 2][:, :, : rows.start] += more


def gated_cache(trace: Trace, later: Entries, queries: Queries, gate: float) -> tuple[SelectiveCache, list[GatedLayer]]:
    """A cache for a chunk with the candidates' gates at `gate`, and those of its layers that can be ablated."""
    layers, gated = [], []
    for layer, entries in zip(trace.cache.layers, later, strict=True):
        assert layer.keys is not None and layer.values is not None
        full = isinstance(layer, SelectiveLayer)
        window = None if full else int(layer.sliding_window)  # type: ignore[attr-defined]
        one = GatedLayer((layer.keys, layer.values), entries, queries, None, window)
        earlier = ReplayLayer.earlier(one)
        one.leaves = earlier[0].detach().requires_grad_(), earlier[1].detach().requires_grad_()
        one.gate = None
        if full:
            logarithms = layer.keys.new_zeros(layer.keys.shape[1:3])
            logarithms[:, trace.first : trace.last] = math.log(gate)
            one.gate = logarithms.requires_grad_()
            gated.append(one)
        layers.append(one)
    return SelectiveCache.of_layers(layers), gated


def head_gradients(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """Gradients of log p(label) by last hidden states: (samples, rows, hidden).

    Args:
        hidden: (rows, hidden).
        labels: (samples, rows).
    """
    result = hidden.new_empty(len(labels), *hidden.shape)
    for start in range(0, len(hidden), HEAD_BLOCK):
        rows = slice(start, start + HEAD_BLOCK)
        with torch.enable_grad():
            states = hidden[rows].detach().requires_grad_()
            logits = head(states)
            [mean] = torch.autograd.grad(logits.logsumexp(-1).sum(), states, retain_graph=True)
            for sample, some in enumerate(labels[:, rows]):
                result[sample, rows] = _of_label(head, states, logits, some) - mean
    return result


def _of_label(head: Head, states: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each row's logit of its label by that row's hidden state."""
    if isinstance(head, LinearHead):
        slope = torch.full_like(logits[:, :1], head.scale)
        if head.cap is not None:
            slope = slope * (1 - (logits.detach().gather(-1, labels[:, None]) / head.cap) ** 2)
        return (slope * head.weight[labels]).to(states.dtype)
    [found] = torch.autograd.grad(logits.gather(-1, labels[:, None]).sum(), states, retain_graph=True)
    return found
