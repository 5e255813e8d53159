"""Fisher gradients: how a continuation's predictions answer to each entry of the context's cache.

A gate of 1 multiplies exp(score) of every (layer, kv head, context token) entry as the continuation sees it: a bias of
0 added to its attention logits, so that the softmax renormalises, as it does when an entry is removed. Labels y_t are
drawn from the model's own p_t. The gradient of sum_{t in zone} log p_t(y_t) by all gates takes one backward pass, and
since score functions at different t are uncorrelated, its outer square is unbiased for the zone's summed Fisher
information: KL of removing a set S, summed over the zone, is about 1/2 mean (sum_{S} g)^2 over samples.

Memory is bounded by a chunk: chunks go backwards from the last, each run again over the full run's keys and values,
and what reaches earlier keys and values waits there for its chunk. The result is that of one pass over everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.cache import SelectiveCache, SelectiveLayer
from forward_influence.forward import continuation_hidden, forward_hidden
from forward_influence.heads import Head, LinearHead
from forward_influence.instrument import Instrument
from forward_influence.models import Model
from forward_influence.progress import Progress, Silent
from forward_influence.replay import Entries, Queries, ReplayLayer, continuation_entries, noting
from forward_influence.trace import Trace

DEFAULT_CHUNK = 256
#: Bytes for gradients that wait at earlier keys and values; more label samples go in several groups.
WAITING_BYTES = 1 << 30
_HEAD_BLOCK = 64


class GatedLayer(ReplayLayer):
    """A layer whose context entries have gates, and whose earlier continuation entries take gradients.

    Attributes:
        gate: (kv_heads, held) a leaf; None for sliding layers, which are not ablated.
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
class _Task:
    """One backward pass: a label sample and a zone, and what waits for earlier chunks."""

    sample: int
    zone: str
    low: int
    high: int
    waiting: list[tuple[Tensor, Tensor]]


def continuation_gradients(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    bins: Mapping[str, tuple[int, int]],
    samples: int,
    seed: int,
    *,
    chunk: int = DEFAULT_CHUNK,
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
    m = int(continuation.shape[0])
    with torch.no_grad(), Instrument(model.model) as instrument:
        instrument.cache = noting(trace.cache.branch(None, m), model.model.config)
        hidden = continuation_hidden(model.model, continuation, instrument, chunk)
        later = continuation_entries(instrument.cache, m)
        instrument.cache = None
    progress.advance(m, "full cache")
    labels = sampled_labels(model.anatomy.head, hidden, samples, seed)
    size = sum(t.numel() * t.element_size() for pair in later for t in pair)
    results = {name: torch.zeros(samples, *trace.shape, dtype=_wide(hidden), device=model.device) for name in bins}
    order = [(sample, name) for sample in range(samples) for name in bins]
    at_once = max(1, waiting_bytes // max(1, size))
    for start in range(0, len(order), at_once):
        tasks = [
            _Task(sample, name, *bins[name], [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in later])
            for sample, name in order[start : start + at_once]
        ]
        end = max(task.high for task in tasks)
        for low in reversed(range(0, end, chunk)):
            rows = slice(low, min(low + chunk, end))
            _backward(model, trace, continuation, later, labels, tasks, rows, results)
            progress.advance((rows.stop - rows.start) * len(tasks), "gradients")
    return results


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def sampled_labels(head: Head, hidden: Tensor, samples: int, seed: int) -> Tensor:
    """(samples, m) token ids drawn from the next-token distributions of last hidden states (m, hidden)."""
    generator = torch.Generator(device=hidden.device).manual_seed(seed)
    parts = [
        torch.multinomial(head(rows).softmax(-1), samples, replacement=True, generator=generator)
        for rows in hidden.split(_HEAD_BLOCK)
    ]
    return torch.cat(parts).T


def _backward(
    model: Model,
    trace: Trace,
    continuation: Tensor,
    later: Entries,
    labels: Tensor,
    tasks: Sequence[_Task],
    rows: slice,
    results: dict[str, Tensor],
) -> None:
    """Run one chunk again and send every task's gradient through it."""
    distances = torch.arange(rows.start, rows.stop, device=continuation.device)
    queries = Queries(trace.n, distances, together=True)
    cache, gated = _gated_cache(trace, later, queries)
    with torch.enable_grad(), Instrument(model.model, cache=cache) as instrument:
        hidden = forward_hidden(model.model, continuation[rows], instrument, queries.positions)
    own = [t for layer in cache.layers for t in layer.own]  # type: ignore[attr-defined]
    flows = [i for i, t in enumerate(own) if t.requires_grad]
    leaves = [t for layer in cache.layers for t in layer.leaves]  # type: ignore[attr-defined]
    samples = sorted({task.sample for task in tasks})
    upper = head_gradients(model.anatomy.head, hidden.detach(), labels[samples][:, rows])
    for task in tasks:
        if task.high <= rows.start:
            continue
        inside = (distances >= task.low) & (distances < task.high)
        waiting = [t[:, :, rows] for pair in task.waiting for t in pair]
        found = torch.autograd.grad(
            [hidden, *(own[i] for i in flows)],
            [layer.gate for layer in gated if layer.gate is not None] + leaves,
            [upper[samples.index(task.sample)] * inside[:, None], *(waiting[i] for i in flows)],
            retain_graph=True,
            allow_unused=True,
        )
        for i in range(len(gated)):
            if found[i] is not None:
                results[task.zone][task.sample, i] += found[i]
        for i, more in enumerate(found[len(gated) :]):
            if more is not None:
                task.waiting[i // 2][i % 2][:, :, : rows.start] += more


def _gated_cache(trace: Trace, later: Entries, queries: Queries) -> tuple[SelectiveCache, list[GatedLayer]]:
    """A cache for a chunk, and those of its layers that can be ablated."""
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
            one.gate = layer.keys.new_zeros(layer.keys.shape[1:3]).requires_grad_()
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
    for start in range(0, len(hidden), _HEAD_BLOCK):
        rows = slice(start, start + _HEAD_BLOCK)
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
