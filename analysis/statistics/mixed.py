"""Linear mixed models of log influence, fitted by statsmodels (REML); what is singular is said and not printed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from forward_influence.analysis.statistics.inference import CONFIDENCE

#: A variance below this part of the residual one is estimated as none.
NO_VARIANCE = 1e-4


class Singular(Exception):
    """A mixed model that its data do not determine; the text says why."""


@dataclass(frozen=True)
class Contrast:
    """A linear combination of fixed effects: value, interval, p (two-sided), on the scale of logs."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        names: of the fixed effects.
        effects, covariance: (k,) and (k, k).
        df: degrees of freedom of t-intervals.
        sds: standard deviations of random effects by name, and "residual".
    """

    names: tuple[str, ...]
    effects: np.ndarray
    covariance: np.ndarray
    df: int
    sds: Mapping[str, float]

    def contrast(self, weights: Mapping[str, float], level: float = CONFIDENCE) -> Contrast:
        """The combination of fixed effects with these weights by name; others have none."""
        w = np.array([weights.get(name, 0.0) for name in self.names])
        value, error = float(w @ self.effects), math.sqrt(float(w @ self.covariance @ w))
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * error
        return Contrast(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / error, self.df)))


def fit_mixed(
    frame: pd.DataFrame,
    formula: str,
    groups: pd.Series | np.ndarray,
    components: Mapping[str, str],
    *,
    df: int,
    needed: Sequence[str] = (),
    intercept: bool = True,
) -> Fit:
    """Fit a model by REML.

    Args:
        formula: of the fixed effects on the column `y`, `y ~ 0 + rule + rule:x`.
        groups: (rows,) labels of units that are independent of each other.
        components: name -> formula of independent random effects within a group, each of one variance.
        df: degrees of freedom of intervals: the units that the contrasts are between, less one.
        needed: components without which intervals would be too narrow: nothing is given where one is estimated as none.
        intercept: whether each group has a random intercept, called "group".

    Raises:
        Singular: the fixed effects or a needed variance are not determined, or the fit does not converge.
    """
    import statsmodels.formula.api as smf  # half a second, which other commands do without

    scale = float(frame["y"].std()) or 1.0  # optimisers begin at variances of 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is looked at below
        model = smf.mixedlm(
            formula,
            frame.assign(y=frame["y"] / scale),
            groups=groups,
            re_formula="1" if intercept else None,
            vc_formula=dict(components),
        )
        if np.linalg.matrix_rank(model.exog) < model.exog.shape[1]:
            raise Singular("the fixed effects are not determined: some of them say the same")
        result = _maximum(model)
    residual, k = float(result.scale), model.exog.shape[1]
    covariance = np.asarray(result.cov_params())[:k, :k]
    variances = dict(zip(model.exog_vc.names, map(float, result.vcomp), strict=True))
    if intercept:
        variances["group"] = float(np.asarray(result.cov_re)[0, 0])
    for name in needed:
        if variances[name] <= NO_VARIANCE * residual:
            raise Singular(f"the variance of {'documents' if name == 'group' else name} is estimated as none")
    if not np.isfinite(covariance).all() or np.linalg.eigvalsh(covariance).min() <= 0:
        raise Singular("the fit does not converge")
    sds = {name: scale * math.sqrt(max(value, 0.0)) for name, value in {**variances, "residual": residual}.items()}
    return Fit(tuple(model.exog_names), scale * np.asarray(result.fe_params), scale**2 * covariance, df, sds)


def _maximum(model: Any) -> Any:
    """The best fit of two optimisers: BFGS, and Powell's, which finds optima on the boundary, where a variance is none.

    (L-BFGS says of some of these likelihoods that it converged far from their maximum.)

    Raises:
        Singular: neither converges.
    """
    found = []
    for method in ("bfgs", "powell"):
        try:
            result = model.fit(reml=True, method=[method])
        except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):  # on the way, where a variance is none
            continue
        if result.converged:
            found.append(result)
    if not found:
        raise Singular("the fit does not converge")
    return max(found, key=lambda result: float(result.llf))
