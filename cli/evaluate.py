"""`evaluate`: task accuracy with a compressed cache, paired with the full one on the same items."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.analysis.formatting.held_words import HEADING, held_cell
from forward_influence.cli import tables
from forward_influence.cli.tables import Format, interval, p_value
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.evaluation.run import Plan
    from forward_influence.storage.evaluation import Evaluation

DEFAULT_COMPRESSORS = ["attention", "infokv", "pyramid", "expected-attention", "h2o", "streaming", "random"]
DEFAULT_TASKS = ["needle", "variables", "facts"]


class Protocol(StrEnum):
    """When the question is known."""

    seen = "seen"
    unseen = "unseen"
    both = "both"


class Layout(StrEnum):
    """How rows and columns are laid out."""

    long = "long"
    paper = "paper"


@dataclass(frozen=True)
class Holding:
    """How much compressors hold and what they always keep, as typed."""

    budget: list[str] | None
    match_held: list[int] | None
    protect_first: int
    protect_last: str | None


def evaluate_command(
    model: Annotated[
        str, typer.Option(help="A name from `models`, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    compressor: Annotated[
        list[str] | None, typer.Option(help="NAME[:key=value,...]; repeatable. The full cache is always added.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Fraction of the tokens seen (0.2) or count of tokens (200); repeatable.")
    ] = None,
    match_held: Annotated[
        list[int] | None,
        typer.Option(help="Instead of --budget: entries that every compressor holds; repeatable.", show_default=False),
    ] = None,
    protect_first: Annotated[int, typer.Option(help="First tokens that are always kept (attention sinks).")] = 4,
    protect_last: Annotated[
        str | None,
        typer.Option(
            help="Last tokens that are always kept: a count, or a share of what is kept (0.25); at most half of it.",
            show_default="64",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="needle, needle-multikey, needle-multivalue, variables, facts, reasoning, reasoning-cot; each with "
            "[:key=value,...]; repeatable."
        ),
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of context and question; repeatable.")] = None,
    items: Annotated[int, typer.Option(help="Problems per task and length.")] = 100,
    protocol: Annotated[
        Protocol,
        typer.Option(help="seen: the question is compressed with the context; unseen: it comes after."),
    ] = Protocol.both,
    every: Annotated[
        int | None, typer.Option(help="Compress again after so many generated tokens.  [default: prefill only]")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template.  [default: where there is one]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the items and of random rules.")] = 0,
    baseline: Annotated[str, typer.Option(help="What differences are paired with, full or a compressor.")] = "full",
    form: Annotated[Format, typer.Option("--format", help="How to write the table.")] = Format.table,
    layout: Annotated[
        Layout | None,
        typer.Option(help="long: a row each, with intervals; paper: compressors by budgets.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.  [default: evaluations/, named after the configuration]")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Show the table of this folder and evaluate nothing.", show_default=False)
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: do the i-th of n parts; run all n with one --out.")] = "0/1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
) -> None:
    """Evaluate compressors on tasks that need no network; the same command again continues."""
    from forward_influence.storage.evaluation import open_evaluation

    if results is None:
        holding = Holding(budget, match_held, protect_first, protect_last)
        plan = _plan(task, compressor, holding, length, items, protocol, every, chat, seed)
        evaluation = _evaluated(model, plan, out, _shard(shard), device, dtype)
    else:
        evaluation = open_evaluation(results)
    _show(evaluation, baseline, form, layout)
    if form is Format.table:
        typer.echo(f"results: {evaluation.folder}")
        typer.echo(f"picture: forward-influence plot {evaluation.folder} --kind retention")


def _plan(
    task: list[str] | None,
    compressor: list[str] | None,
    holding: Holding,
    length: list[int] | None,
    items: int,
    protocol: Protocol,
    every: int | None,
    chat: bool | None,
    seed: int,
) -> Plan:
    from forward_influence.data.tasks import parse_task
    from forward_influence.evaluation.run import Plan

    return Plan(
        tasks=tuple(parse_task(text) for text in task or DEFAULT_TASKS),
        compressors=tuple(compressor or DEFAULT_COMPRESSORS),
        budgets=tuple(holding.budget or ([] if holding.match_held else ["0.4", "0.2"])),
        match_held=tuple(holding.match_held or ()),
        protect_first=holding.protect_first,
        protect_last=holding.protect_last,
        lengths=tuple(length or [1000]),
        items=items,
        protocols=("seen", "unseen") if protocol is Protocol.both else (protocol.value,),
        every=every,
        chat=chat,
        seed=seed,
    )


def _shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise UsageError(f"--shard {text} is not i/n, such as 0/4")
    return int(first), int(second)


def _evaluated(model: str, plan: Plan, out: Path | None, shard: tuple[int, int], device: str, dtype: str) -> Evaluation:
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.evaluation.run import default_folder, evaluate
    from forward_influence.models.loading import load_model

    loaded = load_model(model, device=device, dtype=dtype)
    return evaluate(loaded, plan, out or default_folder(loaded, plan), shard=shard, progress=TerminalProgress())


def _show(evaluation: Evaluation, baseline: str, form: Format, layout: Layout | None) -> None:
    from forward_influence.analysis.measures.accuracy import accuracy_table

    table = accuracy_table(evaluation.frame(), baseline)
    if missing := evaluation.unfinished():
        typer.echo(f"{evaluation.folder}: {missing}", err=True)
    chosen = layout or (Layout.paper if form in (Format.markdown, Format.latex) else Layout.long)
    if form in (Format.csv, Format.json):
        typer.echo(tables.text(table, form), nl=False)
        return
    for title, part, notes in _parts(table, chosen, evaluation.configuration["model"], baseline):
        if form is Format.table:
            tables.show(part, title)
            out = tables.console()
            for line in notes:
                out.print(line, markup=False, style="dim", soft_wrap=True)
        else:
            mark = "% " if form is Format.latex else "- "
            typer.echo("\n".join([tables.text(part, form, title), *(mark + line for line in notes)]))


def _parts(table: pd.DataFrame, layout: Layout, model: str, baseline: str) -> list[tuple[str, pd.DataFrame, list[str]]]:
    """Titles, frames of strings, and lines for under them; the protocol is named in every title."""
    from forward_influence.analysis.measures.accuracy import accuracy_notes, paper_layout

    found = []
    for length in table["length"].unique():
        for protocol in table["protocol"].unique():
            part = table[(table["length"] == length) & (table["protocol"] == protocol)]
            if part.empty:
                continue
            notes = accuracy_notes(part, baseline)
            fewest, most = int(part["items"].min()), int(part["items"].max())
            items = str(most) if fewest == most else f"{fewest} to {most}"
            title = f"{model}, question {protocol}, {length} tokens, {items} items"
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
            HEADING: held_cell(r),
            "cache": f"{r['cache_bytes'] / r['full_bytes']:.0%}",
            "compressing": f"{1000 * r['compress_seconds']:.0f} ms",
        }
        for r in part.to_dict("records")
    ]
    return pd.DataFrame(rows)
