"""The choices of an evaluation: what the command line, `--config` files, Python and the manifest all read.

Defined apart from `run.Plan`, which checks them, so that a command's help need not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.data.tasks.base import Task
from forward_influence.utils.configuration import BASICS, BUDGETS, MEASURED, Configuration, described, option


@described
@dataclass(frozen=True)
class EvaluationChoices(Configuration):
    """What is evaluated, as it is asked for."""

    compressors: tuple[str, ...] = option(
        ("attention", "infokv", "pyramid", "expected-attention", "h2o", "streaming", "random"),
        "NAME[:key=value,...]; repeatable. The full cache is always added.",
        BASICS,
        typed="compressor",
    )
    tasks: tuple[str | Task, ...] = option(
        ("needle", "variables", "facts"),
        "needle, needle-multikey, needle-multivalue, variables, facts, reasoning, reasoning-cot, thinking, passcode; "
        "each with [:key=value,...]; repeatable.",
        BASICS,
        typed="task",
    )
    lengths: tuple[int, ...] = option((1000,), "Tokens of context and question; repeatable.", BASICS, typed="length")
    items: int = option(100, "Problems per task and length.", BASICS, least=1, most=1_000_000)
    protocol: str = option(
        "both",
        "seen: the question is compressed with the context; unseen: it comes after; or both.",
        MEASURED,
        choices=("seen", "unseen", "both"),
    )
    batch: int | None = option(
        None,
        "Answers that are generated side by side, at most.",
        BASICS,
        least=1,
        most=1_000_000,
        shown="all of an item",
    )
    runs: int = option(
        1, "Answers to each item, at a temperature above 0; all compressors draw alike.", BASICS, least=1, most=1000
    )
    temperature: float = option(
        0.0, "0 is greedy; otherwise tokens are drawn from the whole distribution.", MEASURED, least=0
    )
    chat: bool | None = option(None, "Use the chat template.", MEASURED, shown="where there is one")
    seed: int = option(0, "Of the items and of random rules.", MEASURED)
    budgets: tuple[str, ...] = option(
        (),
        "Fraction of the tokens seen (0.2) or count of tokens (200); repeatable.",
        BUDGETS,
        typed="budget",
        shown="0.4 and 0.2",
    )
    match_held: tuple[int, ...] = option(
        (), "Instead of budgets: entries that every compressor holds; repeatable.", BUDGETS, shown="budgets decide"
    )
    protect_first: int = option(4, "First tokens that are always kept (attention sinks).", BUDGETS, least=0)
    protect_last: int | float | str | None = option(
        None,
        "Last tokens that are always kept: a count, or a share of what is kept (0.25); at most half of it.",
        BUDGETS,
        shown="64",
    )
    keep_prompt: str | None = option(
        None,
        "Whose prompts stay whole while the answer grows: all compressors', none's, or each its own way.",
        BUDGETS,
        choices=("all", "none", "own"),
        shown="all, where sizes allow",
    )
    every: int | None = option(
        None,
        "Compress again after so many generated tokens.",
        BUDGETS,
        least=1,
        most=1 << 30,
        shown="after the prefill only",
    )
