"""`screen`: the influence of many rules, estimated from gradients instead of a forward pass each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import Given, Only, configured
from forward_influence.cli.tables import Format, Shown
from forward_influence.data.asked import Asked
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, MEASURED, Configuration, described, option

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.measurement.screening import Screened, Way


@described
@dataclass(frozen=True)
class Estimates(Configuration):
    """How influence is estimated, and what becomes of it."""

    by: str = option(
        "closing",
        "closing: gates of all candidates half closed; fisher: all open, sampled labels.",
        MEASURED,
        choices=("closing", "fisher"),
    )
    gates: int = option(1, "For closing: gate values between 1 and 0.", MEASURED, least=1)
    samples: int = option(8, "For fisher: less noise, more backward passes.", MEASURED, least=1)
    exact: bool = option(False, "Measure too, and say how well the estimates rank.", MEASURED)
    out: Path | None = option(None, "Write every estimate to this .parquet file.", BASICS, shown="the table alone")


@configured
def screen_command(
    recipe: Recipe,
    documents: Annotated[Asked, Only("documents", "max_documents", max_documents=1)],
    choices: Annotated[
        Choices,
        Only(
            "selectors",
            "budgets",
            "context",
            "continuation",
            "mode",
            "protect_first",
            "protect_last",
            "draws",
            "seed",
        ),
    ],
    estimates: Estimates,
    shown: Shown,
    given: Given,
) -> None:
    """Estimate how strongly each rule's tokens act near and far, from a few backward passes for all rules together."""
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.measurement.request import Request
    from forward_influence.measurement.screening import Way, screen_document

    out, form, exact = estimates.out, shown.form, estimates.exact
    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"cannot write {out}; `out` must end in .parquet")
    way = Way(estimates.by, estimates.samples if estimates.by == "fisher" else estimates.gates)
    request = Request(**vars(choices))
    resolved = recipe.resolved()
    request.check_positions(resolved.positions, recipe.model)
    prepared = prepare_documents(documents, request.seed, resolved, request)
    loaded = load_shown(recipe, resolved)
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
            raise ForwardInfluenceError(f"cannot write {out} ({error.strerror}); choose another `out`") from error
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
