"""Task accuracy under compressed caches: one prefill per item, then a short answer from every compressor's cache.

All compressors read the same recorded pass, answer the same items, and are answered side by side in one batch, so that
an item costs one prefill and one short decode. With `every`, the cache is compressed again while the answer grows, and
each compressor generates by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.evaluation.answering import (
    end_tokens,
)
from forward_influence.evaluation.items import answer_item, prompt_of
from forward_influence.evaluation.plan import Plan, Work
from forward_influence.execution.run import model_configuration
from forward_influence.models.info import Card
from forward_influence.models.loading import Model
from forward_influence.storage.evaluation import Evaluation, create_or_continue
from forward_influence.storage.manifest import circumstances, configuration_hash
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.tokenization import wants_chat


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
    longest = max(len(prompt_of(model, plan, piece, chat)[1].parts(piece.protocol)[0]) for piece in work)
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
        **circumstances(
            {"device": str(model.device), "threads": torch.get_num_threads(), "batch": plan.batch}, command
        ),
    }
