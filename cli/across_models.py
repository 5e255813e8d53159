"""`across-models`: several models beside each other, each rule as a multiple of its own model's control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Equal, Reading
from forward_influence.cli.tables import Format, Shown, interval
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "ratios": "Each rule as a multiple of its own model's control",
    "pairs": "Those multiples beside the first model's, within documents",
    "means": "Over all models",
}


@configured
def across_models_command(
    runs: Annotated[list[str], typer.Argument(help="A run of each model, two or more.", metavar="RUN...")],
    reading: Annotated[Reading, Only("baseline", baseline_help="The control that each model's rules are set against.")],
    equal: Equal,
    shown: Annotated[Shown, Only(form_help="How to write the tables.")],
) -> None:
    """Set models beside each other on the same documents: rules as multiples of each model's own control."""
    from forward_influence.analysis.formatting.wording import join, many, varying_columns
    from forward_influence.analysis.measures.across_models import across_models
    from forward_influence.storage.run import open_run

    form = shown.form
    if form is Format.csv:
        raise UsageError("csv holds one table, and here are several; take `form` json")
    found = across_models([open_run(folder) for folder in runs], reading.baseline, equal.margin)
    frames: dict[str, pd.DataFrame] = {"ratios": found.ratios, "pairs": found.pairs, "means": found.means}
    notes = [f"{many(found.documents, 'document')} in common; ratios are geometric means over them, at 95%"]
    for reason, part in found.means[found.means["reason"] != ""].groupby("reason", sort=False):
        where = (
            ""
            if len(part) == len(found.means)
            else " of " + join([f"{r.selector} {r.zone}" for r in part.itertuples()])
        )
        notes.append(f"no mean over all models{where}: {reason}")
    if form is Format.json:
        written: dict[str, Any] = {name: tables.records(frame) for name, frame in frames.items()}
        typer.echo(tables.as_json({**written, "notes": notes}), nl=False)
        return
    out = tables.console()
    for name, frame in frames.items():
        kept = frame[frame["ratio"].notna()]
        if kept.empty:
            continue
        varying = [column for column in varying_columns(kept) if column != "run"]
        rows = _frame([_row(row, varying) for row in kept.to_dict("records")])
        if form is Format.table:
            tables.show(rows, TITLES[name], out)
        else:
            typer.echo(tables.text(rows, form, TITLES[name]))
    for line in notes:
        out.print(line, markup=False, style="dim", soft_wrap=True)


def _frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _row(row: dict[str, Any], varying: list[str]) -> dict[str, str]:
    first = {name: str(row[name]) for name in ("model",) if name in row}
    to = row.get("over", row.get("baseline"))
    mark = "*" if row.get("flagged") else ""
    return {
        "rule": row["selector"],
        **{name: str(row[name]) for name in varying},
        "zone": row["zone"],
        **first,
        **({"to": to} if to else {}),
        "ratio [95%]": interval(row["ratio"], row["ratio_low"], row["ratio_high"], 3, mark),
        **({"finding": row["finding"] or tables.ABSENT} if "finding" in row else {}),
        **({"sd of models": tables.number(row["sd_model"], 2)} if "sd_model" in row else {}),
        "documents": str(row["n"]),
    }
