"""Layer by layer: where in the context a rule selects, and how much each layer's ablation influences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forward_influence.analysis.reading.selections import read_selections, require_selections
from forward_influence.analysis.statistics.inference import estimate
from forward_influence.storage.run import Run

POSITION_BINS = 20


def position_lift(selection: NDArray[np.bool_], bins: int) -> NDArray[np.float64]:
    """Selected entries per position bin as a multiple of an even spread over the candidates.

    Args:
        selection: bool (L, H, candidates).
        bins: equal parts of the candidates; at most as many as there are.

    Returns:
        (L, bins); 1 everywhere for an even spread; NaN for a layer with nothing selected.
    """
    count = selection.shape[-1]
    edges = np.arange(bins + 1) * count // bins
    per_token = selection.sum(1, dtype=np.float64)
    inside = np.add.reduceat(per_token, edges[:-1], axis=-1)
    total = inside.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (inside / total) / (np.diff(edges) / count)


def layer_positions(
    run: Run, bins: int = POSITION_BINS, *, selectors: Sequence[str] | None = None, budgets: Sequence[str] | None = None
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """For each (selector, budget, mode), `position_lift` averaged over draws, segments and then documents.

    Returns:
        (L, bins) arrays in the order measured; row i is layer `model_layers(run)[i]`.

    Raises:
        UsageError: the run holds no selections.
    """
    require_selections(run, "the layers picture")
    total: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
    for document in read_selections(run, selectors=selectors, budgets=budgets):
        mine: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
        for choice in document.choices:
            context = document.contexts[choice.segment]
            inside = choice.selection[..., context.first : context.stop]
            lift = position_lift(inside, min(bins, inside.shape[-1]))
            mine.setdefault((choice.selector, choice.budget, choice.mode), []).append(lift)
        for key, lifts in mine.items():
            total.setdefault(key, []).append(np.mean(lifts, axis=0))
    return {key: np.mean(lifts, axis=0) for key, lifts in total.items()}


def layer_influence(sweep: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Influence of layers ablated one by one.

    Args:
        sweep: rows of `curves.read` whose `layers` names one layer, of one run, budget, mode and effect.

    Returns:
        For each rule a table, layers (rows, ascending) by bins (columns: the bins' low ends): geometric mean over
        documents of the mean KL in nats (arithmetic where a document's is not positive).
    """
    single = sweep[sweep["layers"].str.isdecimal()]
    tables = {}
    for rule, part in single.groupby("selector", sort=False):
        cells = part.groupby(["layers", "low"])["kl"].agg(lambda kl: estimate(kl.to_numpy()).value).unstack("low")
        cells.index = cells.index.astype(int)
        tables[str(rule)] = cells.sort_index()
    return tables
