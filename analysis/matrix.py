"""One rule's curves side by side, documents by bins; and which of its bins are under the noise-floor flag."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from forward_influence.analysis.curves import RULE

#: Bins below this many times the noise floor are flagged.
FLAG_FACTOR = 3.0


@dataclass(frozen=True)
class Matrix:
    """One rule's curves side by side.

    Attributes:
        kl: (documents, bins), NaN where a document has no position in a bin.
        documents, clusters: (documents,) names.
        low, high: (bins,) positions of each bin, [low, high).
        floors: (documents,) noise floors, nats; NaN where none was measured.
    """

    kl: np.ndarray
    documents: np.ndarray
    clusters: np.ndarray
    low: np.ndarray
    high: np.ndarray
    floors: np.ndarray

    @property
    def floor(self) -> float:
        """Mean noise floor over documents, nats; NaN without any."""
        known = self.floors[np.isfinite(self.floors)]
        return float(known.mean()) if len(known) else float("nan")

    def at(self, documents: np.ndarray, low: np.ndarray) -> Matrix:
        """The same at some of the documents and bins (by where they begin), in their order."""
        rows = np.searchsorted(self.documents, documents)
        columns = np.searchsorted(self.low, low)
        kl, edges = self.kl[np.ix_(rows, columns)], (self.low[columns], self.high[columns])
        return Matrix(kl, self.documents[rows], self.clusters[rows], *edges, self.floors[rows])

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
        if not np.isfinite(self.floor):
            return np.zeros(len(self.low), dtype=bool)
        return np.asarray(self.geometric_mean < FLAG_FACTOR * self.floor)


def matrix(frame: pd.DataFrame) -> Matrix:
    """The frame of one rule (one value in each of the columns `RULE`) as a matrix over documents and bins."""
    wide = frame.pivot(index=["document", "cluster"], columns=["low", "high"], values="kl").sort_index(axis=1)
    return Matrix(
        kl=wide.to_numpy(dtype=float),
        documents=wide.index.get_level_values(0).to_numpy(),
        clusters=wide.index.get_level_values(1).to_numpy(),
        low=wide.columns.get_level_values(0).to_numpy(dtype=np.int64),
        high=wide.columns.get_level_values(1).to_numpy(dtype=np.int64),
        floors=frame.groupby("document")["floor"].first().to_numpy(dtype=float),
    )


def by_rule(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Each rule of a frame, in the order in which it appears: ({"run": ..., "selector": ..., ...}, its rows)."""
    for key, group in frame.groupby(RULE, sort=False):
        yield dict(zip(RULE, key, strict=True)), group
