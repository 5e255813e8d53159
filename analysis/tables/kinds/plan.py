"""The questions of a run's plan, which were asked before it was measured, and their answers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import join, many, p_value
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.tables.cells import with_interval
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import tabled


@tabled
class Plan(Measure):
    """A row per question and zone; before all other tables, where a run had a plan."""

    title = "The plan's questions, asked before the run"
    missing = "no run was measured under a plan (`plan`)"
    place = 1
    by_default = True
    optional = True

    def frame(self, found: Comparison) -> pd.DataFrame:
        """As `answers.plan_answers` makes it."""
        return found.answers

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """The question, and the answer with its reason."""
        return {
            "question": f"{row['number']}. {row['question']}",
            "zone": row["zone"],
            "answer": f"{row['verdict']}: {row['because']}",
            "ratio [95%]": with_interval(row, "ratio", digits),
            "p (Holm)": p_value(row["p_holm"]),
        }

    def notes(self, found: Comparison, *, only: bool = False) -> list[str]:
        """Whose plan it was, and how many tests are one family."""
        if not len(found.answers):
            return []
        runs = join(list(map(str, found.answers["run"].unique())))
        return [
            f"the plan of {runs} was made before it was measured; p after Holm over its "
            f"{many(len(found.answers), 'question')} (one a zone); all that it does not ask is exploratory"
        ]
