"""Influence from last hidden states: the head and the divergence, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.influence.divergence import Reference
from forward_influence.instrument.lm_head import Head, HeadBuffers, head_rows
from forward_influence.utils.display import Displayed
from forward_influence.utils.numerics import at_least_float32


@dataclass(frozen=True)
class Influence(Displayed):
    """What removing one selection did to the continuation, at every position or at an ablation's `positions`.

    Attributes:
        kl: KL(p || q) in nats per continuation position, (m,); distance 0 is the first.
        nll_delta: log p - log q of the token that came next, (m,); NaN at the last position.
        top1_changed: whether the most likely next token changed, (m,) bool.
    """

    kl: Tensor
    nll_delta: Tensor
    top1_changed: Tensor

    def __repr__(self) -> str:
        changed = float(self.top1_changed.double().mean())
        mean = float(self.kl.mean())
        return f"Influence({len(self.kl)} positions: mean KL {mean:.2g} nats, {changed:.1%} of the top tokens changed)"


def compare_hidden(
    head: Head, full: Tensor, others: Sequence[Tensor], targets: Tensor, block: int = 0
) -> tuple[Tensor, list[Influence]]:
    """Influence of each of `others` against `full`, from last hidden states, block by block.

    What depends on the full run is computed once per block for all others.

    Args:
        full: (m, hidden).
        others: (length, hidden) each, length <= m.
        targets: (m,) the tokens that came next, negative where there is none.
        block: rows of logits at a time; 0 for `head_rows`.

    Returns:
        The baseline's NLL (m,), NaN where there is no target, and the influences.
    """
    there = head(full[:1]).device  # a model may be spread over several
    full, others, targets = full.to(there), [other.to(there) for other in others], targets.to(there)
    m = len(full)
    dtype = at_least_float32(full[:0]).dtype
    nll = torch.empty(m, dtype=dtype)
    results = [
        Influence(
            torch.empty(len(o), dtype=dtype), torch.empty(len(o), dtype=dtype), torch.empty(len(o), dtype=torch.bool)
        )
        for o in others
    ]
    block = min(block or head_rows(head, full), max(1, m))
    buffers = HeadBuffers(head, full, block)
    for rows in _blocks(m, block):
        reference = Reference(buffers.logits(0, full[rows]), targets[rows], buffers.probabilities)
        nll[rows] = reference.nll().cpu()
        for result, hidden in zip(results, others, strict=True):
            covered = slice(rows.start, min(rows.stop, len(hidden)))  # a shorter run may end within a block
            if covered.start < covered.stop:
                equal = hidden[covered] == full[covered]
                _store(result, covered, reference, buffers.logits(1, hidden[covered]), equal)
    return nll, results


def _store(result: Influence, rows: slice, reference: Reference, logits: Tensor, equal: Tensor) -> None:
    """Compare and keep; where hidden states are equal bit for bit the shift is exactly zero, rounding or not."""
    shift = reference.compare(logits)
    same = equal.all(-1)
    result.kl[rows] = shift.kl.masked_fill(same, 0).cpu()
    nll_delta = torch.where(same & ~torch.isnan(shift.nll_delta), torch.zeros_like(shift.nll_delta), shift.nll_delta)
    result.nll_delta[rows] = nll_delta.cpu()
    result.top1_changed[rows] = (shift.top1_changed & ~same).cpu()


def _blocks(length: int, block: int) -> Iterator[slice]:
    for start in range(0, length, block):
        yield slice(start, min(start + block, length))
