"""The choices of a measurement: what the command line, `--config` files, Python and the manifest all read.

Defined apart from `request.Request`, which checks them against rules and compressors, so that a command's help need not
load torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.utils.configuration import BASICS, BUDGETS, MEASURED, Configuration, described, option
from forward_influence.utils.distances import BIN_WIDTH
from forward_influence.utils.ranges import whole_numbers


@described
@dataclass(frozen=True)
class Choices(Configuration):
    """The choices of a measurement, as they are made."""

    selectors: tuple[str, ...] = option(
        ("attention", "entropy", "infokv", "random"),
        "Rules: NAME[:key=value,...], file.py:Rule or module:Rule; repeatable.",
        BASICS,
        typed="selector",
    )
    budgets: tuple[str, ...] = option(
        ("0.2",),
        "Fraction of the context (0.2; for compressors of the tokens seen) or count of tokens; repeatable.",
        BUDGETS,
        typed="budget",
    )
    context: int = option(1024, "Context tokens.", BASICS, least=2, alike=True)
    continuation: int = option(3072, "Continuation tokens.", BASICS, least=3, alike=True)
    segments: int = option(1, "Context/continuation pairs per document.", MEASURED, least=1, alike=True)
    continuation_from: str = option(
        "text",
        "text: the document goes on; generate: the model does.",
        MEASURED,
        choices=("text", "generate"),
        alike=True,
    )
    measure_on: str | None = option(
        None,
        "Measure on these spans of each document (answer), however long, instead of `continuation` tokens.",
        MEASURED,
        shown="by lengths",
        metavar="SPANS",
        alike=True,
    )
    context_of: str | None = option(
        None,
        "The context ends where these spans end (prompt+thought).",
        MEASURED,
        shown="before what is measured",
        metavar="SPANS",
        alike=True,
    )
    candidates_of: str | None = option(
        None,
        "Rules choose among these spans' tokens (thought); a fractional budget is of them.",
        MEASURED,
        shown="the whole context",
        metavar="SPANS",
        alike=True,
    )
    mode: str = option("drop", "drop what is selected, or keep only that.", MEASURED, choices=("drop", "keep"))
    effect: str = option(
        "total",
        "total: damage spreads through later tokens; direct: it does not; or both.",
        MEASURED,
    )
    protect_first: int = option(4, "First tokens that are always kept (attention sinks).", BUDGETS, least=0, alike=True)
    protect_last: int | float | str | None = option(
        None,
        "Last tokens that are always kept: a count, or for compressors a share of what is kept (0.25); at most half of "
        "it. Never fewer than the widest window that a rule observes from.",
        BUDGETS,
        shown="64",
        alike=True,
    )
    draws: int = option(5, "Draws of random rules per document.", MEASURED, least=1)
    seed: int = option(0, "Of the order of documents and everything random.", MEASURED)
    temperature: float = option(1.0, "Of generated continuations; 0 is greedy.", MEASURED, alike=True)
    verify: bool = option(
        False, "Check one condition per document against a masked full pass.", MEASURED, decides=False
    )
    save_selections: bool = option(False, "Keep what was selected, for the token views.", MEASURED)
    positions_per_bin: int | None = option(
        None, "Measure at so many sampled positions of each bin.", MEASURED, shown="all", alike=True
    )
    bin_width: int = option(BIN_WIDTH, "Positions per bin that is sampled from.", MEASURED, least=1, alike=True)
    layers: tuple[int, ...] | None = option(
        None,
        "Ablate these layers only, 0-9 or 0,2,5-7.",
        MEASURED,
        shown="all full ones",
        read=lambda text: whole_numbers(text, "`layers`"),
        alike=True,
    )
    heads: tuple[int, ...] | None = option(
        None,
        "Ablate these kv heads only, 0,2.",
        MEASURED,
        shown="all",
        read=lambda text: whole_numbers(text, "`heads`"),
        alike=True,
    )
    per_layer: bool = option(False, "Ablate layer by layer, each by itself.", MEASURED)
    rerotate: bool = option(False, "Move the kept keys up to the continuation, closing the gaps.", MEASURED, alike=True)
    states: str = option(
        "keep",
        "Of hybrid models: keep what removed tokens wrote into states, or ablate that too (rules per token).",
        MEASURED,
        choices=("keep", "ablate"),
        alike=True,
    )
    compressors: tuple[str, ...] = option(
        (),
        "Instead of rules: how faithful the model stays under it; repeatable.",
        BASICS,
        typed="compressor",
        shown="none",
    )
    every: int | None = option(
        None,
        "Compressors compress again after so many tokens.",
        BUDGETS,
        shown="after the context only",
        alike=True,
    )
    match_held: tuple[int, ...] = option(
        (),
        "Instead of budgets: entries that every compressor holds per layer and head after every compression; "
        "repeatable.",
        BUDGETS,
        shown="budgets decide",
    )


@described
@dataclass(frozen=True)
class MapChoices(Configuration):
    """The choices of an influence map, as they are made; `leave_one_out.MapRequest` checks them."""

    context: int = option(128, "Context tokens; every one costs a pass over the continuation.", BASICS, least=1)
    continuation: int = option(256, "Continuation tokens.", BASICS, least=1)
    block: int = option(1, "Neighbouring tokens removed together.", MEASURED, least=1)
    stride: int | None = option(
        None, "Tokens from one block to the next, for blocks that overlap.", MEASURED, least=1, shown="block"
    )
    sentences: bool = option(False, "Remove sentences instead of blocks.", MEASURED)
    measure_on: str | None = option(
        None,
        "As of `measure`: spans of the document instead of lengths.",
        MEASURED,
        shown="by lengths",
        metavar="SPANS",
    )
    context_of: str | None = option(
        None, "As of `measure`.", MEASURED, shown="before what is measured", metavar="SPANS"
    )
    candidates_of: str | None = option(
        None, "The spans whose tokens are removed.", MEASURED, shown="the whole context", metavar="SPANS"
    )
    effect: str = option("total", "total or direct.", MEASURED)
    bin_width: int = option(32, "Positions whose mean makes one number.", MEASURED, least=1)
