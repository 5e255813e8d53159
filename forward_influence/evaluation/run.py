"""Task accuracy under compressed caches: one prefill per item, then a short answer from every compressor's cache.

All compressors read the same recorded pass, answer the same items, and are answered side by side in one batch, so that
an item costs one prefill and one short decode. With `every`, the cache is compressed again while the answer grows, and
each compressor generates by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forward_influence.compression.contenders import (
    CONTROL,
    CONTROL_WHILE_DECODING,
    Contender,
    contenders,
    narrowed,
    needs_of,
)
from forward_influence.compression.outcome import Outcome
from forward_influence.data.tasks import Item, Task, parse_task
from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.evaluation.answering import (
    Answer,
    Clock,
    answer_side_by_side,
    answer_while_compressing,
    end_tokens,
)
from forward_influence.evaluation.batched import can_stack
from forward_influence.evaluation.choices import EvaluationChoices
from forward_influence.evaluation.prompts import PROTOCOLS, Prompt, counter, make_prompt
from forward_influence.execution.run import model_configuration
from forward_influence.measurement.rows import outcome_columns
from forward_influence.models.info import Card
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import require_known
from forward_influence.selectors.protection import parse_protected
from forward_influence.storage.evaluation import FULL, Evaluation, create_or_continue, part_stem
from forward_influence.storage.manifest import circumstances, configuration_hash
from forward_influence.tracing.recorder import record
from forward_influence.utils.configuration import described
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.tokenization import wants_chat

#: Of compressors, where neither they nor what is held are given.
_BUDGETS = ("0.4", "0.2")


@described
@dataclass(frozen=True)
class Plan(EvaluationChoices):
    """What to evaluate, checked.

    The full cache, with which everything is paired, and a random control are always among the compressors: `random`, or
    with `every` `random-protected`, which keeps the prompt whole (where as many entries are held as a length has
    tokens, or fewer, `random` again). A task may also be given as a `Task`.
    """

    contenders: tuple[Contender, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("no task; name one with `tasks`, needle or variables say")
        super().__post_init__()
        tasks = tuple(parse_task(task) if isinstance(task, str) else task for task in self.tasks)
        object.__setattr__(self, "tasks", tasks)
        specs = [task.spec for task in tasks]
        for spec in specs:
            if specs.count(spec) > 1:
                raise UsageError(f"task {spec} is given twice; give it once")
        counts = (self.match_held,) if isinstance(self.match_held, int) else tuple(self.match_held)
        object.__setattr__(self, "match_held", counts)
        if self.match_held:
            if self.budgets:
                raise UsageError("`budgets` and `match_held` both say how much is held; give one of them")
            self._check_held()
        elif not self.budgets:
            object.__setattr__(self, "budgets", _BUDGETS)
        whole = self.every is not None and all(count > max(self.lengths) for count in self.match_held)
        control = CONTROL_WHILE_DECODING if whole else CONTROL
        if any(name != FULL for name in self.compressors) and control not in self.compressors:
            object.__setattr__(self, "compressors", (*self.compressors, control))
        found = contenders(
            self.compressors,
            self.budgets,
            self.every,
            match_held=self.match_held,
            protect_first=self.protect_first,
            protect_last=None if self.protect_last is None else parse_protected(self.protect_last),
        )
        object.__setattr__(self, "protect_last", found[0].protect_last)
        object.__setattr__(self, "contenders", tuple(found))

    def _check_held(self) -> None:
        """Refuse to hold as much as is ever seen."""
        seen = max(self.lengths) + (0 if self.every is None else max(task.answer_tokens for task in self.parsed_tasks))
        for count in self.match_held:
            if count >= seen:
                raise UsageError(
                    f"`match_held` {count}: no more than {seen} tokens are seen when a cache is compressed, so that "
                    "nothing would be removed; hold fewer"
                )

    @property
    def parsed_tasks(self) -> tuple[Task, ...]:
        """The tasks."""
        return tuple(task for task in self.tasks if not isinstance(task, str))

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols, each by itself."""
        return PROTOCOLS if self.protocol == "both" else (self.protocol,)

    @property
    def remarks(self) -> list[str]:
        """What readers of the results must know about compressors under these settings."""
        return narrowed(self.contenders)

    def configuration(self) -> dict[str, Any]:
        """What decides the results, in the manifest's names."""
        return {
            "tasks": [task.spec for task in self.parsed_tasks],
            "compressors": list(dict.fromkeys(c.name for c in self.contenders)),
            "budgets": list(self.budgets),
            "match_held": list(self.match_held),
            "protect_first": self.protect_first,
            "protect_last": self.protect_last,
            "lengths": list(self.lengths),
            "items": self.items,
            "protocols": list(self.protocols),
            "every": self.every,
            "chat": self.chat,
            "seed": self.seed,
        }

    def work(self) -> list[Work]:
        """Every item under every protocol."""
        return [
            Work(task, length, protocol, index)
            for index in range(self.items)  # items outermost: a stopped evaluation has some of everything
            for task in self.parsed_tasks
            for length in self.lengths
            for protocol in self.protocols
        ]


@dataclass(frozen=True)
class Work:
    """One item under one protocol: what a part holds."""

    task: Task
    length: int
    protocol: str
    index: int

    @property
    def stem(self) -> str:
        """Its part's file name."""
        return part_stem(self.task.spec, self.length, self.protocol, self.index)


def evaluate(
    model: Model,
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (0, 1),
    command: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Answer every item with every compressor, and write an evaluation's folder; the same again continues it.

    Args:
        out: the folder; made if it is not there.
        shard: (i, n): this process does every n-th piece of work from the i-th on; several fill one folder together.

    Raises:
        UsageError: another configuration in the folder, a length beyond the model's positions, no tokenizer, a prompt
            that is kept whole and leaves none to choose of what is to be held, or a compressor that fails.
        ForwardInfluenceError: items that could not be answered; the others were, and are kept.
    """
    progress = progress or Silent()
    _check(model, plan, shard)
    chat = wants_chat(model.tokenizer, plan.chat)
    work, failures = plan.work(), list[str]()
    _check_prompts(model, plan, work, chat)
    evaluation = create_or_continue(out, build_manifest(model, plan, chat, command))
    mine = [w for w in work[shard[0] :: shard[1]] if not evaluation.has(w.stem)]
    progress.begin(sum(w.length for w in mine), "evaluating")
    for remark in plan.remarks:
        progress.message(remark)
    try:
        for piece in mine:
            try:
                evaluation.write(piece.stem, answer_item(model, plan, piece, chat))
            except (UsageError, StorageError):
                raise
            except ForwardInfluenceError as failure:
                failures.append(str(failure))
                progress.message(f"an item could not be answered: {failure}")
            progress.advance(piece.length, f"{piece.task.spec} {piece.length} {piece.protocol}")
    finally:
        progress.end()
    if failures:
        raise ForwardInfluenceError(
            f"{len(failures)} of {len(mine)} items could not be answered, the others are kept; the first: {failures[0]}"
        )
    if not evaluation.merge(w.stem for w in work):
        progress.message("this shard is done; the results are put together by the last one")
    return evaluation


def default_folder(model: Model, plan: Plan) -> Path:
    """A folder under evaluations/, named after the model and the configuration."""
    configuration = build_manifest(model, plan, wants_chat(model.tokenizer, plan.chat), "")["configuration"]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", Path(model.spec).name).strip("-") or "model"
    return Path("evaluations") / f"{readable}-{configuration_hash(configuration)[:8]}"


def _check(model: Model, plan: Plan, shard: tuple[int, int]) -> None:
    if model.tokenizer is None:
        raise UsageError("an evaluation needs the model's tokenizer")
    if not 0 <= shard[0] < shard[1]:
        raise UsageError(f"shard {shard[0]}/{shard[1]} does not exist; shards of n are 0/n to {shard[1] - 1}/n")
    check_lengths(plan, model.anatomy.positions, model.spec)


def check_lengths(plan: Plan, positions: int | None, spec: str) -> None:
    """Refuse prompts and answers beyond the positions that a model was made for.

    Args:
        positions: of the model; None sets no limit.
        spec: its name.

    Raises:
        UsageError: too long.
    """
    longest = max(plan.lengths) + max(task.answer_tokens for task in plan.parsed_tasks)
    if positions is not None and longest > positions:
        raise UsageError(f"`lengths` {max(plan.lengths)} and the answer exceed the {positions} positions of {spec}")


def _check_prompts(model: Model, plan: Plan, work: Sequence[Work], chat: bool) -> None:
    """Refuse to hold less than a prompt that is kept whole takes, before anything is answered."""
    whole = [c.compressor for c in plan.contenders if c.compressor.keeps_prompt and c.compressor.budget.of_all]
    if not whole:
        return
    longest = max(len(_prompt(model, plan, piece, chat)[1].parts(piece.protocol)[0]) for piece in work)
    for compressor in whole:
        compressor.check_prompt(longest)


def build_manifest(model: Model, plan: Plan, chat: bool, command: str) -> dict[str, Any]:
    """What an evaluation's folder says about it beside results."""
    card = Card.of(model)
    return {
        "configuration": {
            "model": model.spec,
            **model_configuration(card),
            "dtype": str(model.dtype).removeprefix("torch."),
            **plan.configuration(),
            "chat": chat,
            "end_tokens": sorted(end_tokens(model)),
        },
        "model": card.described(max(plan.lengths)),
        **circumstances({"device": str(model.device), "threads": torch.get_num_threads()}, command),
    }


def answer_item(model: Model, plan: Plan, work: Work, chat: bool) -> list[dict[str, Any]]:
    """The rows of one item under one protocol, one per contender, in the plan's order.

    Raises:
        ForwardInfluenceError: it has tokens that the model does not know.
    """
    task = work.task
    item, prompt = _prompt(model, plan, work, chat)
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
    seed = plan.seed * 1_000_003 + work.index
    answered = _prefill_only if plan.every is None else _while_compressing
    rows = []
    found = answered(model, plan.contenders, context, question, task, seed)
    for contender, (answer, costs) in zip(plan.contenders, found, strict=True):
        row = {**shared, "compressor": contender.name, "budget": contender.budget, **costs}
        row |= {"response": answer.text, "new_tokens": answer.tokens, "streams": answer.streams}
        row |= {"answer_seconds": answer.seconds, "score": float(task.score(item, answer.text))}
        rows.append(row)
    return rows


def _prompt(model: Model, plan: Plan, work: Work, chat: bool) -> tuple[Item, Prompt]:
    item: Item = work.task.item(work.index, work.length, counter(model.tokenizer), plan.seed)
    return item, make_prompt(model.tokenizer, item.context, item.question, item.answer_prefix, chat)


def _held(outcome: Outcome) -> dict[str, Any]:
    """What was held, pinned and chosen, as columns."""
    first, last = outcome.ends or (None, None)
    return {**outcome_columns(outcome), "pinned_first": first, "pinned_last": last, "grain": outcome.grain}


def _prefill_only(
    model: Model, found: Sequence[Contender], context: Tensor, question: Tensor, task: Task, seed: int
) -> list[tuple[Answer, dict[str, Any]]]:
    """One recorded pass for all contenders, then their answers side by side."""
    clock = Clock(model.device)
    trace = record(model, context, needs_of(found), span=len(context) + len(question) + task.answer_tokens)
    prefill = clock.lap()
    caches, keeps, costs = [], [], []
    for contender in found:
        clock.lap()
        keep = contender.keep(trace, seed)
        cache = trace.cache.branch(keep, 0)
        seconds = clock.lap()
        caches.append(cache)
        keeps.append(keep)
        costs.append(
            {
                "cache_bytes": cache.bytes(),
                "full_bytes": caches[0].bytes(),
                "prefill_seconds": prefill,
                "compress_seconds": seconds,
            }
        )
    answers = answer_side_by_side(model, caches, question, task.answer_tokens, task.until, can_stack(trace))
    for contender, keep, answer, cost in zip(found, keeps, answers, costs, strict=True):
        read = len(question) + max(0, answer.tokens - 1)  # the last token of an answer is not read any more
        cost.update(_held(contender.outcome(trace, keep, read)))
    return list(zip(answers, costs, strict=True))


def _while_compressing(
    model: Model, found: Sequence[Contender], context: Tensor, question: Tensor, task: Task, seed: int
) -> list[tuple[Answer, dict[str, Any]]]:
    """Each contender reads the context and generates by itself, its cache compressed as the answer grows."""
    result = []
    for contender in found:
        grown = answer_while_compressing(model, contender, context, question, task.answer_tokens, task.until, seed)
        costs = {
            **_held(grown.outcome),
            "cache_bytes": grown.bytes,
            "full_bytes": grown.full_bytes,
            "prefill_seconds": grown.prefill_seconds,
            "compress_seconds": grown.compress_seconds,
        }
        result.append((grown.answer, costs))
    return result
