"""Equal, or only not told apart: two one-sided tests (TOST) of log ratios against a margin named beforehand.

An interval that holds 1 says that these documents do not tell two rules apart, as few documents seldom do. That two
rules are equal within 10% is another finding: it takes documents enough to exclude larger differences either way
(Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS, t_interval, too_few, units

#: What is found of a ratio. "more" and "less" can hold beside equality within a margin; `in_words` says both.
MORE, LESS, NOT_TOLD_APART, EQUAL_WITHIN = "more", "less", "not told apart", "equal"


@dataclass(frozen=True)
class Equivalence:
    """A ratio of two rules beside a margin.

    Attributes:
        ratio: geometric mean over documents.
        low, high: its t-interval, by which more and less are told.
        equal_low, equal_high: the interval that lies within the margin where both one-sided tests reject: of 90% where
            the other is of 95%.
        p: of the two one-sided t-tests, the larger p-value.
        p_different: two-sided, of the paired t-test.
        p_beyond: two-sided, that the ratio lies beyond the margin.
        margin: as a factor.
        n: documents, or clusters of them.
        alpha: error of each test.
        reason: why there is no interval.
    """

    ratio: float
    low: float
    high: float
    equal_low: float
    equal_high: float
    p: float
    p_different: float
    p_beyond: float
    margin: float
    n: int
    alpha: float = 1 - CONFIDENCE
    reason: str | None = None

    @property
    def equal(self) -> bool:
        """Whether differences beyond the margin are excluded."""
        return self.p < self.alpha

    @property
    def finding(self) -> str:
        """`MORE`, `LESS`, `EQUAL_WITHIN` (not told apart) or `NOT_TOLD_APART`; "" without an interval."""
        if math.isnan(self.low):
            return ""
        if self.low > 1:
            return MORE
        if self.high < 1:
            return LESS
        return EQUAL_WITHIN if self.equal else NOT_TOLD_APART

    @property
    def in_words(self) -> str:
        """The finding, with the margin: "more, but equal within 10%"."""
        within = f"equal within {percent(self.margin)}"
        if self.finding == EQUAL_WITHIN:
            return within
        return f"{self.finding}, but {within}" if self.equal and self.finding else self.finding


def percent(margin: float) -> str:
    """A margin of 1.1 in words: 10%."""
    return f"{100 * (margin - 1):.3g}%"


def equivalence(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    margin: float,
    clusters: Sequence[Any] | np.ndarray | None = None,
    *,
    level: float = CONFIDENCE,
) -> Equivalence:
    """Two rules on the same documents, tested for difference and for equality within a margin.

    Args:
        a, b: (n,), a value per document; pairs with a NaN are left out.
        margin: above 1; 1.1 calls ratios between 1 / 1.1 and 1.1 equal.
        clusters: (n,) labels; documents of one label are averaged first, and count as one.
        level: of the interval; both one-sided tests err in at most 1 - level.
    """
    both = np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
    finite = np.isfinite(both).all(axis=0)
    x, y = both[:, finite]
    alpha, nan = 1 - level, math.nan
    without = Equivalence(nan, nan, nan, nan, nan, nan, nan, nan, margin, len(x), alpha)
    if not len(x):
        return _because(without, "no document has both")
    if not_positive := int(((x <= 0) | (y <= 0)).sum()):
        return _because(without, f"no ratio: {not_positive} of {len(x)} documents have a value of 0 or below")
    logs = units(np.log(x) - np.log(y), None if clusters is None else np.asarray(clusters)[finite])
    n, mean = len(logs), float(logs.mean())
    if n < MINIMUM_DOCUMENTS:
        return Equivalence(math.exp(mean), nan, nan, nan, nan, nan, nan, nan, margin, n, alpha, too_few(n))
    low, high = (math.exp(float(bound)) for bound in t_interval(logs, level)[1:])
    equal_low, equal_high = (math.exp(float(bound)) for bound in t_interval(logs, 1 - 2 * alpha)[1:])
    room = math.log(margin)
    p, different, out = tost(logs, room), two_sided(logs), beyond(logs, room)
    return Equivalence(math.exp(mean), low, high, equal_low, equal_high, p, different, out, margin, n, alpha)


def tost(differences: np.ndarray, margin: float) -> float:
    """The larger p-value of two one-sided t-tests: that the mean of (n,) differences is above -margin, and below it."""
    return max(one_sided(differences + margin), one_sided(margin - differences))


def beyond(differences: np.ndarray, margin: float) -> float:
    """p-value (two-sided) of t-tests that the mean of (n,) differences is above the margin or below its negative."""
    return min(1.0, 2 * min(one_sided(differences - margin), one_sided(-differences - margin)))


def one_sided(x: np.ndarray) -> float:
    """p-value of the t-test that the mean of (n,) values is above 0; 0 or 1 where they do not differ."""
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    if error == 0:
        return float(x.mean() <= 0)
    return float(stats.t.sf(float(x.mean()) / error, len(x) - 1))


def two_sided(x: np.ndarray) -> float:
    """p-value of the t-test that the mean of (n,) values is not 0."""
    return 1.0 if not x.any() else 2 * min(one_sided(x), one_sided(-x))


def _because(found: Equivalence, reason: str) -> Equivalence:
    return replace(found, reason=reason)
