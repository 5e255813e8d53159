"""`evaluate`: task accuracy with a compressed cache, paired with the full one on the same items."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from forward_influence.analysis.formatting.held_words import HEADING, answer_cell, held_cell, protection
from forward_influence.cli import tables
from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import DryRun, Given, configured
from forward_influence.cli.tables import Format, Shown, interval, p_value
from forward_influence.cli.wording import in_options
from forward_influence.errors import UsageError
from forward_influence.evaluation.choices import EvaluationChoices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import (
    BASICS,
    CLUSTER,
    READING,
    Configuration,
    described,
    option,
)

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.evaluation.plan import Plan
    from forward_influence.storage.evaluation import Evaluation


class Layout(StrEnum):
    """How rows and columns are laid out."""

    long = "long"
    paper = "paper"


@described
@dataclass(frozen=True)
class Table(Configuration):
    """Where results go, and how they are shown."""

    out: Path | None = option(None, "Folder of results.", BASICS, shown="evaluations/, named after the configuration")
    results: Path | None = option(None, "Show the table of this folder and evaluate nothing.", BASICS, shown="evaluate")
    shard: str = option("0/1", "i/n: do the i-th of n parts; run all n with one --out.", CLUSTER)
    baseline: str = option("full", "What differences are paired with, full or a compressor.", READING)
    pass_at: int | None = option(
        None, "Of several runs: the k of pass@k.", READING, least=1, shown="the number of runs"
    )
    layout: Layout | None = option(
        None,
        "long: a row each, with intervals; paper: compressors by budgets.",
        READING,
        shown="paper in markdown and latex",
    )


@configured
def evaluate_command(
    recipe: Recipe,
    choices: EvaluationChoices,
    table: Table,
    shown: Shown,
    given: Given,
    dry_run: DryRun = False,
) -> None:
    """Evaluate compressors on tasks that need no network; the same command again continues."""
    from forward_influence.evaluation.plan import Plan
    from forward_influence.storage.evaluation import open_evaluation

    if table.results is not None:
        if dry_run:
            raise UsageError("`dry_run` tells what an evaluation costs; leave it out beside `results`")
        evaluation = open_evaluation(table.results)
    else:
        plan, shard = Plan(**vars(choices)), _shard(table.shard)
        if dry_run:
            from forward_influence.cli.dry_run import show_evaluation

            show_evaluation(plan, recipe, choices, table, shown)
            return
        evaluation = _evaluated(recipe, plan, table.out, shard, given.command)
    _show(evaluation, table, shown.form)
    if shown.form is Format.table:
        typer.echo(f"results: {evaluation.folder}")
        typer.echo(f"picture: forward-influence plot {evaluation.folder} --kind retention")


def _shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise UsageError(f"`shard` {text} is not i/n, such as 0/4")
    return int(first), int(second)


def _evaluated(recipe: Recipe, plan: Plan, out: Path | None, shard: tuple[int, int], command: str) -> Evaluation:
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.evaluation.run import default_folder, evaluate

    loaded = load_shown(recipe)
    where = out or default_folder(loaded, plan)
    return evaluate(loaded, plan, where, shard=shard, command=command, progress=TerminalProgress())


def _show(evaluation: Evaluation, asked: Table, form: Format) -> None:
    from forward_influence.analysis.measures.accuracy import accuracy_table

    baseline, layout = asked.baseline, asked.layout
    table = accuracy_table(evaluation.frame(), baseline, asked.pass_at)
    if missing := evaluation.unfinished():
        typer.echo(f"{evaluation.folder}: {missing}", err=True)
    chosen = layout or (Layout.paper if form in (Format.markdown, Format.latex) else Layout.long)
    if form in (Format.csv, Format.json):
        typer.echo(tables.text(table, form), nl=False)
        return
    for title, part, notes in _parts(table, chosen, evaluation.configuration["model"], baseline):
        told = [protection(evaluation.configuration), evaluation.manifest["model"].get("holding")]
        lines = [*notes, *filter(None, told)]
        if form is Format.table:
            tables.show(part, title)
            out = tables.console()
            for line in lines:
                out.print(line, markup=False, style="dim", soft_wrap=True)
        else:
            mark = "% " if form is Format.latex else "- "
            typer.echo("\n".join([tables.text(part, form, title), *(mark + line for line in lines)]))


def _parts(table: pd.DataFrame, layout: Layout, model: str, baseline: str) -> list[tuple[str, pd.DataFrame, list[str]]]:
    """Titles, frames of strings, and lines for under them; the protocol is named in every title."""
    from forward_influence.analysis.measures.accuracy import accuracy_notes, paper_layout

    found = []
    for length in table["length"].unique():
        for protocol in table["protocol"].unique():
            part = table[(table["length"] == length) & (table["protocol"] == protocol)]
            if part.empty:
                continue
            notes = [in_options(note) for note in accuracy_notes(part, baseline)]
            fewest, most = int(part["items"].min()), int(part["items"].max())
            items = str(most) if fewest == most else f"{fewest} to {most}"
            runs = int(part["runs"].max())
            sampled = f", {runs} runs each" if runs > 1 else ""
            title = f"{model}, question {protocol}, {length} tokens, {items} items{sampled}"
            if layout is Layout.paper:
                thought = "; chain of thought / direct" if part["reasons"].any() else ""
                title = f"Accuracy (%): {title}{thought}; * differs from {baseline} (95%, paired)"
                found.append((title, paper_layout(table, protocol, length), notes))
            else:
                found.append((f"Accuracy: {title}", _long(part, baseline), notes))
    return found


def _long(part: pd.DataFrame, baseline: str) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "task": r["task"],
            "compressor": r["compressor"],
            "budget": r["budget"],
            "accuracy [95%]": interval(r["accuracy"], r["low"], r["high"], 2),
            f"minus {baseline} [95%]": interval(r["difference"], r["difference_low"], r["difference_high"], 2),
            "p": p_value(r["p"]),
            "better/worse": f"{r['better']}/{r['worse']}",
            **_of_runs(r),
            "answer": answer_cell(r),
            HEADING: held_cell(r),
            "cache": f"{r['cache_bytes'] / r['full_bytes']:.0%}",
            "compressing": f"{1000 * r['compress_seconds']:.0f} ms",
        }
        for r in part.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _of_runs(row: dict[str, Any]) -> dict[str, str]:
    """What is told of several runs only."""
    if row["runs"] == 1:
        return {}
    return {f"pass@{row['k']} [95%]": interval(row["pass_at"], row["pass_low"], row["pass_high"], 2)}
