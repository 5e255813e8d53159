"""The answers to a run's plan as findings, before all others, which are exploratory then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from forward_influence.analysis.measures.answers import answers, sentence
from forward_influence.analysis.report.findings import Findings
from forward_influence.storage.run import Run

EXPLORATORY = "Exploratory: not asked before the run"


def of_plans(runs: Mapping[str, Run], zones: pd.DataFrame, cluster: str | None = None) -> list[Findings]:
    """A group of findings for every run that was measured under a plan: each question with its answer.

    Args:
        runs: by the names that they have in the report.
        zones: their curves in near, middle and far, under these names.
        cluster: field of the documents whose groups are the unit.
    """
    made = []
    for name, run in runs.items():
        if run.plan is None:
            continue
        found = answers(run, zones=zones[zones["run"] == name], cluster=cluster)
        title = f": {run.plan.title}" if run.plan.title else ""
        heading = f"Asked before the run{title}"
        told = [f"{one.question} {sentence(one)}" for one in found]
        made.append(Findings(f"{name}: {heading}" if len(runs) > 1 else heading, told))
    return made


def planned_first(planned: Sequence[Findings], others: Sequence[Findings]) -> list[Findings]:
    """The answers to plans, then everything else, called exploratory; the others alone where there was no plan."""
    if not planned:
        return list(others)
    return [*planned, *(replace(one, heading=": ".join(filter(None, [EXPLORATORY, one.heading]))) for one in others)]
