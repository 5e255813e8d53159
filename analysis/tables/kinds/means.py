"""Geometric and arithmetic means side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import ABSENT
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.statistics.means import disagreement
from forward_influence.analysis.tables.cells import Cell, spread, with_interval, words
from forward_influence.analysis.tables.kinds.comparison import with_one_baseline, zone_cell
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Means(Measure):
    """A row per rule and zone."""

    title = "Geometric and arithmetic means over documents"
    place = 20
    by_default = True

    def frame(self, found: Comparison) -> pd.DataFrame:
        """The comparison's own table, other columns of it."""
        return found.table

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """Means, then ratios."""
        compared = row["ratio_flagged"] and bool(row["baseline"])
        return {
            "rule": row["selector"],
            "zone": row["zone"],
            "geometric mean [95%]": with_interval(row, "kl", digits, row["flagged"]),
            "arithmetic mean [95%]": with_interval(row, "mean", digits, row["flagged"]),
            "to": row["baseline"] or ABSENT,
            "mean of ratios [95%]": with_interval(row, "ratio", digits, compared),
            "ratio of means [95%]": with_interval(row, "ratio_of_means", digits, compared),
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """And where they disagree."""
        return {
            "rule": words(row["selector"]),
            "zone": zone_cell(row),
            "geometric mean KL, nats [95%]": spread(row, "kl", flagged=row["flagged"]),
            "arithmetic mean KL, nats [95%]": spread(row, "mean", flagged=row["flagged"]),
            "to": words(row["baseline"]),
            "geometric mean of ratios [95%]": spread(row, "ratio", flagged=row["ratio_flagged"]),
            "ratio of arithmetic means [95%]": spread(row, "ratio_of_means", flagged=row["ratio_flagged"]),
            "they disagree": words(disagreement(row)),
        }

    def finished(self, table: pd.DataFrame) -> pd.DataFrame:
        """One baseline for all goes into the heading."""
        return with_one_baseline(table)
