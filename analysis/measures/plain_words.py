"""A run in plain sentences, for someone who sees one for the first time."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import interval, many
from forward_influence.analysis.measures.summary import summarise
from forward_influence.analysis.reading.binning import zone_edges
from forward_influence.analysis.reading.pairing import CHOSEN, baseline_for, grains, is_control
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run

#: What newcomers' rules prefer; of other rules, their names say it.
_PREFERRED = {
    "attention": "the tokens that attention ranks highest",
    "entropy": "the tokens after which the model was least sure how to go on",
}


def plain_sentences(run: Run) -> list[str]:
    """What each rule's tokens do to later predictions beside as many random ones, and what that is worth.

    Args:
        run: measured by lengths in drop mode, at one budget, with a random rule of each rule's grain.

    Returns:
        A sentence for each rule that is no control, and one on the number of documents.

    Raises:
        UsageError: no random rule was measured, or tokens were kept instead of dropped.
        ForwardInfluenceError: nothing is measured yet.
    """
    table = summarise(run)
    if (table["mode"] != "drop").any() or table["random_near"].isna().all():
        raise UsageError("plain sentences set dropped tokens against random ones; measure with mode drop and `random`")
    edges = [int(edge) for edge in zone_edges(run.configuration["continuation"])]
    rules = table[~table["selector"].map(is_control)]
    told = [_of_rule(row, table, edges) for row in rules.to_dict("records")]
    return [*told, _of_documents(len(run.measured()))]


def _of_rule(row: dict[str, Any], table: pd.DataFrame, edges: list[int]) -> str:
    name = row["selector"]
    control = baseline_for(table, name)
    dropped = _PREFERRED.get(name, f"the tokens that {name} ranks highest")
    near, far = (
        interval(row[f"random_{zone}"], row[f"random_{zone}_low"], row[f"random_{zone}_high"], 2)
        for zone in ("near", "far")
    )
    random = "random tokens" if control is None else f"random {CHOSEN[grains(table)[control]]}"
    return (
        f"Without {dropped}, the next {edges[1]:,} predictions shift {near} times as much as without as many {random}, "
        f"and those {edges[2]:,} to {edges[3] - 1:,} tokens later {far} times as much."
    )


def _of_documents(count: int) -> str:
    if count >= MINIMUM_DOCUMENTS:
        return f"In brackets stand 95% intervals over {many(count, 'document')}."
    return (
        f"{many(count, 'document').capitalize()} can only show what a result looks like: from {MINIMUM_DOCUMENTS} "
        "documents on there are intervals that say how sure it is."
    )
