"""`report`: one self-contained HTML file on one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from forward_influence.cli.options import configured
from forward_influence.cli.reading import Reading
from forward_influence.cli.wording import in_options
from forward_influence.errors import ForwardInfluenceError, StorageError
from forward_influence.utils.configuration import BASICS, Configuration, described, option


@described
@dataclass(frozen=True)
class Page(Configuration):
    """Where the report goes."""

    out: Path = option(Path("report.html"), "File to write.", BASICS)
    title: str | None = option(None, "Heading of the page.", BASICS, shown="the names of the runs")


@configured
def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folders; several are compared, or stand side by side.", metavar="RUN..."),
    ],
    reading: Reading,
    page: Page,
) -> None:
    """Write a report to send to a colleague: findings, pictures, tables, and the text that rules select."""
    from forward_influence.analysis.report.page import report
    from forward_influence.storage.run import open_run
    from forward_influence.utils.files import write_whole

    made = report(
        [open_run(folder) for folder in runs],
        baseline=reading.baseline,
        budgets=reading.budgets,
        **reading.inference,
        title=page.title,
        wording=in_options,
    )
    out, data = page.out, made.html.encode()
    try:
        write_whole(out, data)
    except StorageError as error:
        cause = getattr(error.__cause__, "strerror", None) or error
        raise ForwardInfluenceError(f"cannot write {out} ({cause}); choose another `out`") from error
    for group in made.findings:
        if group.heading:
            typer.echo(f"{group.heading}:")
        for sentence in group.sentences:
            typer.echo(f"- {in_options(sentence)}")
    for note in made.notes:
        typer.echo(in_options(note))
    typer.echo(f"written to {out} ({len(data) / 1e6:.1f} MB, opens in any browser, needs no network)")
