"""Token profile: where in the context a rule selects, and what kind of token, against the base rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forward_influence.analysis.measures import token_classes
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
from forward_influence.storage.run import Run

#: The ways in which tokens are divided, and the groups of each in order.
DIVISIONS: dict[str, tuple[str, ...]] = {
    "position": tuple(f"{10 * i}-{10 * i + 10}%" for i in range(10)),
    "class": token_classes.CLASSES,
    "word part": ("word start", "word continuation"),
    "occurrence": ("first occurrence", "repeated"),
    "frequency": token_classes.BANDS,
}
_KEYS = ["selector", "budget", "mode", "division", "group"]


def groups_of(context: Context, bands: dict[int, str]) -> dict[str, NDArray[np.str_]]:
    """The group of every context token under each of `DIVISIONS`; each value is (n,), "" where none applies.

    Positions are deciles of the candidates; protected tokens have none.
    """
    n = len(context.tokens)
    position = np.full(n, "", dtype="<U16")
    count = context.stop - context.first
    tenth = np.arange(count) * 10 // max(count, 1)
    position[context.first : context.stop] = np.array(DIVISIONS["position"])[tenth]
    return {
        "position": position,
        "class": token_classes.classes(context.pieces),
        "word part": token_classes.word_parts(context.pieces),
        "occurrence": token_classes.repetition(context.tokens),
        "frequency": np.array([bands[int(t)] for t in context.tokens], dtype=np.str_),
    }


def token_frequencies(run: Run) -> dict[int, int]:
    """How often each token id occurs in all saved contexts of the run."""
    counts: Counter[int] = Counter()
    for document in read_selections(run, selectors=()):
        for context in document.contexts.values():
            counts.update(context.tokens.tolist())
    return dict(counts)


def token_shares(
    run: Run,
    *,
    selectors: Sequence[str] | None = None,
    budgets: Sequence[str] | None = None,
    layer: int | None = None,
    cluster: str | None = None,
) -> pd.DataFrame:
    """Per document, what part of a rule's selection falls into each group, and what part of the candidates does.

    Entries (layer, kv head, token) count alike; random draws and segments are averaged within the document.

    Args:
        selectors, budgets: only these, as written in the run.
        layer: only this layer (the model's index); None = all ablated layers together.
        cluster: a field of the documents, such as "author", for the column `cluster` (else the document's name).

    Returns:
        Columns document, selector, budget, mode, division, group, share, base, run, cluster.

    Raises:
        UsageError: the run holds no selections.
    """
    require_selections(run, "the token profile")
    bands = token_classes.frequency_bands(token_frequencies(run))
    layers = model_layers(run)
    rows: list[tuple[object, ...]] = []
    for document in read_selections(run, selectors=selectors, budgets=budgets):
        rows.extend(_document_shares(document, bands, None if layer is None else layers.index(layer)))
    columns = ["document", *_KEYS, "share", "base"]
    frame = pd.DataFrame(rows, columns=columns)
    groups = {d["name"]: group_of(d, cluster) for d in run.documents}
    frame = frame.groupby(columns[:-2], sort=False, as_index=False)[["share", "base"]].mean()
    return frame.assign(run=run.name, cluster=frame["document"].map(groups))


def _document_shares(
    document: DocumentSelections, bands: dict[int, str], layer: int | None
) -> list[tuple[object, ...]]:
    groups = {segment: groups_of(context, bands) for segment, context in document.contexts.items()}
    rows: list[tuple[object, ...]] = []
    for choice in document.choices:
        context = document.contexts[choice.segment]
        weight = selection_weight(choice, context, layer)
        total = weight.sum()
        if total == 0:
            continue
        key = (document.document["name"], choice.selector, choice.budget, choice.mode)
        for division, labels in groups[choice.segment].items():
            candidates = labels[context.first : context.stop]
            for group in DIVISIONS[division]:
                inside = candidates == group
                rows.append((*key, division, group, float(weight[inside].sum() / total), float(inside.mean())))
    return rows


def selection_weight(choice: Choice, context: Context, layer: int | None = None) -> NDArray[np.int64]:
    """In how many ablated (layer, kv head) pairs each candidate is selected; (candidates,).

    Args:
        layer: only this row of the selection.
    """
    rows = [i for i in choice.layers if layer is None or i == layer]
    entries = choice.selection[np.ix_(rows, choice.heads)][..., context.first : context.stop]
    return entries.sum((0, 1), dtype=np.int64)


def token_profile(shares: pd.DataFrame, *, clustered: bool = False, method: Method = STUDENT) -> pd.DataFrame:
    """What each rule prefers, over documents.

    Args:
        shares: from `token_shares`, of one run or several.
        clustered: the column `cluster` is the unit rather than the document.

    Returns:
        One row per run, selector, budget, mode, division and group: `share` and `base` (arithmetic means over
        documents), `lift` = mean over documents of share / base (documents whose candidates have none of the group are
        left out), `low` and `high` its 95% bounds (NaN below 6 documents), `n` documents or clusters that entered. A
        lift of 2 means twice as often as the candidates hold it.
    """
    keys = ["run", *_KEYS]
    rows = []
    for key, part in shares.groupby(keys, sort=False):
        present = part[part["base"] > 0]
        groups = present["cluster"].to_numpy() if clustered else None
        lift = estimate((present["share"] / present["base"]).to_numpy(), groups, scale="arithmetic", method=method)
        means = (float(part["share"].mean()), float(part["base"].mean()))
        rows.append((*key, *means, lift.value, lift.low, lift.high, lift.n))
    return pd.DataFrame(rows, columns=[*keys, "share", "base", "lift", "low", "high", "n"])
