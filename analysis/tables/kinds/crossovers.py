"""From where on one rule's influence exceeds another's."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, whole, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Crossovers(Measure):
    """A row per pair of rules."""

    title = "Crossovers: the distance from which the first rule's influence exceeds the second's"
    heading = "Crossovers: from where a rule's influence is larger"
    missing = "there are no two rules beside controls; choose a pair with `pairs`"
    place = 40
    by_default = True

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `crossover.crossovers` makes it."""
        return found.crossovers

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """Where, in words."""
        return {"rule": row["rule"], "over": row["over"], "exceeds it": row["text"], "documents": str(row["n"])}

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """Sorted by the distance."""
        distance = row["distance"]
        return {
            "rule": words(row["rule"]),
            "over": words(row["over"]),
            "overtakes it": Cell(row["text"], "" if pd.isna(distance) else repr(min(distance, 1e12)), "number"),
            "documents": whole(row["n"]),
        }
