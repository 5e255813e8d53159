"""Arithmetic means over documents beside the geometric ones: they answer another question, and can disagree.

The geometric mean of per-document ratios says by what factor a rule differs in a typical document, each document
weighing the same. The ratio of arithmetic means says by what factor its influence differs in sum, of which a few
documents may have most; the averages of the paper (arXiv:2606.26875) are of this kind. Its interval is a BCa bootstrap
over documents (Efron 1987, doi:10.1080/01621459.1987.10478410) by scipy, its quantiles widened for few documents.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from forward_influence.analysis.formatting.wording import interval
from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS, bootstrap_quantiles, units

RESAMPLES = 9_999
#: Which mean answers what.
WHICH = (
    "the geometric mean of ratios says by what factor a rule differs in a typical document, the ratio of arithmetic "
    "means by what factor in the sum over documents, of which a few may have most (the paper averages so)"
)
Bounds = tuple[np.ndarray, np.ndarray, np.ndarray]


def arithmetic(kl: np.ndarray, clusters: np.ndarray | None = None, level: float = CONFIDENCE) -> Bounds:
    """Arithmetic means over documents with BCa bounds: (documents, zones) to three arrays (zones,).

    Args:
        clusters: (documents,) labels; documents of one are averaged first.
        level: nominal confidence. No bounds (NaN) below 6 documents.
    """
    return _bounded(lambda x, axis: x.mean(axis=axis), [units(kl, clusters)], level)


def ratio_of_means(
    a: np.ndarray, b: np.ndarray, clusters: np.ndarray | None = None, level: float = CONFIDENCE
) -> Bounds:
    """Arithmetic mean of a over that of b, documents drawn in pairs; otherwise as `arithmetic`. NaN where b's mean is 0
    or negative."""

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        above, below = x.mean(axis=axis), y.mean(axis=axis)
        return np.asarray(above / np.where(below > 0, below, np.nan))

    return _bounded(ratio, [units(a, clusters), units(b, clusters)], level)


def _bounded(statistic: Callable[..., np.ndarray], values: list[np.ndarray], level: float) -> Bounds:
    columns = [np.ascontiguousarray(x.T) for x in values]
    itself = np.asarray(statistic(*columns, axis=-1), dtype=float)
    n = columns[0].shape[-1]
    if n < MINIMUM_DOCUMENTS:
        return itself, np.full(itself.shape, np.nan), np.full(itself.shape, np.nan)
    wide = 1 - 2 * bootstrap_quantiles(n, level)[0]
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # documents that do not differ, told apart below
        drawn = stats.bootstrap(
            columns,
            statistic,
            axis=-1,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=1000,
            confidence_level=wide,
            method="BCa",
            random_state=0,
        )
        spread = np.ptp(drawn.bootstrap_distribution, axis=-1)
    alike = spread <= 1e-12 * np.abs(itself)  # then there is no acceleration to compute
    low, high = drawn.confidence_interval
    return itself, np.where(alike, itself, low), np.where(alike, itself, high)


def columns(name: str, bounds: Bounds, zone: int) -> dict[str, float]:
    """One zone of a mean as columns: name, name_low, name_high."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), (float(x[zone]) for x in bounds), strict=True))


def disagreement(row: Mapping[str, Any]) -> str:
    """How the two ratios of a row disagree about the direction, in words; "" where they do not, or one is missing.

    Args:
        row: `ratio` and `ratio_of_means`, each with `_low` and `_high`.
    """
    sides = [math.copysign(1, row[name] - 1) if row[name] != 1 else 0 for name in ("ratio", "ratio_of_means")]
    if any(math.isnan(row[name]) for name in ("ratio", "ratio_of_means")) or sides[0] * sides[1] >= 0:
        return ""
    shown = [f"{_shown(row, name)}, {_sureness(row, name)}" for name in ("ratio", "ratio_of_means")]
    return f"{shown[0]}, in a typical document, but {shown[1]}, in the sum over documents"


def _shown(row: Mapping[str, Any], name: str) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 3, "×")


def _sureness(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    side = "above 1" if value > 1 else "below 1"
    return side if math.isnan(low) or low > 1 or high < 1 else f"{side}, though not surely"


def disagreements(table: pd.DataFrame) -> list[str]:
    """A line on each row of a comparison whose two ratios disagree; those under the noise floor are left out."""
    rows = table[~table["ratio_flagged"].astype(bool)].to_dict("records")
    return [
        f"{row['selector']} against {row['baseline']}, {row['zone']}: the two means disagree about direction: {text}"
        for row in rows
        if (text := disagreement({str(k): v for k, v in row.items()}))
    ]
