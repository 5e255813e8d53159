"""`compare`: rules against a baseline, with intervals, over the documents of one or several runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.compare_tables import TITLES, Part, readable
from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Equal, Reading
from forward_influence.cli.tables import Format
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.analysis.measures.compare import Comparison
    from forward_influence.storage.run import Run

DEFAULT_PARTS = (Part.comparison, Part.means, Part.decay, Part.crossovers)
#: Digits of numbers in a terminal that is wide enough, and in one that is not.
_WIDE, _NARROW = 3, 2


@configured
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Run folders; several are read together.", metavar="RUN...")],
    reading: Annotated[
        Reading, Only(baseline_help="Rule to compare with; `position-matched` takes each rule's own control.")
    ],
    equal: Equal,
    form: Annotated[Format, typer.Option("--format", help="How to write the tables.")] = Format.table,
    show: Annotated[
        list[Part] | None,
        typer.Option(help="Tables to show, repeatable.  [default: comparison, means, decay, crossovers]"),
    ] = None,
    crossover: Annotated[
        list[str] | None,
        typer.Option(help="A,B: the distance from which A exceeds B, repeatable.  [default: every pair of rules]"),
    ] = None,
) -> None:
    """Compare rules with a baseline on the same documents: means, ratios, decay laws, crossovers, with intervals."""
    from forward_influence.analysis.measures.compare import compare, measured_budget
    from forward_influence.analysis.measures.further import further_notes, further_tables
    from forward_influence.analysis.measures.selected import selection_tables
    from forward_influence.analysis.reading.curves import named
    from forward_influence.storage.run import open_run

    opened = [open_run(folder) for folder in runs]
    default = [Part.comparison] if form is Format.csv else [*_planned(opened), *DEFAULT_PARTS]
    chosen = list(dict.fromkeys(show or default))
    if form is Format.csv and len(chosen) > 1:
        raise UsageError("csv holds one table; give --show once, or take --format json")
    pairs = None if not crossover else [_pair(text) for text in crossover]
    found = compare(opened, reading.baseline, budgets=reading.budgets, pairs=pairs, **reading.inference)
    kept = list(found.table["budget"].unique())
    selected = selection_tables(
        named(opened),
        [part.attribute for part in chosen],
        budgets=[measured_budget(text, kept) for text in reading.budgets or kept],
        **reading.inference,
    )
    options = {"baseline": reading.baseline, "margin": equal.margin}
    further = further_tables(found, opened, [part.attribute for part in chosen], cluster=reading.cluster, **options)
    made = {**selected, **further}
    frames = {
        part: made[part.attribute] if part.attribute in made else getattr(found, part.attribute) for part in chosen
    }
    notes = _notes(found, frames) + further_notes(found, {p.attribute: f for p, f in frames.items()}, **options)
    typer.echo(_written(notes, frames, form), nl=False) if form is not Format.table else _shown(notes, frames)


def _pair(text: str) -> tuple[str, str]:
    """ "entropy,attention" as a pair; parameters with commas are told from the pair by the text before them."""
    halves = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == ","]
    # the right comma is the one after which a rule's name begins, not key=value
    whole = [(a, b) for a, b in halves if a and b and "=" not in b.split(",")[0].split(":")[0]]
    if len(whole) != 1:
        raise UsageError(
            f"--crossover takes two rules with a comma between them, such as entropy,attention; not {text!r}"
        )
    return whole[0]


def _planned(runs: list[Run]) -> list[Part]:
    """The answers to a plan stand first, where a run has one."""
    return [Part.plan] if any(run.plan is not None for run in runs) else []


def _written(notes: list[str], frames: dict[Part, pd.DataFrame], form: Format) -> str:
    if form is Format.csv:
        return tables.csv(next(iter(frames.values())))
    if form is Format.json:
        content: dict[str, Any] = {part.value: tables.records(frame) for part, frame in frames.items()}
        return tables.as_json({**content, "notes": notes})
    pieces = [tables.text(readable(f, part, _WIDE), form, TITLES[part]) for part, f in frames.items() if len(f)]
    mark = "% " if form is Format.latex else "- "
    return "\n".join([*pieces, *(mark + line for line in notes)]) + "\n"


def _shown(notes: list[str], frames: dict[Part, pd.DataFrame]) -> None:
    out = tables.console()
    for part, frame in frames.items():
        if not len(frame):
            out.print(f"{TITLES[part]}: nothing to show, {part.needs}", markup=False)
            continue
        table = readable(frame, part, _WIDE)
        if not tables.fits(table, out.width):
            table = readable(frame, part, _NARROW)
        tables.show(table, TITLES[part], out)
    for line in notes:
        out.print(line, markup=False, style="dim", soft_wrap=True)


def _notes(found: Comparison, frames: dict[Part, pd.DataFrame]) -> list[str]:
    """What to say under these tables."""
    from forward_influence.analysis.measures.notes import flag_remarks
    from forward_influence.analysis.measures.selected import NOTES

    lines = found.notes_about([part.about for part in frames])
    lines += [NOTES[part.attribute] for part in frames if part.of_selections]
    return lines + (flag_remarks(found.table) if Part.comparison in frames else [])
