"""Influence on each measured span, against a baseline."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, words
from forward_influence.analysis.tables.kinds.comparison import InfluenceByZone
from forward_influence.analysis.tables.registry import tabled


@tabled
class InfluenceBySpan(InfluenceByZone):
    """A row per rule and measured span, as near, middle and far have them."""

    title = "Influence on each span"
    missing = "the run is measured by lengths (`measure_on` answer measures on a span)"
    note = "a span's mean is over the positions that predict its tokens"
    place = 12
    by_default = False

    @property
    def about(self) -> str:
        """Its columns are those of the comparison's own table."""
        return "table"

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `compare` says; empty where lengths decide."""
        return found.spans

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The span in the place of the zone."""
        cells = super().cells({**row, "zone": row["span"]}, digits)
        return {"span" if name == "zone" else name: text for name, text in cells.items()}

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """The span in the place of the zone."""
        cells = super().page_cells({**row, "zone": "near"})
        return {"span" if name == "zone" else name: cell for name, cell in cells.items()} | {"span": words(row["span"])}

    def notes(self, found: Comparison, *, only: bool = False) -> list[str]:
        """Those about its columns, and what its means are."""
        return [*found.notes_about([self.about], only=only), self.note]
