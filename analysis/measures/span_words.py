"""What small print says of runs that are measured by spans, whose documents differ in length."""

from __future__ import annotations

import pandas as pd

from forward_influence.analysis.formatting.held_words import entries
from forward_influence.storage.run import Run


def zones_by_spans(run: Run) -> str:
    """What near, middle and far are."""
    spans = run.configuration["measure_on"]
    return f"near is the first eighth of each document's measured positions ({spans}), far their second half"


def candidates_by_spans(run: Run, of_rules: pd.DataFrame, first: int, last: int) -> str:
    """What rules choose among, and how many of them each budget comes to.

    Args:
        of_rules: curves of rules.
        first, last: tokens protected at the ends of the context.
    """
    asked = run.configuration
    lengths = of_rules["context"].astype(int)
    where = f"the tokens of {asked['candidates_of']}" if asked.get("candidates_of") else "all context tokens"
    budgets = []
    for (budget, mode), part in of_rules.groupby(["budget", "mode"], sort=False):
        counts = part["selected"].dropna()
        if len(counts):
            done = "dropped" if mode == "drop" else "kept with the protected"
            budgets.append(f"; budget {budget}: {_between(counts.min(), counts.max())} {done}")
    long = _between(lengths.min(), lengths.max())
    return (
        f"candidates: {where}, of contexts of {long} tokens; the first {first} and the last {last} of the context are "
        "protected" + "".join(budgets)
    )


def _between(low: float, high: float) -> str:
    return entries(low) if entries(low) == entries(high) else f"{entries(low)} to {entries(high)}"
