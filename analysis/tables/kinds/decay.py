"""The law by which influence falls with distance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import ABSENT, interval
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import Cell, spread, with_interval, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Decay(Measure):
    """A row per rule: the fitted law, the half-distance, and the shares near and far."""

    title = "Decay with distance: (d + 1) ** -exponent, or exp(-d / length), whichever AIC prefers"
    heading = "Decay with distance"
    place = 30
    by_default = True

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `decay.fit_decay` makes it."""
        return found.decay

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The law that was fitted."""
        law = {"power": with_interval(row, "exponent", digits), "exponential": with_interval(row, "length", digits)}
        return {
            "rule": row["selector"],
            "law": {"power": "exponent", "exponential": "length"}.get(row["model"], ABSENT),
            "fitted [95%]": law.get(row["model"], ABSENT),
            "half-distance [95%]": interval(row["half_distance"], row["half_low"], row["half_high"], digits),
            "near share [95%]": with_interval(row, "near_share", 2),
            "far share [95%]": with_interval(row, "far_share", 2),
        }

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """Exponent and length in columns of their own."""
        half = {"half": row["half_distance"], "half_low": row["half_low"], "half_high": row["half_high"]}
        return {
            "rule": words(row["selector"]),
            "law": words("" if pd.isna(row["model"]) else row["model"]),
            "exponent [95%]": spread(row, "exponent"),
            "length, tokens [95%]": spread(row, "length"),
            "half-distance, tokens [95%]": spread(half, "half"),
            "near share [95%]": spread(row, "near_share", 2),
            "far share [95%]": spread(row, "far_share", 2),
        }
