"""The mixed model: published fits of lme4, restricted likelihood by hand, planted curves, and what is singular."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from simulated import Decay, simulate

from forward_influence.analysis.measures.mixed import COMPONENTS, NEEDED, SLOPE, mixed_models
from forward_influence.analysis.reading.curves import read_curves
from forward_influence.analysis.statistics.mixed import Singular, fit_mixed

#: Yields of five samples of each of six batches (Davies & Goldsmith 1972; `Dyestuff` of lme4), g of standard colour.
DYESTUFF = """1545 1440 1440 1520 1580 1540 1555 1490 1560 1495 1595 1550 1605 1510 1560
1445 1440 1595 1465 1545 1595 1630 1515 1635 1625 1520 1455 1450 1480 1445"""
#: The constructed yields of Box & Tiao (1973; `Dyestuff2` of lme4), in which batches do not differ.
DYESTUFF2 = """7.298 3.846 2.434 9.566 7.990 5.220 6.556 0.608 11.788 -0.892 0.110 10.386 13.434 5.510 8.166
2.212 4.852 7.092 9.288 4.980 0.282 9.014 4.458 9.446 7.198 1.722 4.782 8.106 0.758 3.758"""


def batches(text: str) -> pd.DataFrame:
    return pd.DataFrame({"y": [float(v) for v in text.split()], "batch": np.repeat(list("ABCDEF"), 5)})


def test_the_published_fit_of_dyestuff():
    """lmer(Yield ~ 1 + (1 | Batch), Dyestuff), REML: 1527.5 (se 19.383), sd 42.00 between batches, 49.51 within."""
    frame = batches(DYESTUFF)
    crossed = fit_mixed(frame, "y ~ 1", np.ones(30), {"batch": "0 + batch"}, df=5, intercept=False)
    nested = fit_mixed(frame, "y ~ 1", frame["batch"], {}, df=5)
    for found, name in ((crossed, "batch"), (nested, "group")):
        assert found.effects[0] == pytest.approx(1527.5, abs=1e-3)
        assert math.sqrt(found.covariance[0, 0]) == pytest.approx(19.383, abs=2e-3)
        assert (found.sds[name], found.sds["residual"]) == (
            pytest.approx(42.0, abs=0.02),
            pytest.approx(49.51, abs=0.02),
        )


def test_batches_that_do_not_differ_are_singular():
    """lme4 reports a singular fit of Dyestuff2, with a variance of 0 between batches."""
    with pytest.raises(Singular, match=r"the variance of batch is estimated as none|does not converge"):
        fit_mixed(
            batches(DYESTUFF2), "y ~ 1", np.ones(30), {"batch": "0 + batch"}, df=5, needed=("batch",), intercept=False
        )


def planted(documents: int = 14, seed: int = 0) -> pd.DataFrame:
    """Log ratios that fall by 0.2 with each e-fold, of documents that differ in level and slope."""
    rng, x = np.random.default_rng(seed), np.linspace(-3, 3, 8)
    rows = []
    for d in range(documents):
        y = 0.5 - 0.2 * x + 0.4 * rng.standard_normal() + 0.1 * rng.standard_normal() * x + 0.1 * rng.standard_normal(8)
        rows.append(pd.DataFrame({"y": y, "x": x, "document": f"d{d:02d}"}))
    return pd.concat(rows, ignore_index=True)


def fitted(frame: pd.DataFrame):
    return fit_mixed(frame, "y ~ x", frame["document"], COMPONENTS, df=frame["document"].nunique() - 1, needed=NEEDED)


def restricted(frame: pd.DataFrame, sds: dict[str, float]) -> tuple[float, np.ndarray, np.ndarray]:
    """Restricted log likelihood, effects and their covariance, written out from the model's definition."""
    document = frame["document"].to_numpy()[:, None] == frame["document"].to_numpy()[None, :]
    random = sds["group"] ** 2 + sds[SLOPE] ** 2 * np.outer(frame["x"], frame["x"])
    v = document * random + np.eye(len(frame)) * sds["residual"] ** 2
    x, y = np.stack([np.ones(len(frame)), frame["x"]], axis=1), frame["y"].to_numpy()
    inverse = np.linalg.inv(v)
    information = x.T @ inverse @ x
    effects = np.linalg.solve(information, x.T @ inverse @ y)
    left = y - x @ effects
    value = np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1] + left @ inverse @ left
    return -value / 2, effects, np.linalg.inv(information)


def test_the_fit_is_the_maximum_of_the_restricted_likelihood_written_out():
    frame = planted()
    found = fitted(frame)
    best, effects, spread = restricted(frame, dict(found.sds))
    assert found.names == ("Intercept", "x") and found.effects == pytest.approx(effects, abs=1e-7)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx(np.sqrt(np.diag(spread)), rel=1e-3)
    for name in found.sds:
        for factor in (0.9, 1.1):
            assert restricted(frame, {**found.sds, name: factor * found.sds[name]})[0] < best


def test_a_contrast_is_a_t_interval_over_documents():
    """In a balanced design the estimate is the mean over documents of their own least-squares lines."""
    frame = planted()
    one = fitted(frame).contrast({"x": 1.0})
    slopes = frame.groupby("document")[["x", "y"]].apply(lambda part: np.polyfit(part["x"], part["y"], 1)[0]).to_numpy()
    assert one.value == pytest.approx(slopes.mean(), abs=1e-7)
    t = 2.1603686564610127  # 97.5%, 13 degrees of freedom
    assert (one.high - one.low) / 2 == pytest.approx(t * slopes.std(ddof=1) / math.sqrt(14), rel=1e-3)
    assert one.p == pytest.approx(2 * _t_above(abs(one.value) / ((one.high - one.low) / 2 / t), 13), rel=1e-9)


def _t_above(t: float, df: int) -> float:
    from scipy.special import betainc

    return float(betainc(df / 2, 0.5, df / (df + t * t)) / 2)


def test_planted_curves_are_recovered(tmp_path):
    """Power laws: the log ratio to random changes by the difference of exponents with each e-fold of distance."""
    rules = {
        "attention": Decay("power", 1, 0.9),
        "entropy": Decay("power", 0.3, 0.5),
        "random": Decay("power", 0.2, 0.6),
    }
    log = read_curves(simulate(tmp_path / "run", rules, documents=40, noise=0.1)).log
    sway(log)
    table = mixed_models(log).set_index("selector")
    for rule, slope in (("attention", -0.3), ("entropy", 0.1)):
        row = table.loc[rule]
        assert row["doubling"] == pytest.approx(2**slope, abs=0.06)
        assert row["doubling_low"] < 2**slope * 1.01 and row["doubling_high"] > 2**slope * 0.99  # a middle is no mean
        at = rules[rule].level / 0.2 * (row["distance"] + 1) ** slope
        assert row["ratio_low"] < at * 1.03 and row["ratio_high"] > at * 0.97
        assert (row["n"], row["baseline"], row["reason"]) == (40, "random", "")


def sway(log: pd.DataFrame) -> None:
    """Give the ratio of every document to random a slope of its own."""
    tilt = dict(
        zip(log["document"].unique(), np.random.default_rng(4).normal(0, 0.1, log["document"].nunique()), strict=True)
    )
    exponent = log["document"].map(tilt).to_numpy() * (log["selector"] == "random")
    log["kl"] *= (log["distance"] + 1) ** exponent


def test_documents_that_do_not_differ_are_singular_and_without_numbers(tmp_path):
    """Around one line for all documents, residuals without any level or slope: both variances are none."""
    log = read_curves(simulate(tmp_path / "run", {"attention": Decay(), "random": Decay()}, documents=8)).log
    x = np.log1p(log["distance"].unique())
    line = np.stack([np.ones(len(x)), x], axis=1)
    for document, seed in zip(log["document"].unique(), range(8), strict=True):
        noise = np.random.default_rng(seed).standard_normal(len(x))
        noise -= line @ np.linalg.lstsq(line, noise, rcond=None)[0]
        mine = log["document"] == document
        log.loc[mine & (log["selector"] == "random"), "kl"] = 0.1
        log.loc[mine & (log["selector"] == "attention"), "kl"] = 0.2 * np.exp(0.1 * noise)
    table = mixed_models(log)
    assert table["reason"].str.startswith("singular: ").all() and len(table) == 1
    assert table[["ratio", "doubling", "p_ratio", "sd_level"]].isna().all(axis=None)


def test_too_few_documents_and_what_lies_under_the_noise_floor(tmp_path):
    few = mixed_models(read_curves(simulate(tmp_path / "few", documents=5)).log)
    assert few["reason"].str.startswith("intervals need 6 documents").all() and few["ratio"].isna().all()
    low = mixed_models(read_curves(simulate(tmp_path / "low", documents=8, floor=1e-3)).log)
    assert low["reason"].str.contains("bins left out: under the noise floor").all()
    alone = simulate(tmp_path / "alone", {"attention": Decay()}, documents=8)
    assert mixed_models(read_curves(alone).log).empty
