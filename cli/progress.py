"""Progress in the terminal: what is being done, how far, tokens per second, time left; quiet when output is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from forward_influence.cli.wording import in_options


@contextmanager
def waiting(what: str, line: bool = False) -> Iterator[None]:
    """Shows on standard error what takes a while, as long as it does, if that is a terminal.

    Args:
        line: elsewhere, say it in a line.
    """
    if not sys.stderr.isatty():
        if line:
            typer.echo(f"{what} ...", err=True)
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    shown = Spinner("line", Text(f"{_printable(what)} ..."))  # of plain letters, which every terminal has
    with Live(shown, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False):
        yield


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


class TerminalProgress:
    """Draws a bar on standard error if that is a terminal; messages are lines there in any case."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def begin(self, total_tokens: int, what: str) -> None:
        """Start a bar of `total_tokens`."""
        if not sys.stderr.isatty() or total_tokens <= 0:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._started, self._done = time.monotonic(), 0
        self._task = self._bar.add_task(what, total=total_tokens, speed="")
        self._bar.start()

    def advance(self, tokens: int, what: str) -> None:
        """Move on by `tokens`."""
        if self._bar is None:
            return
        self._done += tokens
        speed = self._done / max(time.monotonic() - self._started, 1e-9)
        self._bar.update(self._task, advance=tokens, description=_printable(what)[:60], speed=f"{speed:,.0f} tokens/s")

    def message(self, text: str) -> None:
        """A line above the bar."""
        line = _printable(in_options(text))
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line, err=True)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
