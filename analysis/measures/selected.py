"""What rules select, as tables: what they share, over all layers and layer by layer, and what kind of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from forward_influence.analysis.measures.overlap import overlap, overlap_summary
from forward_influence.analysis.measures.tokens import token_profile, token_shares
from forward_influence.analysis.reading.selections import of_several
from forward_influence.analysis.statistics.inference import Kind
from forward_influence.analysis.statistics.stopping import method_for
from forward_influence.storage.run import Run

#: Tables made of saved selections, and what to say under each.
NOTES = {
    "overlap": "candidates only; means over layers, then over documents; chance: what independent choices would share",
    "overlap_layers": "candidates only; means over documents, layer by layer",
    "tokens": "multiple: how often a rule selects the group over how often the candidates hold it, mean over documents",
}


def selection_tables(
    runs: Mapping[str, Run],
    names: Sequence[str],
    *,
    budgets: Sequence[str] | None = None,
    cluster: str | None = None,
    method: Kind = "t",
) -> dict[str, pd.DataFrame]:
    """Those of the tables `NOTES` that are asked for, each run by itself (column `run`).

    Args:
        runs: by name, as `curves.named` gives them.
        budgets: only these, as written in the runs; None for all.
        cluster, method: as in `compare`.

    Raises:
        UsageError: a run holds no selections.
    """
    inference: dict[str, Any] = {"clustered": cluster is not None, "method": method_for(list(runs.values()), method)}
    made: dict[str, pd.DataFrame] = {}
    if {"overlap", "overlap_layers"} & set(names):
        frame = of_several(overlap, runs, budgets=budgets, cluster=cluster)
        made["overlap"] = overlap_summary(frame, **inference)
        made["overlap_layers"] = overlap_summary(frame, by_layer=True, **inference)
    if "tokens" in names:
        profile = token_profile(of_several(token_shares, runs, budgets=budgets, cluster=cluster), **inference)
        made["tokens"] = profile[profile["base"] > 0]
    return {name: made[name] for name in names if name in made}
