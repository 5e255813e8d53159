"""Which rules are equal to the baseline within a margin, and which are only not told apart from it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import ABSENT, p_value
from forward_influence.analysis.formatting.wording import interval as interval_text
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.statistics.equivalence import percent
from forward_influence.analysis.tables.cells import with_interval
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class EquivalenceTable(Measure):
    """A row per rule and zone."""

    title = "More, less, equal, or not told apart"
    missing = "no rule was measured beside the baseline"
    place = 14

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `equivalence.equivalences` makes it."""
        return found.equivalence

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """Both intervals, and the finding in words."""
        inner = interval_text(row["ratio"], row["equal_low"], row["equal_high"], digits).partition(" ")[2]
        return {
            "rule": row["selector"],
            "zone": row["zone"],
            "to": row["baseline"],
            "ratio [95%]": with_interval(row, "ratio", digits, row["flagged"]),
            "[90%]": inner or ABSENT,
            "p (equal)": p_value(row["p_equal"]),
            "finding": row["finding"] or ABSENT,
            "documents": str(row["n"]),
        }

    def notes(self, found: Comparison, *, only: bool = False) -> list[str]:
        """And what the margin was."""
        level = found.method.level
        margins = sorted(set(found.equivalence["margin"]))
        return [
            *super().notes(found, only=only),
            *(
                f"equal within {percent(margin)}: the {100 * (2 * level - 1):g}% interval lies between "
                f"{1 / margin:.3g} and {margin:.3g} (two one-sided t-tests at {100 * (1 - level):.2g}% each)"
                for margin in margins
            ),
        ]
