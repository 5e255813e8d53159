"""Answers from compressed caches: side by side in a batch, or each with a cache that goes on compressing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from forward_influence.compression import Outcome, compress
from forward_influence.compression.contenders import Contender
from forward_influence.evaluation.batched import BATCH_BYTES, greedy, grouped
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
    """

    text: str
    tokens: int
    seconds: float
    streams: int


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


def answer_side_by_side(
    model: Model, caches: Sequence[SelectiveCache], question: Tensor, limit: int, until: Sequence[str], batched: bool
) -> list[Answer]:
    """Greedy answers from several caches of one context.

    Args:
        caches: are used up.
        question: (q,) tokens that each reads first.
        limit: most tokens of an answer.
        batched: several at a time, or one by one.
    """
    finished, clock = ending(model, until), Clock(model.device)
    answers: dict[int, Answer] = {}
    for group in grouped([cache.bytes() for cache in caches], BATCH_BYTES if batched else 0):
        clock.lap()
        found = greedy(model, [caches[i] for i in group], question, limit, finished)
        seconds = clock.lap()
        for i, tokens in zip(group, found, strict=True):
            answers[i] = Answer(response_text(model, tokens, until), len(tokens), seconds, len(group))
    return [answers[i] for i in range(len(caches))]


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
    model: Model,
    contender: Contender,
    context: Tensor,
    question: Tensor,
    limit: int,
    until: Sequence[str],
    seed: int = 0,
    asked: Mapping[str, Any] | None = None,
) -> Grown:
    """Read a context, compress, read the question and answer, compressing as the answer grows.

    Args:
        context: (c,) tokens, compressed after they were read; none: compressed first after the question.
        question: (q,) tokens, at least one.
        asked: settings of `generate` that a task asks for; without them greedy from the model's own logits. The
            checkpoint's own settings do not hold, see `forward_influence.models.generation_settings`.
    """
    finished, clock = ending(model, until), Clock(model.device)
    context, question = context.to(model.device), question.to(model.device)
    span = len(context) + len(question) + limit
    prefill = 0.0
    with torch.no_grad(), compress(model, contender.compressor, seed=seed, span=span) as cache:
        if len(context):
            run(backbone(model.model), context[None], cache)
            prefill = clock.lap()
        if asked:
            tokens = _generated(model, cache, torch.cat([context, question]), limit, finished, asked)
        else:
            tokens = _greedy(model, cache, question, limit, finished)
        seconds = clock.lap()
        stats = cache.stats
    answer = Answer(response_text(model, tokens, until), len(tokens), seconds, 1)
    return Grown(answer, Outcome.after(stats), stats.bytes, stats.full_bytes, prefill, stats.scoring_seconds)


def _greedy(
    model: Model, cache: SelectiveCache, question: Tensor, limit: int, finished: Callable[[list[int]], bool]
) -> list[int]:
    """The same as `streams.greedy` with one cache that goes on compressing itself."""
    answer: list[int] = []
    read = question
    for _ in range(limit):
        token = next_logits(model.model, read[None], cache)[0].argmax()
        answer.append(int(token))
        if finished(answer):
            break
        read = token[None]
    return answer


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
