"""Going on from several caches side by side: a token for each at every pass, until each answer is complete.

A small model spends most of its time reading its own weights (or launching kernels), so that answering from twenty
caches at once costs little more than answering from one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from forward_influence.instrument.batch import can_stack, leave, stack
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import next_logits
from forward_influence.instrument.instrument import Instrument
from forward_influence.models.loading import Model

#: Bytes of keys and values in one batch; more caches go in several.
BATCH_BYTES = 1 << 32


class Choice:
    """How tokens are chosen: the most likely one, or drawn from the whole distribution.

    Each sequence draws with a generator of its own, so that its answer does not depend on the batch that it is in.

    Args:
        temperature: 0 takes the most likely token of the model's own logits.
        seeds: of the sequences' draws, where tokens are drawn.
    """

    def __init__(self, temperature: float = 0.0, seeds: Sequence[int] = ()) -> None:
        self._temperature, self._seeds = temperature, list(seeds)
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """(rows,) token ids from logits (rows, vocabulary) of these sequences."""
        if not self._temperature:
            return logits.argmax(-1)
        weights = (logits.float() / self._temperature).softmax(-1)
        drawn = [torch.multinomial(w, 1, generator=self._generator(r, w)) for r, w in zip(rows, weights, strict=True)]
        return torch.cat(drawn)

    def _generator(self, row: int, like: Tensor) -> torch.Generator:
        if row not in self._generators:
            self._generators[row] = torch.Generator(like.device).manual_seed(self._seeds[row])
        return self._generators[row]


GREEDY = Choice()


def continued(
    model: Model,
    cache: SelectiveCache,
    logits: Tensor,
    limit: int,
    finished: Callable[[list[int]], bool],
    drop: Callable[[list[int]], None],
    choose: Choice = GREEDY,
) -> list[list[int]]:
    """What follows several sequences in one cache.

    Args:
        logits: (rows, vocabulary), what comes first.
        limit: most tokens of an answer.
        finished: whether an answer (token ids so far) is complete.
        drop: takes the sequences at these places out of the cache: they are complete, and cost nothing more.

    Returns:
        Token ids per sequence, the one that completed the answer included.
    """
    answers: list[list[int]] = [[] for _ in logits]
    going = list(range(len(answers)))
    for step in range(limit):
        tokens = choose(going, logits)
        for row, token in zip(going, tokens.tolist(), strict=True):
            answers[row].append(token)
        over = [place for place, row in enumerate(going) if finished(answers[row])]
        if len(over) == len(going) or step == limit - 1:
            break
        if over:
            staying = [place for place in range(len(going)) if place not in over]
            drop(over)
            going, tokens = [going[place] for place in staying], tokens[staying]
        logits = next_logits(model.model, tokens[:, None], cache)
    return answers


def continued_apart(
    model: Model,
    caches: Sequence[SelectiveCache],
    question: Tensor,
    limit: int,
    finished: Callable[[list[int]], bool],
    choose: Choice = GREEDY,
) -> list[list[int]]:
    """What follows a question from several caches of one context, in one batch.

    Args:
        caches: have seen the same context; they are used up.
        question: (q,) tokens that every sequence reads first, at least one.
        limit, finished, choose: as of `continued`.
    """
    question = question.to(model.device)
    alone = len(caches) == 1 and not can_stack(caches[0])
    batch = caches[0] if alone else stack(caches)
    span = batch.get_seq_length() + len(question) + limit

    def drop(places: list[int]) -> None:
        assert batch.padding is not None
        leave(batch, [place for place in range(len(batch.padding.pads)) if place not in places])

    with torch.no_grad(), Instrument(model.model, cache=batch, span=span):
        logits = next_logits(model.model, question.expand(len(caches), -1), batch)
        return continued(model, batch, logits, limit, finished, drop, choose)


def grouped(sizes: Sequence[int], limit: int = BATCH_BYTES, most: int | None = None) -> Iterator[list[int]]:
    """Indices in groups whose largest size times their number stays within `limit` bytes; a group has at least one.

    Args:
        most: of a group.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    group: list[int] = []
    for i in order:
        if group and (sizes[i] * (len(group) + 1) > limit or len(group) == most):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
