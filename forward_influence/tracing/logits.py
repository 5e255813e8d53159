"""Logits of a pass's last hidden states, block by block.

A context's chunk has hundreds of rows whose logits nobody else computes: the head works in memory that is taken once.
In a generation the model has usually computed them itself, and a decoding step has one row, too little for buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from forward_influence.instrument.lm_head import Head, HeadBuffers, head_rows
from forward_influence.utils.numerics import at_least_float32

#: (q, hidden) last hidden states, and the (q, vocabulary) logits that the model computed anyway -> blocks of logits.
Blocks = Callable[[Tensor, Tensor | None], Iterator[Tensor]]
_STEP_ROWS = 64


def of_chunks(head: Head) -> Blocks:
    """For a context: as many rows at a time as the vocabulary allows. A block is good until the next one."""
    buffers: HeadBuffers | None = None

    def blocks(hidden: Tensor, given: Tensor | None) -> Iterator[Tensor]:
        nonlocal buffers
        if buffers is None:
            buffers = HeadBuffers(head, hidden, head_rows(head, hidden), blocks=1)
        for rows in hidden.split(buffers.rows):
            yield buffers.logits(0, rows)

    return blocks


def of_passes(head: Head) -> Blocks:
    """For a generation: the model's own logits where it computed them."""

    def blocks(hidden: Tensor, given: Tensor | None) -> Iterator[Tensor]:
        for start in range(0, hidden.shape[0], _STEP_ROWS):
            rows = slice(start, start + _STEP_ROWS)
            yield head(hidden[rows]) if given is None else at_least_float32(given[rows])

    return blocks
