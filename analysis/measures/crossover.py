"""Crossover: the distance from which one rule's influence exceeds another's. The paper's claim in one number.

It is sought among the cuts between bins, on the log ratio of the two rules per document. Its interval holds every cut
that documents do not speak against, each tested by itself with Student's t:

* were the crossover at or before a cut, A would exceed B right behind it: a cut is refused from below where the mean
  log ratio in a window *behind* it is surely negative,
* were it at or behind a cut, B would still exceed A right before it: a cut is refused from above where the mean in a
  window *before* it is surely positive.

Refused cuts count from both ends inwards, until one is not refused; from below also from the last octave of distance in
which B is surely larger on. The true one is refused from either side in at most 2.5% of cases, whatever the shape of
the curves and wherever it lies, so that both sides together cover 95% (more, in fact: a window reaches beyond its cut).
Nothing is resampled, and no bias of a fit or of a bin's middle enters.

The estimate is the cut, among those not refused, after which A exceeds B and before which it does not, as far as
possible: the minimum of the cumulative sum of the mean log ratio (the zero crossing of its increasing isotonic fit),
interpolated on log distance. One noisy bin does not move it, as it would move a rule such as "the first bin above 1".

KLs are taken as measured, rounding included: what it adds to both alike does not move the place where they are equal.
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
from scipy import stats

from forward_influence.analysis.formatting.wording import many, tokens
from forward_influence.analysis.reading.matrix import UNDER_FLOOR, matrix
from forward_influence.analysis.reading.pairing import CONDITIONS, align
from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS, too_few, units

#: What other rules are held against where it was measured: the paper's claim (arXiv:2606.26875) is about it.
REFERENCE = "attention"
NONE = "none within the range"
#: A window before or behind a cut spans so many positions, or this share of the distance where that is more.
WINDOW = 16
WINDOW_SHARE = 0.15
#: The part of the lower bound's error that goes to the search for the last octave in which B is larger.
LATER = 0.05


@dataclass(frozen=True)
class Crossing:
    """From where on rule A's influence exceeds rule B's, up to the end of the range.

    Attributes:
        distance: tokens; 0 where A exceeds B throughout, inf where no crossing is seen.
        low, high: bounds of the interval. low is 0 where "throughout" is not excluded, high is inf where "nowhere
            within the range" is not; both are 0 or both inf where nothing else is left. Precise to the bins.
        within: whether a crossing inside the range is left open; None without an interval.
        n: documents (or clusters) with both rules.
        range: (first, behind the last) distance looked at.
    """

    distance: float
    low: float
    high: float
    within: bool | None
    n: int
    range: tuple[int, int]
    reason: str | None = None

    @property
    def text(self) -> str:
        """In words: "from 512 tokens [95%: 300 to 700]", or "no crossing seen up to 2,047 [95%: after 1,800]"."""

        if np.isnan(self.distance):
            return "not known"
        if np.isinf(self.distance):
            where = NONE if self.within is False else f"no crossing seen up to {tokens(self.range[1] - 1)}"
        else:
            where = f"from {tokens(self.distance)} tokens" if self.distance > 0 else "throughout"
        bounds = bounds_text(self.low, self.high)
        return f"{where} [95%: {bounds}]" if bounds else where


def bounds_text(low: float, high: float) -> str:
    """The bounds of a crossover in words: "300 to 700", "after 1,800"; "" where there is nothing to say."""
    if np.isnan(low) or low == high:
        return ""
    if low == 0:
        return "anywhere or nowhere" if np.isinf(high) else f"0 to {tokens(high)}"
    return f"after {tokens(low)}" if np.isinf(high) else f"{tokens(low)} to {tokens(high)}"


def cross(log_ratio: np.ndarray, low: np.ndarray, high: np.ndarray, among: tuple[int, int] | None = None) -> float:
    """Crossing distance of a mean log ratio (bins,): 0 for throughout, inf where A does not exceed B at the end.

    Args:
        low, high: (bins,) positions of the bins, [low, high).
        among: first and last cut to choose from; cut k lies before bin k. All by default.
    """
    r = np.asarray(log_ratio, dtype=float)
    first, last = (0, len(r)) if among is None else among
    if r[_before(low, high)[-1] :].mean() <= 0:
        return math.inf
    cut = first + int(np.concatenate([[0.0], np.cumsum(r)])[first : last + 1].argmin())
    if cut in (0, len(r)):
        return 0.0 if cut == 0 else math.inf
    middle = np.log1p((low + high - 1) / 2)
    part = -r[cut - 1] / (r[cut] - r[cut - 1]) if r[cut] > r[cut - 1] else 0.5
    return float(np.expm1(middle[cut - 1] + np.clip(part, 0, 1) * (middle[cut] - middle[cut - 1])))


def _behind(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """For each cut (bins + 1,), behind which bin the window that begins there ends; no bin for the last cut."""
    reach = low + np.maximum(WINDOW, WINDOW_SHARE * low)
    ends = np.maximum(np.searchsorted(low, reach), np.arange(1, len(low) + 1))
    return np.append(ends, len(low))


def _before(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """For each cut (bins + 1,), at which bin the window that ends there begins; no bin for the first cut."""
    reach = high - np.maximum(WINDOW, (1 - 1 / (1 + WINDOW_SHARE)) * high)
    starts = np.minimum(np.searchsorted(high, reach, side="right"), np.arange(len(low)))
    return np.append(0, starts)


def _t(means: np.ndarray) -> np.ndarray:
    """Student's t of per-document means (documents, ...) against 0; 0 where they all are 0."""
    mean, error = means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(len(means))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(mean == 0, 0.0, mean / error))


def not_refused(logs: np.ndarray, low: np.ndarray, high: np.ndarray, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """First and last cut (0..bins) that documents do not speak against; cut k lies before bin k.

    Args:
        logs: log ratios of A to B, (documents, bins).
    """
    n, bins = logs.shape
    if n < 2:
        return 0, bins
    error = (1 - confidence) / 2
    sums = np.concatenate([np.zeros((n, 1)), np.cumsum(logs, axis=1)], axis=1)
    cuts = np.arange(bins + 1)
    ends, starts = _behind(low, high), _before(low, high)
    behind = _t((sums[:, ends] - sums) / np.maximum(ends - cuts, 1))
    before = _t((sums - sums[:, starts]) / np.maximum(cuts - starts, 1))
    left = behind >= -stats.t.isf(error * (1 - LATER), n - 1)  # of the last cut it is 0
    octave = np.unique(np.floor(np.log2(np.maximum(low, WINDOW / 2) / WINDOW)), return_index=True)[1]
    later = _t(np.add.reduceat(logs, octave, axis=1) / np.diff([*octave, bins]))
    surely = octave[later < -stats.t.isf(error * LATER / len(octave), n - 1)]
    first = max(start + int(left[start:].argmax()) for start in (0, *(int(cut) + 1 for cut in surely[-1:])))
    last = bins - int((before <= stats.t.isf(error, n - 1))[::-1].argmax())
    return min(first, last), max(first, last)


def crossing(
    a: np.ndarray,
    b: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    flagged: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
) -> Crossing:
    """From which distance A exceeds B; a and b are KL (documents, bins) on the same documents.

    Args:
        low, high: (bins,) positions of the bins, [low, high); the finer, the more precise (`binning.fine_bins`).
        flagged: bool (bins,), those to leave out.
        confidence: nominal coverage of the interval.
    """
    nan = float("nan")
    low, high = np.asarray(low), np.asarray(high)
    span = (int(low[0]), int(high[-1]))
    if flagged is not None and flagged.any():
        if flagged.all():
            return Crossing(nan, nan, nan, None, 0, span, f"both rules are {UNDER_FLOOR} in every bin")
        out = crossing(a[:, ~flagged], b[:, ~flagged], low[~flagged], high[~flagged], clusters, confidence=confidence)
        left_out = f"{many(int(flagged.sum()), 'bin')} in which both are {UNDER_FLOOR} left out"
        return replace(out, reason="; ".join(filter(None, [out.reason, left_out])))
    usable = (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all(axis=1)
    if not usable.any():
        return Crossing(nan, nan, nan, None, 0, span, "no document has both rules with positive KL in every bin")
    missing = many(int((~usable).sum()), "document")
    reasons = [] if usable.all() else [f"{missing} without positive KL in every bin left out"]
    logs = units(np.log(a[usable]) - np.log(b[usable]), None if clusters is None else clusters[usable])
    first, last = not_refused(logs, low, high, confidence)
    distance = cross(logs.mean(axis=0), low, high, (first, last))
    n, bins = len(logs), len(low)
    if n < MINIMUM_DOCUMENTS:
        return Crossing(distance, nan, nan, None, n, span, "; ".join([*reasons, too_few(n)]))
    # a crossover within a bin makes the cut before it or the one behind it the true one: bounds are one bin farther out
    least = 0.0 if first == 0 else math.inf if first == bins else max(float(low[first - 1]), 1.0)
    most = math.inf if last == bins else 0.0 if last == 0 else min(float(high[last]), span[1] - 1.0)
    within = first < bins and last > 0
    return Crossing(distance, least, most, within, n, span, "; ".join(reasons) or None)


def crossovers(
    curves: pd.DataFrame,
    pairs: list[tuple[str, str]] | None = None,
    *,
    clustered: bool = False,
    level: float = CONFIDENCE,
) -> pd.DataFrame:
    """Crossovers of pairs of rules measured alike (same run, budget, mode, effect, layers), one row per pair.

    Args:
        curves: a tidy frame in narrow bins (`binning.fine_bins`).
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
            options = {"flagged": a.below_floor & b.below_floor, "confidence": level}
            out = crossing(a.measured, b.measured, a.low, a.high, groups, **options)
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
