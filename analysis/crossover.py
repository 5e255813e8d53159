"""Crossover: the distance from which one rule's influence exceeds another's. The paper's claim in one number.

The log ratio of the two rules, averaged over documents, is a curve over bins. The crossover is the cut after which it
is positive and before which it is negative, as far as possible: the minimum of its cumulative sum (the zero crossing
of its increasing isotonic fit), interpolated on log distance between the two bins around it. One noisy bin does not
move it, as it would move a rule such as "the first bin above 1".

Bins in which both rules are under the noise-floor flag are left out. Where one of them stands above it, which of the
two is larger is known, and that is all a crossover is about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from forward_influence.analysis.matrix import matrix
from forward_influence.analysis.pairing import CONDITIONS, align
from forward_influence.analysis.statistics import (
    CONFIDENCE,
    MINIMUM_DOCUMENTS,
    bootstrap_quantiles,
    resample,
    too_few,
    units,
)
from forward_influence.analysis.wording import many, tokens

RESAMPLES = 4000
NONE = "none within the range"


@dataclass(frozen=True)
class Crossing:
    """Where rule A's influence comes to exceed rule B's.

    Attributes:
        distance: tokens; 0 where A exceeds B throughout, inf where there is none within the range.
        low, high: bootstrap bounds over documents (expanded percentiles); high may be inf: beyond the range.
        within: share of bootstrap resamples that cross strictly within the range.
        n: documents (or clusters) with both rules.
        range: (first, last) distance looked at.
    """

    distance: float
    low: float
    high: float
    within: float
    n: int
    range: tuple[int, int]
    reason: str | None = None

    @property
    def text(self) -> str:
        """In words: "from 512 tokens [95%: 300 to 700]", or "none within the range"."""

        if np.isnan(self.distance):
            return "not known"
        where = NONE if np.isinf(self.distance) else "throughout"
        where = f"from {tokens(self.distance)}" if 0 < self.distance < np.inf else where
        if np.isnan(self.low) or (self.low == self.high == self.distance):
            return where
        return f"{where} [95%: {tokens(self.low)} to {tokens(self.high)}]"


def cross(log_ratio: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Crossing distance of mean log ratios: (..., bins) to (...,), 0 for throughout, inf for none.

    A must exceed B at the end: where the mean over the last quarter of the bins is not positive, there is none.
    """
    r = np.asarray(log_ratio, dtype=float)
    total = np.concatenate([np.zeros((*r.shape[:-1], 1)), np.cumsum(r, axis=-1)], axis=-1)
    cut = total.argmin(axis=-1)
    bins = r.shape[-1]
    inner = np.clip(cut, 1, bins - 1) if bins > 1 else np.ones_like(cut)
    middle = np.log1p((low + high - 1) / 2)
    if bins > 1:
        before = np.take_along_axis(r, inner[..., None] - 1, axis=-1)[..., 0]
        after = np.take_along_axis(r, inner[..., None], axis=-1)[..., 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.clip(np.where(after > before, -before / (after - before), 0.5), 0.0, 1.0)
        between = np.expm1(middle[inner - 1] + part * (middle[inner] - middle[inner - 1]))
    else:
        between = np.zeros(r.shape[:-1])
    distance = np.where(cut == 0, 0.0, np.where(cut == bins, np.inf, between))
    far = r[..., -max(bins // 4, 1) :].mean(axis=-1)
    return np.where(far > 0, distance, np.inf)


def crossing(
    a: np.ndarray,
    b: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    flagged: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Crossing:
    """From which distance A exceeds B; a and b are KL (documents, bins) on the same documents.

    Args:
        flagged: bool (bins,), those to leave out.
    """
    nan = float("nan")
    span = (int(low[0]), int(high[-1]))
    if flagged is not None and flagged.any():
        if flagged.all():
            return Crossing(nan, nan, nan, nan, 0, span, "both rules are under 3x the noise floor in every bin")
        a, b, low, high = a[:, ~flagged], b[:, ~flagged], low[~flagged], high[~flagged]
        out = crossing(a, b, low, high, clusters, confidence=confidence, resamples=resamples, seed=seed)
        left_out = f"{many(int(flagged.sum()), 'bin')} in which both are under 3x the noise floor left out"
        return replace(out, reason="; ".join(filter(None, [out.reason, left_out])))
    usable = (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all(axis=1)
    if not usable.any():
        return Crossing(nan, nan, nan, nan, 0, span, "no document has both rules with positive KL in every bin")
    missing = many(int((~usable).sum()), "document")
    reasons = [] if usable.all() else [f"{missing} without positive KL in every bin left out"]
    logs = units(np.log(a[usable]) - np.log(b[usable]), None if clusters is None else clusters[usable])
    distance = float(cross(logs.mean(axis=0), low, high))
    n = len(logs)
    if n < MINIMUM_DOCUMENTS:
        return Crossing(distance, nan, nan, nan, n, span, "; ".join([*reasons, too_few(n)]))
    found = cross(resample(n, resamples, seed) @ logs, low, high)
    bounds = np.quantile(found, bootstrap_quantiles(n, confidence), method="inverted_cdf")
    within = float((np.isfinite(found) & (found > 0)).mean())
    return Crossing(distance, float(bounds[0]), float(bounds[1]), within, n, span, "; ".join(reasons) or None)


def crossovers(
    curves: pd.DataFrame,
    pairs: list[tuple[str, str]] | None = None,
    *,
    clustered: bool = False,
    level: float = CONFIDENCE,
    seed: int = 0,
) -> pd.DataFrame:
    """Crossovers of pairs of rules measured alike (same run, budget, mode, effect, layers), one row per pair.

    Args:
        curves: a tidy frame in log-spaced bins.
        pairs: (A, B) selector specs: from where A exceeds B. By default every pair of rules, the rule with the larger
            far-to-near ratio as A.
        level: nominal confidence of the intervals.

    Returns:
        Columns run, budget, mode, effect, layers, `rule` (A), `over` (B), `distance`, `low`, `high`, `within`, `n`,
        `first` and `last` distance looked at, `text`, `reason`; see `Crossing`.
    """
    rows = []
    for key, group in curves.groupby(CONDITIONS, sort=False):
        wide = {str(s): part for s, part in group.groupby("selector", sort=False)}
        for first, second in _pairs(wide, pairs):
            both = align(wide[first], wide[second])
            if both is None:
                continue
            a, b = both
            groups = a.clusters if clustered else None
            options = {"flagged": a.below_floor & b.below_floor, "confidence": level, "seed": seed}
            out = crossing(a.kl, b.kl, a.low, a.high, groups, **options)
            values = {"distance": out.distance, "low": out.low, "high": out.high, "within": out.within, "n": out.n}
            values |= {"first": out.range[0], "last": out.range[1] - 1}
            named = dict(zip(CONDITIONS, key, strict=True))
            rows.append({**named, "rule": first, "over": second, **values, "text": out.text, "reason": out.reason})
    columns = [*CONDITIONS, "rule", "over", "distance", "low", "high", "within", "n", "first", "last", "text", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _pairs(wide: dict[str, pd.DataFrame], pairs: list[tuple[str, str]] | None) -> Iterator[tuple[str, str]]:
    if pairs is not None:
        yield from ((a, b) for a, b in pairs if a in wide and b in wide)
        return
    for a, b in combinations(wide, 2):
        yield (a, b) if _far_to_near(wide[a]) >= _far_to_near(wide[b]) else (b, a)


def _far_to_near(group: pd.DataFrame) -> float:
    mean = matrix(group).geometric_mean
    half = max(len(mean) // 2, 1)
    if len(mean) < 2:
        return 1.0
    near, far = float(mean[:half].mean()), float(mean[half:].mean())
    if near == 0:  # as of a rule that protects the newest tokens, which has no influence on the near ones
        return math.inf if far > 0 else 1.0
    return far / near
