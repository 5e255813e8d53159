"""One mixed model of all distances: how far a rule exceeds its control, and how that changes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import number, p_value
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.measures.mixed import mixed_models
from forward_influence.analysis.tables.cells import with_interval
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Mixed(Measure):
    """A row per rule."""

    title = "One mixed model of all distances"
    missing = "no rule was measured beside the baseline"
    place = 36

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `mixed.mixed_models` makes it; why a rule has no numbers is in `.attrs["notes"]`."""
        made = mixed_models(found.curves, found.baseline, clustered=found.clustered, method=found.method)
        made.attrs["notes"] = [f"mixed model, {row.selector}: {row.reason}" for row in made.itertuples() if row.reason]
        return made

    note = (
        "mixed model: log ratio to the baseline ~ log distance, with a level and a slope of each document random; "
        "per doubling: what the ratio is multiplied by when the distance doubles"
    )

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The ratio in the middle of the distances, and what a doubling makes of it."""
        return {
            "rule": row["selector"],
            "to": row["baseline"],
            "at distance": number(row["distance"], 3),
            "ratio [95%]": with_interval(row, "ratio", digits),
            "per doubling [95%]": with_interval(row, "doubling", digits),
            "p (distance)": p_value(row["p_doubling"]),
            "sd of documents": number(row["sd_level"], 2),
            "documents": str(row["n"]),
        }
