"""Where and what kind of tokens rules select."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import interval
from forward_influence.analysis.formatting.wording import number as written
from forward_influence.analysis.measures.selected import Selections
from forward_influence.analysis.tables.cells import Cell, number, spread, whole, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Tokens(Measure):
    """A row per rule and group of tokens; groups without candidates are left out."""

    title = "Tokens: where and what a rule selects"
    heading = "What kind of token is selected"
    missing = "no rule has saved selections"
    note = "multiple: how often a rule selects the group over how often the candidates hold it, mean over documents"
    place = 90
    selections = True

    def of_selections(self, selected: Selections) -> pd.DataFrame:
        """As `tokens.token_profile` makes it."""
        return selected.profile[selected.profile["base"] > 0]

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The multiple, and what it is made of."""
        return {
            "rule": row["selector"],
            "division": row["division"],
            "group": row["group"],
            "multiple [95%]": interval(row["lift"], row["low"], row["high"], digits),
            "selected, %": written(100 * row["share"], digits),
            "candidates, %": written(100 * row["base"], digits),
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """And how many documents."""
        lift = {"lift": row["lift"], "lift_low": row["low"], "lift_high": row["high"]}
        return {
            "rule": words(row["selector"]),
            "division": words(row["division"]),
            "group": words(row["group"]),
            "multiple [95%]": spread(lift, "lift"),
            "selected, %": number(100 * row["share"]),
            "candidates, %": number(100 * row["base"]),
            "documents": whole(row["n"]),
        }
