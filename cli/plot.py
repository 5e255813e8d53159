"""`plot`: one picture of one or several runs, written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.analysis.plots import registry
from forward_influence.cli.options import Only, configured
from forward_influence.cli.reading import Reading
from forward_influence.cli.wording import in_options
from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean
from forward_influence.utils.configuration import BASICS, READING, Configuration, described, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@described
@dataclass(frozen=True)
class Picked(Configuration):
    """What is drawn, and where it goes."""

    kind: str = option("decay", f"{', '.join(registry.kind_names())}.", BASICS)
    out: Path | None = option(
        None, "File to write: .png, .svg or .pdf.", BASICS, shown="RUN/plots/KIND.png; of an address KIND.png"
    )
    selectors: tuple[str, ...] = option((), "Only this rule, repeatable.", READING, typed="selector", shown="all")
    bin_width: int | None = option(
        None, "Tokens per bin of distance.", READING, least=1, shown="128, less for short continuations"
    )
    log_bins: bool = option(False, "Log-spaced bins instead of equal ones.", READING)


@configured
def plot_command(
    runs: Annotated[
        list[str], typer.Argument(help="Run folders; each of several has panels of its own.", metavar="RUN...")
    ],
    reading: Annotated[Reading, Only(baseline_help="The rule that ratios are taken to.")],
    picked: Picked,
) -> None:
    """Draw a run: influence against distance, ratios, overlaps, where and what rules select."""
    from forward_influence.analysis.formatting import style
    from forward_influence.analysis.plots.data import PlotData
    from forward_influence.storage.evaluation import open_evaluation
    from forward_influence.storage.remote import is_address
    from forward_influence.storage.run import open_run

    chosen = registry.kind_of(picked.kind)
    beside = Path() if is_address(runs[0]) else Path(runs[0], "plots")
    path = beside / f"{chosen.name}.png" if picked.out is None else picked.out
    ending = path.suffix.lower().lstrip(".")
    if ending not in style.FORMATS:
        known = ", ".join(f".{e}" for e in style.FORMATS)
        raise UsageError(f"cannot write '{path.name}'{did_you_mean(ending, style.FORMATS)}; `out` must end in {known}")
    remarks: list[str] = []
    if chosen.reads == "evaluation":
        evaluations = [open_evaluation(folder) for folder in runs]
        figure = registry.draw(chosen.name, evaluations)
        remarks = [f"{e.folder}: {missing}" for e in evaluations if (missing := e.unfinished())]
    else:
        data = PlotData(
            [open_run(folder) for folder in runs],
            width=picked.bin_width,
            log=picked.log_bins,
            selectors=picked.selectors,
            budgets=reading.budgets,
            baseline=reading.baseline,
            **reading.inference,
        )
        figure = registry.draw(chosen.name, data)
        remarks = data.remarks(chosen.needs_selections)
    save_picture(figure, path)
    for line in [chosen.summary, *remarks, f"written to {path}"]:
        typer.echo(in_options(line))


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure.

    Raises:
        ForwardInfluenceError: it cannot be written there.
    """
    from forward_influence.analysis.formatting import style

    try:
        style.save(figure, path)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {path} ({error.strerror}); choose another `out`") from error
