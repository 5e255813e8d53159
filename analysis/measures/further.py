"""Tables that `compare` makes where they are asked for: equivalence, the mixed model, and the answers to plans."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from forward_influence.analysis.formatting.wording import join, many
from forward_influence.analysis.measures.answers import answers, answers_table
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.measures.equivalence import equivalences, undecided
from forward_influence.analysis.measures.mixed import mixed_models
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.pairing import RANDOM
from forward_influence.analysis.statistics.equivalence import percent
from forward_influence.storage.run import Run
from forward_influence.utils.margins import MARGIN


def further_tables(
    found: Comparison,
    runs: Sequence[Run],
    wanted: Collection[str],
    *,
    baseline: str = RANDOM,
    margin: float = MARGIN,
    cluster: str | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables `equivalence`, `mixed` and `plan`, those of them that are wanted.

    Args:
        found: from `compare`, with the same baseline and cluster.
        margin: within which rules are equal; a plan's questions have their own.
    """
    options = {"clustered": found.clustered, "method": found.method}
    made = {}
    if "equivalence" in wanted:
        made["equivalence"] = equivalences(found.zones, baseline, margin, **options)
    if "mixed" in wanted:
        made["mixed"] = mixed_models(found.curves, baseline, **options)
    if "plan" in wanted:
        made["plan"] = plan_answers(runs, cluster=cluster)
    return made


def plan_answers(runs: Sequence[Run], *, cluster: str | None = None) -> pd.DataFrame:
    """The answers to the plans of runs, with the run's name in the column `run`; empty where none had a plan."""
    tables = [answers_table(answers(run, cluster=cluster)).assign(run=name) for name, run in named(runs).items()]
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def further_notes(
    found: Comparison, tables: dict[str, pd.DataFrame], *, baseline: str = RANDOM, margin: float = MARGIN
) -> list[str]:
    """Lines for under the tables.

    Args:
        tables: those that are shown, by name: "table" is the comparison.
    """
    lines = []
    if len(tables.get("plan", ())):
        plan = tables["plan"]
        runs = join(list(map(str, plan["run"].unique())))
        lines.append(
            f"the plan of {runs} was made before it was measured; p after Holm over its {many(len(plan), 'question')} "
            "(one a zone); all that it does not ask is exploratory"
        )
    if "table" in tables or "equivalence" in tables:
        options = {"clustered": found.clustered, "method": found.method}
        lines += undecided(equivalences(found.zones, baseline, margin, **options))
    if "equivalence" in tables:
        lines.append(
            f"equal within {percent(margin)}: the {100 * (2 * found.method.level - 1):g}% interval lies between "
            f"{1 / margin:.3g} and {margin:.3g} (two one-sided t-tests at {100 * (1 - found.method.level):.2g}% each)"
        )
    if "mixed" in tables:
        lines.append(
            "mixed model: log ratio to the baseline ~ log distance, with a level and a slope of each document random; "
            "per doubling: what the ratio is multiplied by when the distance doubles"
        )
        lines += [f"mixed model, {row.selector}: {row.reason}" for row in tables["mixed"].itertuples() if row.reason]
    return lines
