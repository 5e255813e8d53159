"""What rules share of their budget."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import correlation
from forward_influence.analysis.formatting.wording import number as written
from forward_influence.analysis.measures.overlap import overlap_summary
from forward_influence.analysis.measures.selected import Selections
from forward_influence.analysis.tables.cells import Cell, number, spread, whole, with_interval, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Overlap(Measure):
    """A row per pair of rules."""

    title = "Overlap: what rules share of their budget"
    heading = "What rules share"
    missing = "no two rules of a run have saved selections"
    note = "candidates only; means over layers, then over documents; chance: what independent choices would share"
    place = 70
    selections = True
    rules = 2
    by_layer = False

    def of_selections(self, selected: Selections) -> pd.DataFrame:
        """As `overlap.overlap_summary` makes it."""
        return overlap_summary(selected.overlap, by_layer=self.by_layer, **selected.inference)

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """In percent."""
        percent = _percent(row)
        return {
            "rule": row["rule_a"],
            "and": row["rule_b"],
            **({"layer": str(row["layer"])} if "layer" in row else {}),
            "shared, % [95%]": with_interval(percent, "shared", digits),
            "by chance, %": written(percent["chance"], digits),
            "Jaccard, % [95%]": with_interval(percent, "jaccard", digits),
            "rank correlation [95%]": correlation(*_ranked(row)),
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """And how many documents."""
        percent = _percent(row)
        return {
            "rule": words(row["rule_a"]),
            "and": words(row["rule_b"]),
            **({"layer": whole(row["layer"])} if "layer" in row else {}),
            "budget shared, % [95%]": spread(percent, "shared"),
            "by chance, %": number(percent["chance"]),
            "Jaccard, % [95%]": spread(percent, "jaccard"),
            "rank correlation [95%]": number(row["rank_correlation"], correlation(*_ranked(row))),
            "documents": whole(row["n"]),
        }


def _percent(row: dict[str, Any]) -> dict[str, float]:
    return {name: 100 * value for name, value in row.items() if name.startswith(("shared", "jaccard", "chance"))}


def _ranked(row: dict[str, Any]) -> list[float]:
    return [row[f"rank_correlation{end}"] for end in ("", "_low", "_high")]
