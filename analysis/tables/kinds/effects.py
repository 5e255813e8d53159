"""Direct and indirect influence."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, number, spread, with_interval, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Effects(Measure):
    """A row per rule and bin of distance, where both effects were measured."""

    title = "Direct and indirect influence, by distance"
    missing = "no rule was measured with both effects (`effect` both)"
    place = 60

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `controls.effects` makes it."""
        return found.effects

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """Shares of the total, and the rest in nats."""
        return {
            "rule": row["selector"],
            "distance": f"{row['low']}-{row['high'] - 1}",
            "direct share [95%]": with_interval(row, "direct_share", digits, row["flagged"]),
            "indirect share [95%]": with_interval(row, "remainder_share", digits, row["flagged"]),
            "indirect, nats [95%]": with_interval(row, "remainder", digits, row["flagged"]),
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """Sorted by where the bin begins."""
        return {
            "rule": words(row["selector"]),
            "distance": number(row["low"], f"{row['low']}–{row['high'] - 1}"),
            "direct share [95%]": spread(row, "direct_share", flagged=row["flagged"]),
            "indirect share [95%]": spread(row, "remainder_share", flagged=row["flagged"]),
            "indirect, nats [95%]": spread(row, "remainder", flagged=row["flagged"]),
        }
