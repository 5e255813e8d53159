"""Answers from compressed caches: side by side in a batch, or each with a cache that goes on compressing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from forward_influence.compression import Compressor, Outcome, compress
from forward_influence.evaluation.decoding import Choice, continued, continued_apart, grouped
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.compat import named_cache
from forward_influence.instrument.forward import next_logits, run
from forward_influence.models import generation_settings
from forward_influence.models.loading import Model


@dataclass(frozen=True)
class Answer:
    """A response and what it took.

    Attributes:
        text: the response, up to where it ends.
        tokens: how many were generated.
        seconds: of the batch that it was answered in.
        streams: answers in that batch.
        limited: whether it ran into the limit of tokens before it was complete.
    """

    text: str
    tokens: int
    seconds: float
    streams: int
    limited: bool


class Clock:
    """Seconds since it was made or last asked, with the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at = 0.0
        self.lap()

    def lap(self) -> float:
        """Seconds since the last time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before, self._at = self._at, time.perf_counter()
        return self._at - before


def end_tokens(model: Model) -> set[int]:
    """Tokens that end an answer."""
    own = getattr(model.tokenizer, "eos_token_id", None)
    return {*generation_settings.end_tokens(model.model), *([] if own is None else [int(own)])}


def ending(model: Model, until: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether an answer (token ids so far) is complete: it ends with an end token, or holds one of the texts."""
    ends = end_tokens(model)
    stops = [stop for stop in until if stop]

    def finished(tokens: list[int]) -> bool:
        if tokens[-1] in ends:
            return True
        text = model.tokenizer.decode(tokens) if stops else ""
        return any(stop in text for stop in stops)

    return finished


def response_text(model: Model, tokens: Sequence[int], until: Sequence[str]) -> str:
    """Tokens as text, special ones left out, up to the first of the `until` strings."""
    text = str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text


def is_limited(tokens: list[int], limit: int, finished: Callable[[list[int]], bool]) -> bool:
    """Whether an answer ended because it had as many tokens as it may have."""
    return len(tokens) >= limit and not finished(tokens)


def answer_side_by_side(
    model: Model,
    caches: Sequence[SelectiveCache],
    question: Tensor,
    limit: int,
    until: Sequence[str],
    most: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> list[Answer]:
    """Answers from several caches of one context.

    Args:
        caches: are used up.
        question: (q,) tokens that each reads first.
        limit: most tokens of an answer.
        most: how many at a time; None: as many as fit into `BATCH_BYTES`.
        temperature: 0 is greedy; otherwise tokens are drawn from the whole distribution.
        seeds: of each cache's draws, where tokens are drawn.
    """
    finished, clock = ending(model, until), Clock(model.device)
    answers: dict[int, Answer] = {}
    for group in grouped([cache.bytes() for cache in caches], most=most):
        clock.lap()
        choose = Choice(temperature, [seeds[i] for i in group] if seeds else ())
        found = continued_apart(model, [caches[i] for i in group], question, limit, finished, choose)
        seconds = clock.lap()
        for i, tokens in zip(group, found, strict=True):
            limited = is_limited(tokens, limit, finished)
            answers[i] = Answer(response_text(model, tokens, until), len(tokens), seconds, len(group), limited)
    return [answers[i] for i in range(len(caches))]


@dataclass(frozen=True)
class Asking:
    """A text that is read and answered while its cache is compressed.

    Attributes:
        compressor: with its seed.
        context: (c,) tokens, compressed after they were read; none: compressed first after the question.
        question: (q,) tokens, at least one.
        seed: of the answer's draws, where tokens are drawn.
        pace: read the question so many tokens at a time, so that the cache is compressed as if it were generated; None:
            in one pass.
    """

    compressor: Compressor
    context: Tensor
    question: Tensor
    seed: int = 0
    pace: int | None = None

    def pieces(self) -> list[Tensor]:
        """The question as it is read, (q,) tokens each; the last one has at least one."""
        if self.pace is None:
            return [self.question]
        return list(self.question.split(self.pace))


@dataclass(frozen=True)
class Grown:
    """An answer whose cache was compressed while it grew.

    Attributes:
        answer: the answer.
        outcome: what was held and chosen.
        bytes, full_bytes: of the cache at the end, and had it been full.
        prefill_seconds: of the first pass, compression included.
        compress_seconds: of all compressions.
    """

    answer: Answer
    outcome: Outcome
    bytes: int
    full_bytes: int
    prefill_seconds: float
    compress_seconds: float


def answer_while_compressing(
    model: Model, asked: Sequence[Asking], limit: int, until: Sequence[str], temperature: float = 0.0
) -> list[Grown]:
    """Read contexts one by one, compress them, read their questions, and answer side by side, compressing as the
    answers grow; each as if alone.

    Args:
        limit: most tokens of an answer.
        temperature: 0 is greedy, from the model's own logits; otherwise tokens are drawn from the whole distribution.
            The checkpoint's own settings do not hold, see `forward_influence.models.generation_settings`.
    """
    finished, clock = ending(model, until), Clock(model.device)
    span = max(len(one.context) + len(one.question) for one in asked) + limit
    prefills, first, seconds = [], [], 0.0
    choose = Choice(temperature, [one.seed for one in asked])
    with torch.no_grad(), compress(model, [one.compressor for one in asked], span=span) as cache:
        for one, own in zip(asked, cache.apart(), strict=True):
            clock.lap()
            if len(one.context):
                run(backbone(model.model), one.context.to(model.device)[None], own)
            prefills.append(clock.lap() if len(one.context) else 0.0)
            *before, last = (piece.to(model.device)[None] for piece in one.pieces())
            for piece in before:
                run(backbone(model.model), piece, own)
            first.append(next_logits(model.model, last, own)[0])
            seconds += clock.lap()
        if len(asked) > 1:
            cache.join()
        answers = continued(model, cache, torch.stack(first), limit, finished, cache.leave, choose)
        seconds += clock.lap()
        stats = cache.row_stats
    return [
        Grown(
            Answer(
                response_text(model, tokens, until),
                len(tokens),
                seconds,
                len(asked),
                is_limited(tokens, limit, finished),
            ),
            Outcome.after(held),
            held.bytes,
            held.full_bytes,
            prefill,
            held.scoring_seconds,
        )
        for tokens, held, prefill in zip(answers, stats, prefills, strict=True)
    ]


def answer_as_asked(model: Model, one: Asking, limit: int, until: Sequence[str], settings: Mapping[str, Any]) -> Grown:
    """The same of a single text with settings of `generate`, as a task of the harness asks for them."""
    finished, clock = ending(model, until), Clock(model.device)
    context, question = one.context.to(model.device), one.question.to(model.device)
    span, prefill = len(context) + len(question) + limit, 0.0
    with torch.no_grad(), compress(model, one.compressor, span=span) as cache:
        if len(context):
            run(backbone(model.model), context[None], cache)
            prefill = clock.lap()
        tokens = _generated(model, cache, torch.cat([context, question]), limit, finished, settings)
        seconds = clock.lap()
        stats = cache.stats
    limited = is_limited(tokens, limit, finished)
    answer = Answer(response_text(model, tokens, until), len(tokens), seconds, 1, limited)
    return Grown(answer, Outcome.after(stats), stats.bytes, stats.full_bytes, prefill, stats.scoring_seconds)


def _generated(
    model: Model,
    cache: SelectiveCache,
    prompt: Tensor,
    limit: int,
    finished: Callable[[list[int]], bool],
    asked: Mapping[str, Any],
) -> list[int]:
    """What transformers' `generate` writes with the settings asked for and no others."""
    start = len(prompt)

    def over(tokens: Tensor, scores: Tensor, **others: object) -> Tensor:
        return torch.tensor([finished(tokens[0, start:].tolist())], device=tokens.device)

    output = generation_settings.run_generate(
        model.model,
        prompt,
        generation_settings.neutral(model.model, limit, **asked),
        **named_cache(model.model, cache),
        stopping_criteria=StoppingCriteriaList([over]),
        tokenizer=model.tokenizer,
    )
    return [int(token) for token in output[start:]]
