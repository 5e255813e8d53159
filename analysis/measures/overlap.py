"""How much two rules agree: shared selections and rank correlation of scores, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forward_influence.analysis.reading.curves import group_of
from forward_influence.analysis.reading.selections import (
    Choice,
    Context,
    DocumentSelections,
    model_layers,
    read_selections,
    require_selections,
)
from forward_influence.analysis.statistics.inference import STUDENT, Method, estimate
from forward_influence.analysis.statistics.ranks import ranks
from forward_influence.storage.run import Run

#: What is compared, in the order of the columns.
MEASURES = ("jaccard", "shared", "chance", "rank_correlation")
_KEYS = ["document", "budget", "mode", "rule_a", "rule_b", "layer"]
_PAIR = ["run", "budget", "mode", "rule_a", "rule_b"]


def centred_ranks(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks along the last axis (ties share their mean rank), centred and scaled to length 1.

    The dot product of two such rows is Spearman's correlation. Rows of equal scores have no ranks and become NaN.
    """
    centred = ranks(scores) - (scores.shape[-1] + 1) / 2  # ranks sum to the same with ties as without
    length = np.sqrt(np.einsum("...i,...i->...", centred, centred))[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, centred / length, np.nan)


def overlap(
    run: Run,
    *,
    selectors: Sequence[str] | None = None,
    budgets: Sequence[str] | None = None,
    cluster: str | None = None,
) -> pd.DataFrame:
    """Agreement of every pair of rules in every document, layer by layer.

    Only candidates count: what every rule is made to keep says nothing about rules. Pairs share budget and mode; draws
    of random rules and segments are averaged within the document.

    Args:
        selectors, budgets: only these, as written in the run.
        cluster: a field of the documents, such as "author", for the column `cluster` (else the document's name).

    Returns:
        One row per document, budget, mode, pair (in the order measured) and layer (the model's index), with columns
        `run`, `cluster` and those of `MEASURES`; rank_correlation is the mean over kv heads of Spearman's correlation
        of the scores, NaN where a rule has none.

    Raises:
        UsageError: the run holds no selections.
    """
    require_selections(run, "overlap")
    layers = model_layers(run)
    tables = [_document_overlap(d, layers) for d in read_selections(run, selectors=selectors, budgets=budgets)]
    rows = [row for table in tables for row in table]
    frame = pd.DataFrame(rows, columns=[*_KEYS, *MEASURES])
    groups = {d["name"]: group_of(d, cluster) for d in run.documents}
    frame = frame.groupby(_KEYS, sort=False, as_index=False)[list(MEASURES)].mean()
    return frame.assign(run=run.name, cluster=frame["document"].map(groups))


def _document_overlap(document: DocumentSelections, layers: list[int]) -> list[tuple[object, ...]]:
    groups: dict[tuple[int, str, str], list[Choice]] = {}
    for choice in document.choices:
        groups.setdefault((choice.segment, choice.budget, choice.mode), []).append(choice)
    rows: list[tuple[object, ...]] = []
    for (segment, budget, mode), choices in groups.items():
        measures = _all_pairs(choices, document.contexts[segment])
        for i, j in combinations(range(len(choices)), 2):
            a, b = choices[i], choices[j]
            if a.selector == b.selector:
                continue
            for row in (k for k in a.layers if k in b.layers):
                key = (document.document["name"], budget, mode, a.selector, b.selector, layers[row])
                rows.append((*key, *measures[:, row, i, j].tolist()))
    return rows


def _all_pairs(choices: list[Choice], context: Context) -> NDArray[np.float64]:
    """All of `MEASURES` for every layer and pair of K choices at once: (measures, L, K, K), from matrix products."""
    heads = sorted(set.intersection(*(set(c.heads) for c in choices)))
    inside = slice(context.first, context.stop)
    chosen = np.stack([c.selection[:, heads, inside] for c in choices], 1).astype(
        np.float32
    )  # (L, K, heads, candidates)
    flat = chosen.reshape(*chosen.shape[:2], -1)
    both = (flat @ flat.swapaxes(1, 2)).astype(np.float64)
    per_head = chosen.sum(-1, dtype=np.float64)
    count = per_head.sum(-1)
    together = count[:, :, None] + count[:, None, :]
    by_chance = per_head @ per_head.swapaxes(1, 2) / chosen.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        sets = [both / (together - both), 2 * both / together, 2 * by_chance / together]
    return np.stack([*sets, _rank_correlations(choices, heads, inside, both.shape)])


def _rank_correlations(
    choices: list[Choice], heads: list[int], inside: slice, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Spearman's correlation of scores, mean over `heads`: (L, K, K), NaN for choices without scores."""
    result = np.full(shape, np.nan)
    scored = [k for k, c in enumerate(choices) if c.scores is not None and c.scores.shape[-1] == c.selection.shape[-1]]
    if not scored:
        return result
    ranks = []
    for k in scored:
        scores = choices[k].scores
        assert scores is not None
        mine = centred_ranks(scores[..., inside])
        ranks.append(np.broadcast_to(mine, (shape[0], choices[k].selection.shape[1], mine.shape[-1]))[:, heads])
    flat = np.stack(ranks, 1).reshape(shape[0], len(scored), -1)
    known = np.array(scored)
    result[:, known[:, None], known[None, :]] = flat @ flat.swapaxes(1, 2) / len(heads)
    return result


def overlap_matrix(frame: pd.DataFrame, measure: str = "shared", rules: Sequence[str] | None = None) -> pd.DataFrame:
    """A square table of one measure, mean over layers, then over documents.

    Args:
        frame: from `overlap`, of one run, budget and mode.
        measure: one of `MEASURES`.
        rules: order of rows and columns; by default the order measured.

    Returns:
        Symmetric (rules, rules); the diagonal is 1, NaN where a pair was not measured together.
    """
    pairs = frame.groupby(["rule_a", "rule_b", "document"], sort=False)[measure].mean()
    means = pairs.groupby(["rule_a", "rule_b"], sort=False).mean()
    if rules is None:
        rules = list(dict.fromkeys([*frame["rule_a"], *frame["rule_b"]]))
    unknown = np.where(np.eye(len(rules), dtype=bool), 1.0, np.nan)
    matrix = pd.DataFrame(unknown, index=list(rules), columns=list(rules))
    for (a, b), value in means.items():
        if a in matrix.index and b in matrix.index:
            matrix.loc[a, b] = matrix.loc[b, a] = value
    return matrix


def overlap_summary(
    frame: pd.DataFrame, *, by_layer: bool = False, clustered: bool = False, method: Method = STUDENT
) -> pd.DataFrame:
    """Agreement of every pair of rules over documents.

    Args:
        frame: from `overlap`, of one run or several.
        by_layer: a row per layer too; else layers are averaged within each document.
        clustered: the column `cluster` is the unit rather than the document.

    Returns:
        One row per run, budget, mode, pair (and `layer`): for each of `MEASURES` the arithmetic mean over documents,
        and for all but chance `<measure>_low` and `<measure>_high`, its 95% bounds (NaN below 6 documents); `n`
        documents or clusters that entered.
    """
    keys = [*_PAIR, "layer"] if by_layer else _PAIR
    per_document = frame.groupby([*keys, "document", "cluster"], sort=False, as_index=False)[list(MEASURES)].mean()
    rows = []
    for key, part in per_document.groupby(keys, sort=False):
        row: dict[str, object] = dict(zip(keys, key, strict=True))
        groups = part["cluster"].to_numpy() if clustered else None
        for measure in MEASURES:
            made = estimate(part[measure].to_numpy(), groups, scale="arithmetic", method=method)
            row[measure] = made.value
            if measure != "chance":
                row[f"{measure}_low"], row[f"{measure}_high"] = made.low, made.high
        rows.append({**row, "n": part["cluster"].nunique() if clustered else len(part)})
    return pd.DataFrame(rows)
