"""`compare`: rules against a baseline, with intervals, over the documents of one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.compare_tables import TITLES, Part, readable
from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Reading
from forward_influence.cli.tables import Format, Shown
from forward_influence.cli.wording import in_options
from forward_influence.errors import UsageError
from forward_influence.utils.configuration import READING, Configuration, described, option

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.analysis.measures.compare import Comparison

DEFAULT_PARTS = (Part.comparison, Part.means, Part.decay, Part.crossovers)
#: Digits of numbers in a terminal that is wide enough, and in one that is not.
_WIDE, _NARROW = 3, 2


@described
@dataclass(frozen=True)
class Wanted(Configuration):
    """Which tables, of what."""

    show: tuple[Part, ...] = option(
        (), "Tables to show, repeatable.", READING, shown=", ".join(part.value for part in DEFAULT_PARTS)
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
    wanted: Wanted,
    shown: Annotated[Shown, Only(form_help="How to write the tables.")],
) -> None:
    """Compare rules with a baseline on the same documents: means, ratios, decay laws, crossovers, with intervals."""
    from forward_influence.analysis.measures.compare import compare, measured_budget
    from forward_influence.analysis.measures.selected import selection_tables
    from forward_influence.analysis.reading.curves import named
    from forward_influence.storage.run import open_run

    form = shown.form
    chosen = list(dict.fromkeys(wanted.show or ([Part.comparison] if form is Format.csv else DEFAULT_PARTS)))
    if form is Format.csv and len(chosen) > 1:
        raise UsageError("csv holds one table; give `show` once, or take `form` json")
    opened = [open_run(folder) for folder in runs]
    pairs = [_pair(text) for text in wanted.pairs] or None
    found = compare(opened, reading.baseline, budgets=reading.budgets, pairs=pairs, **reading.inference)
    kept = list(found.table["budget"].unique())
    selected = selection_tables(
        named(opened),
        [part.attribute for part in chosen],
        budgets=[measured_budget(text, kept) for text in reading.budgets or kept],
        **reading.inference,
    )
    frames = {
        part: selected[part.attribute] if part.of_selections else getattr(found, part.attribute) for part in chosen
    }
    typer.echo(_written(found, frames, form), nl=False) if form is not Format.table else _shown(found, frames)


def _pair(text: str) -> tuple[str, str]:
    """ "entropy,attention" as a pair; parameters with commas are told from the pair by the text before them."""
    halves = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == ","]
    # the right comma is the one after which a rule's name begins, not key=value
    whole = [(a, b) for a, b in halves if a and b and "=" not in b.split(",")[0].split(":")[0]]
    if len(whole) != 1:
        raise UsageError(f"`pairs` takes two rules with a comma between them, such as entropy,attention; not {text!r}")
    return whole[0]


def _written(found: Comparison, frames: dict[Part, pd.DataFrame], form: Format) -> str:
    if form is Format.csv:
        return tables.csv(next(iter(frames.values())))
    if form is Format.json:
        content: dict[str, Any] = {part.value: tables.records(frame) for part, frame in frames.items()}
        return tables.as_json({**content, "notes": _notes(found, frames)})
    pieces = [tables.text(readable(f, part, _WIDE), form, TITLES[part]) for part, f in frames.items() if len(f)]
    mark = "% " if form is Format.latex else "- "
    return "\n".join([*pieces, *(mark + line for line in _notes(found, frames))]) + "\n"


def _shown(found: Comparison, frames: dict[Part, pd.DataFrame]) -> None:
    out = tables.console()
    for part, frame in frames.items():
        if not len(frame):
            out.print(f"{TITLES[part]}: nothing to show, {part.needs}", markup=False)
            continue
        table = readable(frame, part, _WIDE)
        if not tables.fits(table, out.width):
            table = readable(frame, part, _NARROW)
        tables.show(table, TITLES[part], out)
    for line in _notes(found, frames):
        out.print(line, markup=False, style="dim", soft_wrap=True)


def _notes(found: Comparison, frames: dict[Part, pd.DataFrame]) -> list[str]:
    """What to say under these tables."""
    from forward_influence.analysis.measures.notes import flag_remarks
    from forward_influence.analysis.measures.selected import NOTES

    lines = found.notes_about([part.about for part in frames])
    lines += [NOTES[part.attribute] for part in frames if part.of_selections]
    lines += flag_remarks(found.table) if Part.comparison in frames else []
    return [in_options(line) for line in lines]
