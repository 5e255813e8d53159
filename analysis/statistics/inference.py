"""Intervals, paired comparisons and corrections over documents.

The rules, all stated in docs/statistics.md:

* The document is the unit (or the cluster of documents: values are averaged within a cluster first).
* Positive values are averaged as logs: the estimate is a geometric mean, a ratio is the geometric mean of per-document
  ratios, and both get t-intervals on the logs.
* A log of zero or of a negative number does not exist. If any document's value is not positive (a total minus direct
  remainder, a KL of exactly 0), the *arithmetic* mean and its interval are given instead, for all documents alike, and
  a ratio is not given; the reason says how many. No document is dropped or replaced to make a log possible.
* Nothing inferential below six units: interval bounds and p-values are NaN, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

MINIMUM_DOCUMENTS = 6
CONFIDENCE = 0.95
RESAMPLES = 10_000


#: Student t on logs, or documents resampled.
Kind = Literal["t", "bootstrap"]


@dataclass(frozen=True)
class Method:
    """How intervals are made.

    Attributes:
        kind: "t" or "bootstrap".
        level: nominal confidence, 0..1.
    """

    kind: Kind = "t"
    level: float = CONFIDENCE

    def of_many(self, comparisons: int) -> Method:
        """The same with intervals as wide as so many comparisons ask for (Bonferroni), of which results are picked."""
        return replace(self, level=1 - (1 - self.level) / max(comparisons, 1))


STUDENT = Method()


@dataclass(frozen=True)
class Estimate:
    """A mean over documents with its interval.

    Attributes:
        value: geometric or arithmetic mean, as `scale` says; NaN without any finite value.
        low, high: bounds of the interval; NaN where none is given, `reason` says why.
        n: units that entered: documents, or clusters of them.
    """

    value: float
    low: float
    high: float
    n: int
    scale: Literal["geometric", "arithmetic"]
    reason: str | None = None


@dataclass(frozen=True)
class Paired:
    """Two rules on the same documents.

    Attributes:
        ratio: geometric mean over documents of a / b, with bounds `low` and `high`.
        p: two-sided Wilcoxon signed-rank test of the log ratios (of the differences where a ratio does not exist).
        effect: matched-pairs rank-biserial correlation, -1..1; positive where a is larger.
        wins: units in which a is larger than b.
        n: units compared.
        reason: why something of it is NaN.
    """

    ratio: float
    low: float
    high: float
    p: float
    effect: float
    wins: int
    n: int
    reason: str | None = None


def t_interval(x: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and Student t-interval over the last axis: (..., n) to three arrays (...,). NaN bounds for n < 2."""
    n = x.shape[-1]
    mean = x.mean(axis=-1)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * x.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def bootstrap_quantiles(n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Quantiles of the bootstrap distribution that make an interval over n units.

    The plain percentiles are too narrow for few units (73% at 3, 87% at 6); these are the expanded percentiles of
    Hesterberg (2015, arXiv:1411.5279): widened as t with n - 1 degrees of freedom and sqrt(n / (n - 1)) ask for.
    """
    low = float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + confidence) / 2, n - 1)))
    return low, 1 - low


def resample(n: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Bootstrap weights (resamples, n): how often each of n units is drawn, divided by n. Seeded."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def bootstrap_interval(
    x: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and expanded percentile bootstrap interval over the last axis: (..., n) to three arrays (...,)."""
    n = x.shape[-1]
    mean = x.mean(axis=-1)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    means = x @ resample(n, resamples, seed).T
    low, high = np.quantile(means, bootstrap_quantiles(n, confidence), axis=-1)
    return mean, low, high


def units(x: np.ndarray, clusters: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    """Values averaged within clusters: (n, ...) to (clusters, ...), in order of the clusters' names; x without any."""
    if clusters is None:
        return x
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    counts = np.bincount(index)
    sums = np.zeros((len(counts), *x.shape[1:]))
    np.add.at(sums, index, x)
    return sums / counts.reshape(-1, *[1] * (x.ndim - 1))


def too_few(n: int) -> str:
    """Why there is no interval."""
    return f"intervals need {MINIMUM_DOCUMENTS} documents (or clusters of them), there are {n}"


def _interval(x: np.ndarray, method: Method) -> tuple[float, float, float]:
    if len(x) < MINIMUM_DOCUMENTS:
        return float(x.mean()), float("nan"), float("nan")
    function = t_interval if method.kind == "t" else bootstrap_interval
    mean, low, high = function(x, method.level)
    return float(mean), float(low), float(high)


def estimate(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    *,
    scale: Literal["auto", "arithmetic"] = "auto",
    method: Method = STUDENT,
) -> Estimate:
    """Mean of one value per document, with an interval over documents.

    Args:
        values: (n,), one per document; not-finite ones are left out.
        clusters: (n,) labels; documents of one label are averaged first, and count as one unit.
        scale: "auto" is geometric where every value is positive, else arithmetic (with the reason).
    """
    x = np.asarray(values, dtype=float)
    finite = np.isfinite(x)
    x, groups = x[finite], None if clusters is None else np.asarray(clusters)[finite]
    if not len(x):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "arithmetic", "no finite value")
    not_positive = int((x <= 0).sum())
    geometric = scale == "auto" and not not_positive
    x = units(np.log(x) if geometric else x, groups)
    mean, low, high = _interval(x, method)
    reasons = []
    if scale == "auto" and not_positive:
        reasons.append(f"arithmetic mean: {not_positive} of {int(finite.sum())} documents have a value of 0 or below")
    if len(x) < MINIMUM_DOCUMENTS:
        reasons.append(too_few(len(x)))
    why = "; ".join(reasons) or None
    if geometric:
        return Estimate(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)), len(x), "geometric", why)
    return Estimate(mean, low, high, len(x), "arithmetic", why)


def rank_biserial(differences: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of differences (n,): (W+ - W-) / (W+ + W-), zeros left out."""
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    if not len(d):
        return 0.0
    ranks = stats.rankdata(np.abs(d))
    return float((ranks[d > 0].sum() - ranks[d < 0].sum()) / ranks.sum())


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test (scipy; exact for small n); 1 where nothing differs."""
    d = np.asarray(differences, dtype=float)
    return 1.0 if not (d != 0).any() else float(stats.wilcoxon(d).pvalue)


def paired(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    *,
    method: Method = STUDENT,
    test: bool = True,
) -> Paired:
    """Compare two rules on the same documents; a[i] and b[i] belong to document i. Pairs with a NaN are left out.

    Args:
        test: whether to test; without, p is NaN (the test takes most of the time, and per bin nobody reads it).
    """
    both = np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
    finite = np.isfinite(both).all(axis=0)
    x, y = both[:, finite]
    groups = None if clusters is None else np.asarray(clusters)[finite]
    nan = float("nan")
    if not len(x):
        return Paired(nan, nan, nan, nan, nan, 0, 0, "no document has both")
    not_positive = int(((x <= 0) | (y <= 0)).sum())
    reasons = []
    if not_positive:
        d = units(x - y, groups)
        ratio = low = high = nan
        reasons.append(f"no ratio: {not_positive} of {len(x)} documents have a value of 0 or below")
    else:
        d = units(np.log(x) - np.log(y), groups)
        ratio, low, high = np.exp(_interval(d, method)).tolist()
    p = nan
    if len(d) < MINIMUM_DOCUMENTS:
        reasons.append(too_few(len(d)))
    elif test:
        p = wilcoxon(d)
    return Paired(ratio, low, high, p, rank_biserial(d), int((d > 0).sum()), len(d), "; ".join(reasons) or None)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values of one family (k,); NaN entries are not part of the family and stay NaN."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted
