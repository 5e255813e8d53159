"""Influence near, middle and far, against a baseline."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import ABSENT, number, p_value
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, spread, with_interval, words
from forward_influence.analysis.tables.cells import number as sorted_number
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class InfluenceByZone(Measure):
    """A row per rule and zone: mean KL, the ratio to the baseline, and what tests make of it."""

    title = "Influence near, middle and far"
    place = 10
    by_default = True

    @property
    def about(self) -> str:
        """Its columns are the comparison's own table."""
        return "table"

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `compare` says."""
        return found.table

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The flags are said in words under it."""
        return {
            "rule": row["selector"],
            "zone": row["zone"],
            "mean KL [95%]": with_interval(row, "kl", digits, row["flagged"]),
            "ratio [95%]": with_interval(row, "ratio", digits, row["ratio_flagged"] and bool(row["baseline"])),
            "to": row["baseline"] or ABSENT,
            "p (Holm)": p_value(row["p_holm"]),
            "effect size": number(row["rank_biserial"], 2),
            "wins": f"{row['wins']}/{row['n']}" if row["baseline"] else ABSENT,
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """With the flags."""
        wins = float("nan") if pd.isna(row["wins"]) else row["wins"]
        return {
            "rule": words(row["selector"]),
            "zone": zone_cell(row),
            "mean KL, nats [95%]": spread(row, "kl", flagged=row["flagged"]),
            "ratio [95%]": spread(row, "ratio", flagged=row["ratio_flagged"]),
            "to": words(row["baseline"]),
            "p (Holm)": sorted_number(row["p_holm"], p_value(row["p_holm"])),
            "effect size": sorted_number(row["rank_biserial"], digits=2),
            "wins": sorted_number(wins, f"{row['wins']} of {row['n']}"),
            "remarks": words(row["flags"]),
        }

    def finished(self, table: pd.DataFrame) -> pd.DataFrame:
        """One baseline for all goes into the heading."""
        return with_one_baseline(table)

    def notes(self, found: Comparison, *, only: bool = False) -> list[str]:
        """With those that concern all tables: it stands first."""
        return super().notes(found)


def zone_cell(row: dict[str, Any]) -> Cell:
    """A zone, sorted by distance."""
    return Cell(row["zone"], {"near": "0 near", "middle": "1 middle", "far": "2 far"}[row["zone"]], "text")


def with_one_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """The table without its column `to` where that is one for all; the headings of ratios name it then."""
    to = [spec for spec in table["to"].unique() if spec != ABSENT]
    if len(to) != 1:
        return table
    ratios = {name: name.replace(" [95%]", f" to {to[0]} [95%]") for name in ("ratio [95%]", "mean of ratios [95%]")}
    return table.drop(columns="to").rename(columns=ratios)
