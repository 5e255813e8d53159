"""The noise floor, and taking it off: what rounding alone adds to a mean KL.

A KL grows with the square of a change of logits, so that an influence d and rounding e that know nothing of each other
add up: KL(d + e) = KL(d) + KL(e) on average over positions, where their product averages out. KL(e) is the noise floor:
the KL of an empty selection whose entries are stored in another order, which exact attention does not see. It is
subtracted from every mean, per document and on the same positions, so that its own error is part of how documents
differ and of every interval. In float32 it is a millionth of any influence; in 16 bits it is of the size of small ones.
What hardly stands above it is flagged (`FLAG_FACTOR`), for the floor itself can be a little too low: storing entries in
another order rounds the first layers almost alike (docs/statistics.md has what was measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Means, without the noise floor, are flagged below so many times the floor: up to there a floor that is a half too low
#: leaves them at most an eighth too high.
FLAG_FACTOR = 4


def taken_off(measured: np.ndarray, floor: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Mean KL without what rounding added, nats; as measured where no floor is known (NaN).

    Args:
        measured: mean KL, nats.
        floor: mean noise floor on the same positions, nats.
        moved: share of positions whose KL is not exactly 0: where nothing changed, rounding did not either.
    """
    return np.asarray(measured - moved * np.nan_to_num(floor))


def floor_of(rows: Sequence[Mapping[str, Any]], effect: str, edges: np.ndarray) -> np.ndarray:
    """Mean noise floor of one document in each bin [edges[k], edges[k + 1]), nats (bins,); NaN without any.

    Where it was not measured over a whole bin it is the mean over all positions that it was measured at.

    Args:
        rows: of the document, all its segments; floors of the same effect are taken where there are such.
    """
    found = [row for row in rows if row["kind"] == "noise_floor" and row["kl"] is not None]
    found = [row for row in found if row["effect"] == effect] or found
    if not found:
        return np.full(len(edges) - 1, np.nan)
    return np.asarray(np.mean([_of_row(row, edges) for row in found], axis=0))


def _of_row(row: Mapping[str, Any], edges: np.ndarray) -> np.ndarray:
    values = np.asarray(row["kl"], dtype=np.float64)
    distance = np.arange(len(values)) if row["distance"] is None else np.asarray(row["distance"])
    where = np.searchsorted(distance, edges)
    totals = np.diff(np.concatenate([[0.0], np.cumsum(values)])[where])
    counts = np.diff(where)
    # sampled positions end before the continuation does, by no more than they lie apart
    apart = int(np.diff(distance, prepend=-1).max())
    covered = int(distance[-1]) + (apart if apart > 1 else 1)
    return np.where((counts > 0) & (edges[1:] <= covered), totals / np.maximum(counts, 1), values.mean())
