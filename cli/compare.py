"""`compare`: rules against a baseline, with intervals, over the documents of one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.analysis.tables.measure import Measure, readable
from forward_influence.analysis.tables.registry import measure_of, measures, table_names
from forward_influence.cli import tables
from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Equal, Reading
from forward_influence.cli.tables import Format, Shown
from forward_influence.cli.wording import in_options
from forward_influence.errors import UsageError
from forward_influence.utils.configuration import READING, Configuration, described, option

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.analysis.measures.compare import Comparison

#: The table that is written where there can be but one.
ALONE = "comparison"
#: Digits of numbers in a terminal that is wide enough, and in one that is not.
_WIDE, _NARROW = 3, 2


@described
@dataclass(frozen=True)
class Wanted(Configuration):
    """Which tables, of what."""

    show: tuple[str, ...] = option(
        (),
        f"Tables to show: {', '.join(table_names())}; repeatable.",
        READING,
        choices=table_names(),
        shown="comparison, means, decay, crossovers",
    )
    pairs: tuple[str, ...] = option(
        (),
        "A,B: the distance from which A exceeds B, repeatable.",
        READING,
        typed="crossover",
        shown="every pair of rules",
    )


@configured
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Run folders; several are read together.", metavar="RUN...")],
    reading: Annotated[
        Reading, Only(baseline_help="Rule to compare with; `position-matched` takes each rule's own control.")
    ],
    equal: Equal,
    wanted: Wanted,
    shown: Annotated[Shown, Only(form_help="How to write the tables.")],
) -> None:
    """Compare rules with a baseline on the same documents: means, ratios, decay laws, crossovers, with intervals."""
    from forward_influence.analysis.measures.compare import compare, measured_budget
    from forward_influence.analysis.measures.selected import Selected
    from forward_influence.analysis.reading.curves import named
    from forward_influence.storage.run import open_run

    form = shown.form
    chosen = list(dict.fromkeys(wanted.show or ([ALONE] if form is Format.csv else _by_default())))
    if form is Format.csv and len(chosen) > 1:
        raise UsageError("csv holds one table; give `show` once, or take `form` json")
    opened = [open_run(folder) for folder in runs]
    pairs = [_pair(text) for text in wanted.pairs] or None
    found = compare(
        opened, reading.baseline, budgets=reading.budgets, pairs=pairs, margin=equal.margin, **reading.inference
    )
    kept = list(found.table["budget"].unique())
    selected = Selected(
        named(opened),
        [measured_budget(text, kept) for text in reading.budgets or kept],
        reading.cluster,
        reading.inference["method"],
    )
    frames = {
        one: one.of_selections(selected) if one.selections else one.frame(found) for one in map(measure_of, chosen)
    }
    if not wanted.show:
        frames = {one: frame for one, frame in frames.items() if len(frame) or not one.optional}
    typer.echo(_written(found, frames, form), nl=False) if form is not Format.table else _shown(found, frames)


def _by_default() -> list[str]:
    return [one.name for one in measures().values() if one.by_default]


def _pair(text: str) -> tuple[str, str]:
    """ "entropy,attention" as a pair; parameters with commas are told from the pair by the text before them."""
    halves = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == ","]
    # the right comma is the one after which a rule's name begins, not key=value
    whole = [(a, b) for a, b in halves if a and b and "=" not in b.split(",")[0].split(":")[0]]
    if len(whole) != 1:
        raise UsageError(f"`pairs` takes two rules with a comma between them, such as entropy,attention; not {text!r}")
    return whole[0]


def _written(found: Comparison, frames: dict[Measure, pd.DataFrame], form: Format) -> str:
    if form is Format.csv:
        return tables.csv(next(iter(frames.values())))
    if form is Format.json:
        content: dict[str, Any] = {one.name: tables.records(frame) for one, frame in frames.items()}
        return tables.as_json({**content, "notes": _notes(found, frames)})
    pieces = [tables.text(readable(f, one, _WIDE), form, one.title) for one, f in frames.items() if len(f)]
    mark = "% " if form is Format.latex else "- "
    return "\n".join([*pieces, *(mark + line for line in _notes(found, frames))]) + "\n"


def _shown(found: Comparison, frames: dict[Measure, pd.DataFrame]) -> None:
    out = tables.console()
    for one, frame in frames.items():
        if not len(frame):
            out.print(f"{one.title}: nothing to show, {in_options(one.missing)}", markup=False)
            continue
        table = readable(frame, one, _WIDE)
        if not tables.fits(table, out.width):
            table = readable(frame, one, _NARROW)
        tables.show(table, one.title, out)
    for line in _notes(found, frames):
        out.print(line, markup=False, style="dim", soft_wrap=True)


def _notes(found: Comparison, frames: dict[Measure, pd.DataFrame]) -> list[str]:
    """What to say under these tables."""
    from forward_influence.analysis.measures.notes import flag_remarks

    lines = found.notes_about([one.about for one in frames])
    lines += [line for one in frames for line in one.notes(found, only=True) if line not in lines]
    lines += dict.fromkeys(line for frame in frames.values() for line in frame.attrs.get("notes", ()))
    lines += flag_remarks(found.table) if any(one.name == ALONE for one in frames) else []
    return [in_options(line) for line in lines]
