"""`plot`: one picture of one or several runs, written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Reading
from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean


@configured
def plot_command(
    runs: Annotated[
        list[str], typer.Argument(help="Run folders; each of several has panels of its own.", metavar="RUN...")
    ],
    reading: Annotated[Reading, Only(baseline_help="The rule that ratios are taken to.")],
    kind: Annotated[
        str,
        typer.Option(help="decay, ratio, nearfar, crossover, overlap, layers, positions, tokens; retention."),
    ] = "decay",
    bin_width: Annotated[
        int | None,
        typer.Option(help="Tokens per bin of distance.", min=1, show_default="128, less for short continuations"),
    ] = None,
    log_bins: Annotated[bool, typer.Option("--log-bins", help="Log-spaced bins instead of equal ones.")] = False,
    selector: Annotated[list[str] | None, typer.Option(help="Only this rule, repeatable.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .png, .svg or .pdf.  [default: RUN/plots/KIND.png; of an address KIND.png]"),
    ] = None,
) -> None:
    """Draw a run: influence against distance, ratios, overlaps, where and what rules select."""
    from forward_influence.analysis import plots
    from forward_influence.analysis.formatting import style
    from forward_influence.storage.evaluation import open_evaluation
    from forward_influence.storage.remote import is_address
    from forward_influence.storage.run import open_run

    chosen = plots.kind(kind)
    beside = Path() if is_address(runs[0]) else Path(runs[0], "plots")
    path = beside / f"{chosen.name}.png" if out is None else out
    ending = path.suffix.lower().lstrip(".")
    if ending not in style.FORMATS:
        known = ", ".join(f".{e}" for e in style.FORMATS)
        raise UsageError(f"cannot write '{path.name}'{did_you_mean(ending, style.FORMATS)}; --out must end in {known}")
    remarks: list[str] = []
    if chosen.reads == "evaluation":
        evaluations = [open_evaluation(folder) for folder in runs]
        figure = plots.draw(chosen.name, evaluations)
        remarks = [f"{e.folder}: {missing}" for e in evaluations if (missing := e.unfinished())]
    else:
        data = plots.PlotData(
            [open_run(folder) for folder in runs],
            width=bin_width,
            log=log_bins,
            selectors=tuple(selector or ()),
            budgets=reading.budgets,
            baseline=reading.baseline,
            **reading.inference,
        )
        figure = plots.draw(chosen.name, data)
        remarks = data.remarks(chosen.needs_selections)
    try:
        style.save(figure, path)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {path} ({error.strerror}); choose another --out") from error
    for line in [chosen.summary, *remarks, f"written to {path}"]:
        typer.echo(line)
