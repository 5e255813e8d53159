"""The answers to one item: its rows, one for each compressor and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forward_influence.compression.contenders import (
    Contender,
    needs_of,
)
from forward_influence.compression.outcome import Outcome
from forward_influence.data.tasks import Item, Task
from forward_influence.evaluation.answering import (
    Answer,
    Asking,
    Clock,
    Grown,
    answer_side_by_side,
    answer_while_compressing,
)
from forward_influence.evaluation.decoding import grouped
from forward_influence.evaluation.plan import Plan, Work
from forward_influence.evaluation.prompts import Prompt, counter, make_prompt
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.measurement.rows import outcome_columns
from forward_influence.models.loading import Model
from forward_influence.models.sizes import Sizes
from forward_influence.models.token_ids import require_known
from forward_influence.tracing.recorder import record


def answer_item(model: Model, plan: Plan, work: Work, chat: bool) -> list[dict[str, Any]]:
    """The rows of one item under one protocol, one per contender and run, in the plan's order.

    Raises:
        ForwardInfluenceError: it has tokens that the model does not know.
    """
    task = work.task
    item, prompt = prompt_of(model, plan, work, chat)
    context, question = prompt.parts(work.protocol)
    what = f"{task.spec}, {work.length} tokens, item {work.index}, question {work.protocol}"
    require_known(model, torch.cat([context, question]), what)
    shared = {
        "task": task.spec,
        "family": task.spec.replace(task.name, task.family or task.name, 1),
        "reasons": task.reasons,
        "length": work.length,
        "protocol": work.protocol,
        "item": work.index,
        "depth": item.depth,
        "every": plan.every,
        "answers": list(item.answers),
        "context_tokens": len(context),
        "question_tokens": len(question),
    }
    wanted = [
        Attempt(contender, run, plan.seed_of(work.index, run))
        for run in range(plan.runs)
        for contender in plan.contenders
    ]
    answered = _prefill_only if plan.every is None else _while_compressing
    rows = []
    for one, (answer, costs) in zip(wanted, answered(model, plan, wanted, context, question, task), strict=True):
        row = {**shared, "compressor": one.contender.name, "budget": one.contender.budget, "run": one.run, **costs}
        row |= {"response": answer.text, "new_tokens": answer.tokens, "streams": answer.streams}
        row |= {"limited": answer.limited, "answer_seconds": answer.seconds}
        rows.append({**row, "score": float(task.score(item, answer.text))})
    return rows


@dataclass(frozen=True)
class Attempt:
    """An answer that is wanted: of which contender, in which run, and with which seed.

    Two contenders draw with the same seed in the same run, so that they differ by what they hold alone.
    """

    contender: Contender
    run: int
    seed: int


def prompt_of(model: Model, plan: Plan, work: Work, chat: bool) -> tuple[Item, Prompt]:
    """An item and its prompt."""
    item: Item = work.task.item(work.index, work.length, counter(model.tokenizer), plan.seed)
    return item, make_prompt(model.tokenizer, item.context, item.question, item.answer_prefix, chat)


def _held(outcome: Outcome) -> dict[str, Any]:
    """What was held, pinned and chosen, as columns."""
    first, last = outcome.ends or (None, None)
    return {**outcome_columns(outcome), "pinned_first": first, "pinned_last": last, "grain": outcome.grain}


def _prefill_only(
    model: Model, plan: Plan, wanted: Sequence[Attempt], context: Tensor, question: Tensor, task: Task
) -> list[tuple[Answer, dict[str, Any]]]:
    """One recorded pass for all contenders, then their answers side by side."""
    clock = Clock(model.device)
    span = len(context) + len(question) + task.answer_tokens
    trace = record(model, context, needs_of(plan.contenders), span=span)
    prefill = clock.lap()
    caches: list[SelectiveCache] = []
    keeps: list[Tensor | None] = []
    costs: list[dict[str, Any]] = []
    chosen: dict[Any, Tensor | None] = {}
    for one in wanted:
        clock.lap()
        key = (one.contender, one.seed if one.contender.compressor.rule.stochastic else None)
        if key not in chosen:
            chosen[key] = one.contender.keep(trace, one.seed)
        keeps.append(chosen[key])
        caches.append(trace.cache.branch(keeps[-1], 0))
        seconds = clock.lap()
        costs.append(
            {
                "cache_bytes": caches[-1].bytes(),
                "full_bytes": trace.cache.bytes(),
                "prefill_seconds": prefill,
                "compress_seconds": seconds,
            }
        )
    most = plan.most_at_once(caches[0])
    seeds = [one.seed for one in wanted]
    answers = answer_side_by_side(
        model, caches, question, task.answer_tokens, task.until, most, plan.temperature, seeds
    )
    for one, keep, answer, cost in zip(wanted, keeps, answers, costs, strict=True):
        read = len(question) + max(0, answer.tokens - 1)  # the last token of an answer is not read any more
        cost.update(_held(one.contender.outcome(trace, keep, read)))
    return list(zip(answers, costs, strict=True))


def _while_compressing(
    model: Model, plan: Plan, wanted: Sequence[Attempt], context: Tensor, question: Tensor, task: Task
) -> list[tuple[Answer, dict[str, Any]]]:
    """Contenders read the context one by one and generate side by side, their caches compressed as answers grow."""
    pace = plan.every if task.paced else None
    asked = [Asking(one.contender.seeded(one.seed), context, question, one.seed, pace) for one in wanted]
    span = len(context) + len(question) + task.answer_tokens
    full = Sizes.of(model.model.config, model.dtype.itemsize).cache_bytes(span)
    most = plan.most_at_once(SelectiveCache(model.model.config, span=span))
    grown: dict[int, Grown] = {}
    for group in grouped([full] * len(asked), most=most):
        found = answer_while_compressing(
            model, [asked[i] for i in group], task.answer_tokens, task.until, plan.temperature
        )
        grown.update(zip(group, found, strict=True))
    return [(grown[i].answer, _costs(grown[i])) for i in range(len(asked))]


def _costs(grown: Grown) -> dict[str, Any]:
    """What an answer held and took, as columns."""
    return {
        **_held(grown.outcome),
        "cache_bytes": grown.bytes,
        "full_bytes": grown.full_bytes,
        "prefill_seconds": grown.prefill_seconds,
        "compress_seconds": grown.compress_seconds,
    }
