"""Rows of a document that is measured by spans: distances are counted through the measured positions.

What stands between measured spans, and between the context and the first of them, goes through the model and is not
measured: the first measured position has distance 0, whatever lies before it, and a row's continuation is as long as
there are measured positions. The manifest says where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

#: Arrays of a baseline's row, one value per position of the continuation.
_PER_POSITION = ("nll",)


def renumbered(row: Mapping[str, Any], positions: Tensor) -> dict[str, Any]:
    """A row with distances counted through `positions` (p,), those that are measured; a baseline's values at them."""
    where = positions.numpy()
    found = {**row, "continuation": len(where)}
    if row["kind"] == "baseline":
        found |= {name: row[name][where] for name in _PER_POSITION if row.get(name) is not None}
        return found
    ranks = np.searchsorted(where, np.asarray(row["distance"]))
    found["distance"] = None if len(ranks) == len(where) else ranks.tolist()
    return found
