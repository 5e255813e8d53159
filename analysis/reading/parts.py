"""The whole parts of a run without their arrays: which documents are measured, and what was measured on each.

Checking a part means reading all of it, so it is done once per part and process, and again only when the file changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from forward_influence.errors import ForwardInfluenceError
from forward_influence.storage.run import Run
from forward_influence.storage.shards import load_part
from forward_influence.utils.files import file_sha256

#: The columns that say what a row is about.
COLUMNS = ("segment", "kind", "selector", "budget", "mode", "effect", "seed", "layers", "heads")


@dataclass(frozen=True)
class Outline:
    """A part without its arrays.

    Attributes:
        rows: the columns `COLUMNS` of every row, in order.
        selections: SHA-256 (hex) of the selections file that belongs to it; empty where there is none.
    """

    rows: tuple[dict[str, Any], ...]
    selections: str


def outline(run: Run, document: dict[str, Any]) -> Outline | None:
    """The part of a document without its arrays; None where no part reads back whole."""
    path = run.part_path(document["part"])
    try:
        state = path.stat()
    except OSError:
        return None
    return _outline(path, run.manifest["configuration_hash"], state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=10_000)
def _outline(path: Path, configuration: str, changed: int, size: int) -> Outline | None:
    try:
        part = load_part(path, configuration)
    except ForwardInfluenceError:
        return None
    rows = tuple({name: _plain(row[name]) for name in COLUMNS} for row in part.rows)
    return Outline(rows, part.selections)


def _plain(value: Any) -> Any:
    """Arrays of layers and heads as lists of numbers."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def measured(run: Run) -> list[dict[str, Any]]:
    """The documents of the run whose parts are there and whole; selections are checked where they are read."""
    return [document for document in run.documents if outline(run, document) is not None]


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    return _file_sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=10_000)
def _file_sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)
