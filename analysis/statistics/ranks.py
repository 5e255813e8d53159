"""Ranks of scores, quickly: nearly all scores differ, so that sorting alone ranks them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def ranks(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks 1..n along the last axis, ties sharing their mean rank: what `scipy.stats.rankdata` gives, in a third of
    the time where rows have no ties.
    """
    n = scores.shape[-1]
    flat = np.ascontiguousarray(scores).reshape(-1, n)
    places = np.argsort(flat, axis=-1)
    places += n * np.arange(len(flat))[:, None]
    ordered = flat.reshape(-1)[places]
    found = np.empty(flat.shape)
    found.reshape(-1)[places] = np.arange(1.0, n + 1)
    tied = ~(ordered[:, 1:] > ordered[:, :-1]).all(-1)  # a NaN counts as a tie: rankdata says what it means
    if tied.any():
        found[tied] = rankdata(flat[tied], axis=-1)
    return found.reshape(scores.shape)
