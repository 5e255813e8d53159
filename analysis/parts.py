"""The whole parts of a run without their arrays: which documents are measured, and what was measured on each.

Checking a part means reading all of it, so it is done once per part and process, and again only when the file changes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from forward_influence.errors import ForwardInfluenceError
from forward_influence.runs import Run, read_part

#: The columns that say what a row is about.
COLUMNS = ("segment", "kind", "selector", "budget", "mode", "effect", "seed", "layers", "heads")


def outline(run: Run, document: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """The columns `COLUMNS` of every row of a document's part, in order; None where no part reads back whole."""
    path = run.part_path(document["part"])
    try:
        state = path.stat()
    except OSError:
        return None
    return _outline(path, run.manifest["configuration_hash"], state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=10_000)
def _outline(path: Path, configuration: str, changed: int, size: int) -> tuple[dict[str, Any], ...] | None:
    try:
        rows = read_part(path, configuration)
    except ForwardInfluenceError:
        return None
    return tuple({name: _plain(row[name]) for name in COLUMNS} for row in rows)


def _plain(value: Any) -> Any:
    """Arrays of layers and heads as lists of numbers."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def measured(run: Run) -> list[dict[str, Any]]:
    """The documents of the run whose parts are there and whole, as `Run.measured` gives them."""
    return [document for document in run.documents if outline(run, document) is not None]
