"""`compare`: rules against a baseline, with intervals, over the documents of one or several runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.summary import remarks
from forward_influence.cli.tables import Format, interval, number, p_value
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.analysis.compare import Comparison


class Part(StrEnum):
    """Which of the tables to show."""

    comparison = "comparison"
    decay = "decay"
    crossovers = "crossovers"
    controls = "controls"
    effects = "effects"


DEFAULT_PARTS = (Part.comparison, Part.decay, Part.crossovers)
TITLES = {
    Part.comparison: "Influence near, middle and far",
    Part.decay: "Decay with distance: (d + 1) ** -exponent, or exp(-d / length), whichever AIC prefers",
    Part.crossovers: "Crossovers: the distance from which the first rule's influence exceeds the second's",
    Part.controls: "Multiple of the controls, by distance",
    Part.effects: "Direct and indirect influence, by distance",
}
#: Columns shown only where they tell rows apart.
VARYING = ("budget", "mode", "effect", "layers")


def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are read together.", metavar="RUN...")],
    baseline: Annotated[
        str, typer.Option(help="Rule to compare with; `position-matched` takes each rule's own control.")
    ] = "random",
    form: Annotated[Format, typer.Option("--format", help="How to write the tables.")] = Format.table,
    show: Annotated[
        list[Part] | None, typer.Option(help="Tables to show, repeatable.  [default: comparison, decay, crossovers]")
    ] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Only this budget, repeatable.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Field of the documents whose groups are the unit, such as `author`.")
    ] = None,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Bootstrap intervals over documents rather than t-intervals on logs.")
    ] = False,
    crossover: Annotated[
        list[str] | None,
        typer.Option(help="A,B: the distance from which A exceeds B, repeatable.  [default: every pair of rules]"),
    ] = None,
) -> None:
    """Compare rules with a baseline on the same documents: ratios with intervals, decay laws, crossovers."""
    from forward_influence.analysis.compare import compare
    from forward_influence.runs import open_run

    chosen = list(show or ([Part.comparison] if form is Format.csv else DEFAULT_PARTS))
    if form is Format.csv and len(chosen) > 1:
        raise UsageError("csv holds one table; give --show once, or take --format json")
    found = compare(
        [open_run(folder) for folder in runs],
        baseline,
        budgets=budget or (),
        cluster=cluster,
        method="bootstrap" if bootstrap else "t",
        pairs=None if not crossover else [_pair(text) for text in crossover],
    )
    typer.echo(_written(found, chosen, form), nl=False) if form is not Format.table else _shown(found, chosen)


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


def _frame(found: Comparison, part: Part) -> pd.DataFrame:
    return found.table if part is Part.comparison else getattr(found, part.value)


def _written(found: Comparison, parts: list[Part], form: Format) -> str:
    if form is Format.csv:
        return tables.csv(_frame(found, parts[0]))
    if form is Format.json:
        content: dict[str, Any] = {part.value: tables.records(_frame(found, part)) for part in parts}
        return tables.as_json({**content, "notes": found.notes})
    pieces = [tables.text(readable(found, part), form, TITLES[part]) for part in parts if len(_frame(found, part))]
    mark = "% " if form is Format.latex else "- "
    return "\n".join([*pieces, *(mark + line for line in [*found.notes, *remarks(found.table)])]) + "\n"


def _shown(found: Comparison, parts: list[Part]) -> None:
    out = tables.console()
    for part in parts:
        if len(_frame(found, part)):
            out.print(tables.rich_table(readable(found, part), TITLES[part], out.width))
        elif part in (Part.effects, Part.controls):
            needed = "both effects" if part is Part.effects else "a control"
            out.print(f"{TITLES[part]}: nothing to show, the run measured no rule with {needed}", markup=False)
    for line in [*found.notes, *remarks(found.table)]:
        out.print(line, markup=False, style="dim", soft_wrap=True)


def readable(found: Comparison, part: Part) -> pd.DataFrame:
    """One of the tables as strings, values with their intervals."""
    import pandas as pd

    frame = _frame(found, part)
    maker = {
        Part.comparison: _comparison,
        Part.decay: _decay,
        Part.crossovers: _crossovers,
        Part.controls: _controls,
        Part.effects: _effects,
    }[part]
    varying = [name for name in VARYING if name in frame and frame[name].nunique() > 1]
    rows = []
    for row in frame.to_dict("records"):
        cells = maker(row)
        first = next(iter(cells))
        rows.append({first: cells.pop(first), **{name: row[name] for name in varying}, **cells})
    table = pd.DataFrame(rows)
    if part is Part.comparison:
        to = [spec for spec in table["to"].unique() if spec != tables.ABSENT]
        if len(to) == 1:  # one baseline for all: into the heading
            table = table.drop(columns="to").rename(columns={"ratio [95%]": f"ratio to {to[0]} [95%]"})
    return table


def _with(row: dict[str, Any], name: str, digits: int = 3) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits)


def _comparison(row: dict[str, Any]) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "zone": row["zone"],
        "mean KL [95%]": _with(row, "kl"),
        "ratio [95%]": _with(row, "ratio"),
        "to": row["baseline"] or tables.ABSENT,
        "p (Holm)": p_value(row["p_holm"]),
        "effect size": number(row["rank_biserial"], 2),
        "wins": f"{row['wins']}/{row['n']}" if row["baseline"] else tables.ABSENT,
    }


def _decay(row: dict[str, Any]) -> dict[str, str]:
    law = {"power": _with(row, "exponent"), "exponential": _with(row, "length")}
    return {
        "rule": row["selector"],
        "law": {"power": "exponent", "exponential": "length"}.get(row["model"], tables.ABSENT),
        "fitted [95%]": law.get(row["model"], tables.ABSENT),
        "half-distance [95%]": interval(row["half_distance"], row["half_low"], row["half_high"]),
        "near share [95%]": _with(row, "near_share", 2),
        "far share [95%]": _with(row, "far_share", 2),
    }


def _crossovers(row: dict[str, Any]) -> dict[str, str]:
    return {"rule": row["rule"], "over": row["over"], "exceeds it": row["text"], "documents": str(row["n"])}


def _controls(row: dict[str, Any]) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "control": row["control_selector"],
        "distance": f"{row['low']}-{row['high'] - 1}",
        "ratio [95%]": _with(row, "ratio"),
        "same grain": "yes" if row["same_grain"] else "no",
    }


def _effects(row: dict[str, Any]) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "distance": f"{row['low']}-{row['high'] - 1}",
        "direct share [95%]": _with(row, "direct_share"),
        "indirect share [95%]": _with(row, "remainder_share"),
        "indirect, nats [95%]": _with(row, "remainder"),
    }
