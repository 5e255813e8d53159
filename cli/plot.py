"""`plot`: one picture of one or several runs, written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean


def plot_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are drawn side by side.", metavar="RUN...")],
    kind: Annotated[
        str,
        typer.Option(help="decay, ratio, nearfar, crossover, overlap, layers, positions, tokens; retention."),
    ] = "decay",
    bin_width: Annotated[int, typer.Option(help="Tokens per bin of distance.", min=1)] = 128,
    log_bins: Annotated[bool, typer.Option("--log-bins", help="Log-spaced bins instead of equal ones.")] = False,
    selector: Annotated[list[str] | None, typer.Option(help="Only this rule, repeatable.")] = None,
    budget: Annotated[str | None, typer.Option(help="Only this budget.")] = None,
    baseline: Annotated[str, typer.Option(help="The rule that ratios are taken to.")] = "random",
    out: Annotated[
        Path | None, typer.Option(help="File to write: .png, .svg or .pdf.  [default: RUN/plots/KIND.png]")
    ] = None,
) -> None:
    """Draw a run: influence against distance, ratios, overlaps, where and what rules select."""
    from forward_influence.analysis import plots, style
    from forward_influence.evaluation_store import open_evaluation
    from forward_influence.runs import open_run

    chosen = plots.kind(kind)
    path = runs[0] / "plots" / f"{chosen.name}.png" if out is None else out
    ending = path.suffix.lower().lstrip(".")
    if ending not in style.FORMATS:
        known = ", ".join(f".{e}" for e in style.FORMATS)
        raise UsageError(f"cannot write '{path.name}'{did_you_mean(ending, style.FORMATS)}; --out must end in {known}")
    if chosen.reads == "evaluation":
        figure = plots.draw(chosen.name, [open_evaluation(folder) for folder in runs])
    else:
        opened = [open_run(folder) for folder in runs]
        data = plots.PlotData(opened, bin_width, log_bins, tuple(selector or ()), budget, baseline)
        figure = plots.draw(chosen.name, data)
    try:
        style.save(figure, path)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {path} ({error.strerror}); choose another --out") from error
    typer.echo(f"{chosen.summary}\nwritten to {path}")
