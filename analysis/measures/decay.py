"""How influence falls with distance: power law and exponential, half-distance, near and far share.

Both laws are fitted to the log of the per-bin mean KL, for each document, by least squares. The fitted quantity is the
law's *mean over the bin's positions*, not its value at the bin's middle: a power law is steep inside the first bin, and
the middle would bias its exponent. The estimate is the mean of the documents' rates with a t-interval over documents;
which law describes a rule is chosen by AIC on its mean curve. Bins below the noise-floor flag are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.matrix import Matrix, by_rule, matrix
from forward_influence.analysis.statistics.inference import STUDENT, Estimate, Method, estimate
from forward_influence.utils.distances import ZONES

#: The half-distance is counted from here (tokens): the middle of the paper's first bin of 128.
HALF_FROM = 64
MINIMUM_BINS = 4
#: Each law is exp(-rate * u(d)): what of the distance it is linear in.
LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "power": np.log1p,
    "exponential": lambda d: np.asarray(d, dtype=float),
}


def bin_law(law: str, rate: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the law's mean over each bin, and its derivative by the rate: two arrays (documents, bins).

    Args:
        law: "power", (d + 1) ** -rate, or "exponential", exp(-rate * d).
        rate: (documents,).
        low, high: (bins,) positions of the bins, [low, high).
    """
    value, slope = np.empty((len(rate), len(low))), np.empty((len(rate), len(low)))
    for k, (start, stop) in enumerate(zip(low, high, strict=True)):
        u = LAWS[law](np.arange(start, stop))
        exponent = -rate[:, None] * (u - u[0])[None, :]
        top = np.maximum(exponent[:, :1], exponent[:, -1:])
        weight = np.exp(exponent - top)
        total = weight.sum(axis=1)
        value[:, k] = np.log(total / len(u)) + top[:, 0] - rate * u[0]
        slope[:, k] = -(weight @ u) / total
    return value, slope


def fit(law: str, logs: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares fit of a law to log curves, one per document.

    Args:
        logs: (documents, bins), log mean KL; NaN (or -inf) is left out.

    Returns:
        rate, log level at distance 0, and residual sum of squares: three arrays (documents,). NaN where a document has
        fewer than `MINIMUM_BINS` bins.
    """
    known = np.isfinite(logs)
    enough = known.sum(axis=1) >= MINIMUM_BINS
    y = np.where(known, logs, 0.0)
    weight = known / np.maximum(known.sum(axis=1, keepdims=True), 1)

    def centred(x: np.ndarray) -> np.ndarray:
        return x - (weight * x).sum(axis=1, keepdims=True)

    middles = LAWS[law]((low + high - 1) / 2)
    x = centred(np.broadcast_to(middles, y.shape))
    spread = np.maximum((weight * x * x).sum(axis=1), 1e-300)
    rate = -(weight * x * centred(y)).sum(axis=1) / spread
    for _ in range(30):  # Gauss-Newton; the law's log is nearly linear in the rate, so that a few steps do
        value, slope = bin_law(law, rate, low, high)
        residual, direction = centred(y - value), centred(slope)
        step = (weight * residual * direction).sum(axis=1)
        step /= np.maximum((weight * direction * direction).sum(axis=1), 1e-300)
        rate = rate + step
        if np.all(np.abs(step) <= 1e-10 * (np.abs(rate) + 1e-12)):
            break
    value, _ = bin_law(law, rate, low, high)
    level = (weight * (y - value)).sum(axis=1)
    error = (known * (y - value - level[:, None]) ** 2).sum(axis=1)
    return (np.where(enough, rate, np.nan), np.where(enough, level, np.nan), np.where(enough, error, np.nan))


def predict(law: str, rate: float, level: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean KL per bin under a fitted law (bins,), for drawing; `level` is the fitted log level."""
    return np.asarray(np.exp(level + bin_law(law, np.array([rate]), np.asarray(low), np.asarray(high))[0][0]))


def half_distance(law: str, rate: float) -> float:
    """Tokens beyond distance `HALF_FROM` that a law needs to halve; inf where it does not fall, NaN for a NaN rate."""
    if not rate > 0:
        return float("nan") if np.isnan(rate) else float("inf")
    if law == "exponential":
        return float(np.log(2) / rate)
    with np.errstate(over="ignore"):
        return float((HALF_FROM + 1) * np.expm1(np.log(2) / rate))


def aic(error: float, count: int, parameters: int = 3) -> float:
    """Akaike's criterion of a least-squares fit: level, rate and noise are its three parameters."""
    return count * np.log(max(error / count, 1e-300)) + 2 * parameters


def fit_rule(curve: Matrix, clusters: np.ndarray | None = None, method: Method = STUDENT) -> dict[str, Any]:
    """Both laws for one rule; keys as the columns of `fit_decay` after the rule's own."""
    nan = float("nan")
    used = ~curve.below_floor
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(curve.kl > 0, curve.kl, np.nan))[:, used]
        mean = np.log(curve.geometric_mean)[None, used]
    low, high = curve.low[used], curve.high[used]
    out: dict[str, Any] = {"model": None, "bins": int(np.isfinite(mean).sum()), "flagged_bins": int((~used).sum())}
    laws: dict[str, tuple[Estimate, float]] = {}
    reasons = set()
    for law in LAWS:
        rates = fit(law, logs, low, high)[0] if used.any() else np.full(len(curve.kl), nan)
        _, level, error = fit(law, mean, low, high) if used.any() else (None, [nan], [nan])
        of_documents = estimate(rates, clusters, scale="arithmetic", method=method)
        laws[law] = (of_documents, float(level[0]))
        out[f"aic_{law}"] = aic(float(error[0]), out["bins"]) if np.isfinite(error[0]) else nan
        reasons.add(of_documents.reason)
    power, exponential = laws["power"][0], laws["exponential"][0]
    out |= {"exponent": power.value, "exponent_low": power.low, "exponent_high": power.high}
    out |= dict(zip(("length", "length_low", "length_high"), _inverse(exponential), strict=True))
    if out["bins"] >= MINIMUM_BINS:
        out["model"] = "power" if out["aic_power"] <= out["aic_exponential"] else "exponential"
        chosen, level0 = laws[out["model"]]
        out |= {"rate": chosen.value, "log_level": level0}
        bounds = [half_distance(out["model"], x) for x in (chosen.value, chosen.high, chosen.low)]
        out |= dict(zip(("half_distance", "half_low", "half_high"), bounds, strict=True))
    else:
        out |= dict.fromkeys(("rate", "log_level", "half_distance", "half_low", "half_high"), nan)
        reasons = {f"a fit needs {MINIMUM_BINS} bins above the noise floor, there are {out['bins']}"}
    return {**out, "n": power.n, "reason": "; ".join(sorted(r for r in reasons if r)) or None}


def _inverse(rate: Estimate) -> tuple[float, float, float]:
    """Length 1 / rate with its bounds; infinite where the rate is not positive."""

    def length(x: float) -> float:
        return 1 / x if x > 0 else float("nan") if np.isnan(x) else float("inf")

    return length(rate.value), length(rate.high), length(rate.low)


def fit_decay(curves: pd.DataFrame, *, clustered: bool = False, method: Method = STUDENT) -> pd.DataFrame:
    """Decay of every rule of a tidy frame (log-spaced bins serve best), one row per rule.

    Columns after those of `RULE`: `model` ("power", "exponential" or None), `bins` used and `flagged_bins` left out,
    `aic_power`, `aic_exponential`; `exponent` of (d + 1) ** -exponent and `length` of exp(-d / length), each with
    `_low` and `_high`; `rate` and `log_level` of the chosen law for `predict`; `half_distance`, `half_low`, `half_high`
    in tokens beyond distance `HALF_FROM`, inf where the curve does not fall; `n` units, and `reason`.

    Args:
        clustered: the column `cluster` is the unit rather than the document.
    """
    rows = []
    for key, group in by_rule(curves):
        curve = matrix(group)
        rows.append({**key, **fit_rule(curve, curve.clusters if clustered else None, method=method)})
    return pd.DataFrame(rows)


def shares(zones: pd.DataFrame, *, clustered: bool = False, method: Method = STUDENT) -> pd.DataFrame:
    """Near share and far share of each rule: the part of all its influence (KL summed over positions) in that zone.

    Args:
        zones: as `load_zones` gives it.

    Returns:
        Columns of `RULE`, then `near_share`, `far_share`, each with `_low` and `_high` (arithmetic means over
        documents, 0..1), `n` and `reason`.
    """
    rows = []
    for key, group in by_rule(zones):
        curve = matrix(group)
        amount = curve.kl * (curve.high - curve.low)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = amount / amount.sum(axis=1, keepdims=True)
        row: dict[str, Any] = dict(key)
        for zone in ("near", "far"):
            column = parts[:, ZONES.index(zone)] if parts.shape[1] == len(ZONES) else np.full(len(parts), np.nan)
            groups = curve.clusters if clustered else None
            out = estimate(column, groups, scale="arithmetic", method=method)
            row[f"{zone}_share"] = out.value
            row[f"{zone}_share_low"], row[f"{zone}_share_high"] = max(out.low, 0.0), min(out.high, 1.0)
            row |= {"n": out.n, "reason": out.reason}
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else [*RULE])
