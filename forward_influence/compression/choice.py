"""Which entries of a cache a compressor keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.compression.compressor import Compressor
from forward_influence.compression.schemes import SCHEMES, fitted, pyramid_of
from forward_influence.selectors import Selector, final_scores
from forward_influence.selectors.selection import Candidates, top
from forward_influence.tracing.part import Group, groups
from forward_influence.tracing.trace import Trace

#: (group, how many entries in front to leave out) -> trace of what that group holds.
TraceOf = Callable[[Group, int], Trace]
#: (positions (layers, kv_heads, n), -1 where there is only padding) -> trace for counting.
FrameOf = Callable[[Tensor], Trace]


@dataclass(frozen=True)
class Held:
    """What a cache holds when it is compressed.

    Attributes:
        positions: per full layer, (kv_heads, held) int64, -1 where an entry only pads (in front).
        seen, prompt: tokens that went through, and how many of them in the first pass.
        contiguous: how many of the last tokens every layer and head holds.
        number: how many compressions came before; random rules draw anew each time.
    """

    positions: list[Tensor]
    seen: int
    prompt: int
    contiguous: int
    number: int

    @property
    def counts(self) -> Tensor:
        """Tokens held per layer and head, (layers, kv_heads) int64."""
        return torch.stack([(p >= 0).sum(-1) for p in self.positions])

    def of(self, group: Group) -> Tensor:
        """Positions of a group, (layers, kv_heads, n)."""
        if len(group.heads) == self.positions[0].shape[0]:
            return torch.stack([self.positions[row][:, -group.n :] for row in group.rows])
        heads = list(group.heads)
        return torch.stack([self.positions[row][heads, -group.n :] for row in group.rows])


def choose(compressor: Compressor, held: Held, trace_of: TraceOf, frame_of: FrameOf) -> list[Tensor] | None:
    """What stays: per full layer (kv_heads, held) bool, False where an entry only pads; None where everything stays."""
    counts = held.counts
    if compressor.kept(held.seen, held.prompt) * counts.numel() >= int(counts.sum()):
        return None
    first, last, number = pins(compressor, held)
    found = groups(counts)
    masks = [torch.zeros(len(g.rows), len(g.heads), g.n, dtype=torch.bool, device=counts.device) for g in found]
    if number > 0:
        _fill(compressor, held, (first, last), number, found, masks, trace_of, frame_of)
    for mask in masks:
        mask[..., :first] = True
        mask[..., mask.shape[-1] - last :] = True
    return _by_layer(held, found, masks)


def remarks(compressor: Compressor, held: Held) -> tuple[str, ...]:
    """What a reader of results must know about this choice: that a pyramid fell back to even budgets, say."""
    first, last, number = pins(compressor, held)
    if number < 1 or compressor.is_full:
        return ()
    width = int(held.counts.max())
    candidates = Candidates(width, first, width - last)
    if compressor.scheme == "pyramid":
        return pyramid_of(first + last).remarks(number, candidates)
    return compressor.rule.remarks(number, candidates) if compressor.scheme == "rule" else ()


def pins(compressor: Compressor, held: Held) -> tuple[int, int, int]:
    """How many first and last tokens are kept whatever they score, and how many are chosen, on average."""
    kept = compressor.kept(held.seen, held.prompt)
    first, last = compressor.pinned(kept, held.prompt)
    last = min(last, held.contiguous)
    first = min(first, int(held.counts.min()) - last)
    return first, last, kept - first - last


def _fill(
    compressor: Compressor,
    held: Held,
    pinned: tuple[int, int],
    number: int,
    found: list[Group],
    masks: list[Tensor],
    trace_of: TraceOf,
    frame_of: FrameOf,
) -> None:
    """Mark the best candidates of every group, `number` per layer and head on average."""
    first, last = pinned
    counts = held.counts
    width = int(counts.max()) - first - last
    skip = held.prompt if compressor.window_on_top else 0
    traces = []
    for group in found:
        trace = trace_of(group, skip)
        traces.append(dataclasses.replace(trace, first=first - skip, last=trace.n - last, most_observed=last))

    def scored(rule: Selector) -> Tensor:
        """Scores of the candidates, (layers, kv_heads, width) float64, -inf in front where fewer are held."""
        frame = torch.full((*counts.shape, width), float("-inf"), dtype=torch.float64, device=counts.device)
        for i, (group, trace) in enumerate(zip(found, traces, strict=True)):
            scores = final_scores(_drawn(rule, held.number, i), trace)[..., first - skip : trace.n - last]
            rows = torch.tensor(group.rows)[:, None], torch.tensor(group.heads)[None, :]
            padded = torch.full((*scores.shape[:2], width), float("-inf"), dtype=frame.dtype, device=frame.device)
            padded[..., width - scores.shape[-1] :] = scores
            frame[rows] = padded
        return frame

    frame = scored(compressor.rule)
    whole = traces[0] if len(found) == 1 and not skip else frame_of(_framed(held, found, first, last, width))
    whole = dataclasses.replace(whole, first=first, last=first + width)
    divide = SCHEMES[compressor.scheme].divide
    spread = torch.zeros(*counts.shape, whole.n, dtype=frame.dtype, device=frame.device)
    by = compressor.rule.divides_by
    spread[..., first : first + width] = frame if by is compressor.rule else scored(by)
    wanted = torch.as_tensor(divide(by, whole, spread, number), device=counts.device)
    wanted = fitted(wanted.expand(counts.shape).clone(), counts - first - last)
    chosen = top(frame, Candidates(width, 0, width), wanted)
    for group, mask in zip(found, masks, strict=True):
        part = chosen[list(group.rows)][:, list(group.heads)]
        mask[..., first : group.n - last] = part[..., width - (group.n - first - last) :]


def _drawn(rule: Selector, number: int, group: int) -> Selector:
    """A random rule with a seed of this compression and group; other rules as they are."""
    if not rule.stochastic or (number == 0 and group == 0):
        return rule
    return rule.at(int(getattr(rule, "seed", 0)) + 1_000_003 * number + 7_919 * group)


def _framed(held: Held, found: list[Group], first: int, last: int, width: int) -> Tensor:
    """Positions of all layers and heads in one tensor: [first | padding, candidates | last]."""
    shape = (*held.counts.shape, first + width + last)
    frame = torch.full(shape, -1, dtype=torch.int64, device=held.positions[0].device)
    for group in found:
        positions, rows = held.of(group), (torch.tensor(group.rows)[:, None], torch.tensor(group.heads)[None, :])
        gap = torch.full((*positions.shape[:2], shape[-1] - group.n), -1, device=frame.device)
        frame[rows] = torch.cat([positions[..., :first], gap, positions[..., first:]], dim=-1)
    return frame


def _by_layer(held: Held, found: list[Group], masks: list[Tensor]) -> list[Tensor]:
    keep = [torch.zeros_like(p, dtype=torch.bool) for p in held.positions]
    for group, mask in zip(found, masks, strict=True):
        for i, row in enumerate(group.rows):
            keep[row][list(group.heads), -group.n :] = mask[i]
    return keep
