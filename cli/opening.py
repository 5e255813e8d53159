"""Opening the run folders that a command is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forward_influence.runs import Run


def open_runs(folders: Sequence[str]) -> list[Run]:
    """The runs in these folders, or at the addresses that `open_run` takes.

    Raises:
        UsageError: there is no readable run in one of them.
    """
    from forward_influence.runs import open_run

    return [open_run(named(folder)) for folder in folders]


def named(folder: str) -> str:
    """A folder by a path that ends in its name: "." and ".." have none, and results are called by it."""
    return str(Path(folder).resolve()) if Path(folder).name in ("", "..") else folder
