"""Influence by rule and distance in a linear mixed model: how far a rule exceeds its control, and how that changes.

    log FI(document, rule, bin) = rule + rule * x + document + document * x + document:bin
                                + document:rule + document:rule * x + residual

x is the log of distance (+ 1), centred over bins; all but the first two terms are random. What a document, or a stretch
of its text, does to both rules alike cancels in their ratio, so that the model is fitted to the log ratio of a rule and
its control:

    log ratio(document, bin) = level + slope * x + document + document * x + residual

`log FI ~ rule * x + (1 | document)` alone would take every bin of a curve for independent evidence: its intervals
are too narrow (docs/statistics.md has the simulation). With a ratio's own level and slope in each document as random
effects, documents are the unit again. Intervals use Student's t with documents - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.measures.decay import MINIMUM_BINS
from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.matrix import Matrix
from forward_influence.analysis.reading.pairing import RANDOM, beside_baseline
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS, STUDENT, Method, too_few, units
from forward_influence.analysis.statistics.mixed import Contrast, Singular, fit_mixed

#: The random effects of a document: its level ("group"), and its slope.
SLOPE = "slope of documents"
COMPONENTS = {SLOPE: "0 + x"}
NEEDED = ("group", SLOPE)
_CHANGE = ["doubling", "doubling_low", "doubling_high", "p_doubling"]
_VALUES = ["distance", "ratio", "ratio_low", "ratio_high", "p_ratio", *_CHANGE, "sd_level", "sd_slope", "sd_residual"]


def mixed_models(
    curves: pd.DataFrame, baseline: str = RANDOM, *, clustered: bool = False, method: Method = STUDENT
) -> pd.DataFrame:
    """A mixed model of every rule beside the baseline, over all distances.

    Args:
        curves: in log-spaced bins (`Curves.log`).

    Returns:
        Columns of `RULE`, then `per`, `baseline`, `distance` (the middle of the range on a log scale), `ratio` to the
        baseline there, and `doubling` (the factor by which the ratio changes with every doubling of the distance), both
        with bounds and p-values, the standard deviations of what is random (`sd_level`, `sd_slope`, `sd_residual`; of
        logs), `n` (documents or clusters), `bins`, and `reason` why there are no numbers, or which bins were left out.
    """
    rows: list[dict[str, Any]] = []
    for one in beside_baseline(curves, baseline):
        found = _fitted(one.rule, one.control, clustered, method.level)
        rows.append({**one.about, "baseline": one.baseline, **found})
    return pd.DataFrame(rows, columns=[*RULE, "per", "baseline", *_VALUES, "n", "bins", "reason"])


def _fitted(a: Matrix, b: Matrix, clustered: bool, level: float) -> dict[str, Any]:
    """The model of one rule and its control, in the columns of `mixed_models` from `distance` on."""
    usable = ~(a.below_floor | b.below_floor)
    usable &= (a.kl > 0).all(axis=0) & (b.kl > 0).all(axis=0)  # false where a document has no position, too
    left = len(usable) - int(usable.sum())
    left_out = f"{left} of {len(usable)} bins left out: under the noise floor" if left else ""
    logs = units(np.log(a.kl[:, usable]) - np.log(b.kl[:, usable]), a.clusters if clustered else None)
    n, bins = logs.shape
    row: dict[str, Any] = {**dict.fromkeys(_VALUES, math.nan), "n": n, "bins": bins}
    if n < MINIMUM_DOCUMENTS:
        return {**row, "reason": too_few(n)}
    if bins < MINIMUM_BINS:
        return {**row, "reason": f"a slope needs {MINIMUM_BINS} bins of distance; {left_out}"}
    x = np.log1p((a.low + a.high - 1)[usable] / 2)
    frame = pd.DataFrame({"y": logs.ravel(), "x": np.tile(x - x.mean(), n), "document": np.repeat(np.arange(n), bins)})
    try:
        found = fit_mixed(frame, "y ~ x", frame["document"], COMPONENTS, df=n - 1, needed=NEEDED)
    except Singular as error:
        reason = f"singular: {error}, so that no numbers are given"
        return {**row, "reason": "; ".join(filter(None, [reason, left_out]))}
    at, slope = found.contrast({"Intercept": 1.0}, level), found.contrast({"x": math.log(2)}, level)
    return {
        **row,
        **{"distance": math.expm1(float(x.mean())), **_columns("ratio", at), **_columns("doubling", slope)},
        **{"sd_level": found.sds["group"], "sd_slope": found.sds[SLOPE], "sd_residual": found.sds["residual"]},
        "reason": left_out,
    }


def _columns(name: str, found: Contrast) -> dict[str, float]:
    value, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"p_{name}": found.p}
