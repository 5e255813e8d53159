"""Rules as multiples of their controls."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, number, spread, with_interval, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Controls(Measure):
    """A row per rule, control and bin of distance."""

    title = "Multiple of the controls, by distance"
    missing = "no rule was measured with a control"
    place = 50

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `controls.controls` makes it."""
        return found.controls

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The multiple, and whether both choose at one grain."""
        return {
            "rule": row["selector"],
            "control": row["control_selector"],
            "distance": f"{row['low']}-{row['high'] - 1}",
            "ratio [95%]": with_interval(row, "ratio", digits, row["flagged"]),
            "same grain": "yes" if row["same_grain"] else "no",
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """Sorted by where the bin begins."""
        return {
            "rule": words(row["selector"]),
            "control": words(row["control_selector"]),
            "distance": number(row["low"], f"{row['low']}–{row['high'] - 1}"),
            "ratio [95%]": spread(row, "ratio", flagged=row["flagged"]),
            "same grain": words("yes" if row["same_grain"] else "no"),
        }
