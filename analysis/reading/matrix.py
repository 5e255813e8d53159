"""One rule's curves side by side, documents by bins; and which of its bins are under the noise-floor flag."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.curves import RULE
from forward_influence.influence.noise_floor import FLAG_FACTOR

#: What is said of a mean below the noise-floor flag.
UNDER_FLOOR = f"under {FLAG_FACTOR:g}x the noise floor"


@dataclass(frozen=True)
class Matrix:
    """One rule's curves side by side.

    Attributes:
        kl: (documents, bins) without the noise floor, NaN where a document has no position in a bin.
        measured: (documents, bins) with what rounding added.
        documents, clusters: (documents,) names.
        low, high: (bins,) positions of each bin, [low, high).
        floors: (documents, bins) noise floors, nats; NaN where none was measured.
    """

    kl: np.ndarray
    measured: np.ndarray
    documents: np.ndarray
    clusters: np.ndarray
    low: np.ndarray
    high: np.ndarray
    floors: np.ndarray

    @property
    def floor(self) -> np.ndarray:
        """Mean noise floor over documents (bins,), nats; NaN without any."""
        known = np.isfinite(self.floors)
        totals = np.where(known, self.floors, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), totals / np.maximum(known.sum(axis=0), 1), np.nan)

    def at(self, documents: np.ndarray, low: np.ndarray) -> Matrix:
        """The same at some of the documents and bins (by where they begin), in their order."""
        rows = np.searchsorted(self.documents, documents)
        columns = np.searchsorted(self.low, low)
        kl, measured, floors = (x[np.ix_(rows, columns)] for x in (self.kl, self.measured, self.floors))
        where = self.low[columns], self.high[columns]
        return Matrix(kl, measured, self.documents[rows], self.clusters[rows], *where, floors)

    @property
    def geometric_mean(self) -> np.ndarray:
        """Over documents, per bin (bins,); the arithmetic mean in a bin where some document is not positive."""
        kl = self.kl
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a bin without any document
            logs = np.nanmean(np.log(np.where(kl > 0, kl, np.nan)), axis=0)
            mean = np.asarray(np.where(np.nanmin(kl, axis=0) > 0, np.exp(logs), np.nanmean(kl, axis=0)))
        return mean

    @property
    def below_floor(self) -> np.ndarray:
        """Bins (bins,) whose mean is below `FLAG_FACTOR` times the noise floor; none where no floor was measured."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.geometric_mean < FLAG_FACTOR * self.floor)


def matrix(frame: pd.DataFrame) -> Matrix:
    """The frame of one rule (one value in each of the columns `RULE`) as a matrix over documents and bins."""
    documents, row = np.unique(frame["document"].to_numpy(dtype=str), return_inverse=True)
    low, first, column = np.unique(frame["low"].to_numpy(), return_index=True, return_inverse=True)
    wide = {name: np.full((len(documents), len(low)), np.nan) for name in ("kl", "measured", "floor")}
    for name, values in wide.items():
        values[row, column] = frame[name].to_numpy(dtype=float)
    clusters = np.empty(len(documents), dtype=object)
    clusters[row] = frame["cluster"].to_numpy()
    edges = low.astype(np.int64), frame["high"].to_numpy(dtype=np.int64)[first]
    return Matrix(wide["kl"], wide["measured"], documents, clusters, *edges, wide["floor"])


def by_rule(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Each rule of a frame, in the order in which it appears: ({"run": ..., "selector": ..., ...}, its rows)."""
    for key, group in frame.groupby(RULE, sort=False):
        yield dict(zip(RULE, key, strict=True)), group
