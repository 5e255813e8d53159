"""Intervals cover, tests keep their level, and Holm and Wilcoxon equal plain second implementations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from simulated import effects_of_documents

from forward_influence.analysis.statistics.inference import (
    bootstrap_interval,
    estimate,
    holm,
    paired,
    rank_biserial,
    t_interval,
    units,
    wilcoxon,
)


def plain_wilcoxon(d: np.ndarray) -> float:
    """Two-sided exact p by listing every assignment of signs; no ties, no zeros."""
    ranks = [1 + sum(abs(other) < abs(value) for other in d) for value in d]
    observed = sum(rank for rank, value in zip(ranks, d, strict=True) if value > 0)
    centre = sum(ranks) / 2
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in product((0, 1), repeat=len(d))]
    return sum(abs(s - centre) >= abs(observed - centre) for s in sums) / len(sums)


def plain_holm(p: list[float]) -> list[float]:
    """Adjusted p of test i: the smallest level at which Holm's step-down procedure rejects it, found by stepping."""
    out = []
    for i in range(len(p)):
        largest = 0.0
        for j in range(len(p)):
            if p[j] < p[i] or (p[j] == p[i] and j <= i):
                largest = max(largest, p[j] * sum((p[k], k) >= (p[j], j) for k in range(len(p))))
        out.append(min(1.0, largest))
    return out


@pytest.mark.parametrize("n", [6, 7, 9, 12])
def test_wilcoxon_equals_enumeration(n: int) -> None:
    for seed in range(4):
        d = np.random.default_rng(seed).normal(0.4, 1.0, n)
        assert wilcoxon(d) == pytest.approx(plain_wilcoxon(d), abs=1e-12)
    assert wilcoxon(np.zeros(n)) == 1.0


def test_holm_equals_stepping_and_leaves_nan_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(3) ** 3
        np.testing.assert_allclose(holm(p), plain_holm(p.tolist()), rtol=1e-12)
    np.testing.assert_allclose(holm([0.01, 0.01, 0.04]), [0.03, 0.03, 0.04])
    np.testing.assert_allclose(holm([0.02, np.nan, 0.01]), [0.02, np.nan, 0.02])
    assert np.isnan(holm([np.nan])).all()


def test_rank_biserial_by_hand() -> None:
    assert rank_biserial(np.array([1.0, 2.0, 3.0])) == 1.0
    assert rank_biserial(np.array([-1.0, 2.0, -3.0])) == pytest.approx((2 - 4) / 6)
    assert rank_biserial(np.array([0.0, -1.0, 1.0])) == 0.0


def test_t_interval_equals_scipy() -> None:
    x = np.random.default_rng(1).normal(size=(4, 9))
    mean, low, high = t_interval(x)
    for i in range(4):
        expected = stats.t.interval(0.95, 8, x[i].mean(), stats.sem(x[i]))
        assert (low[i], high[i]) == pytest.approx(expected)
        assert mean[i] == pytest.approx(x[i].mean())


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("n", [6, 12, 24])
def test_coverage_is_about_95_percent(n: int, gaussian: bool) -> None:
    """20,000 simulated runs each; the truth is the geometric mean of the population.

    Gaussian effects with sd 0.3 have skewed logs, which costs the t-interval a point or two for few documents.
    """
    rng = np.random.default_rng(n)
    truth = np.log(effects_of_documents(np.random.default_rng(99), 0.3, 2_000_000, gaussian)).mean()
    logs = np.log(effects_of_documents(rng, 0.3, (20_000, n), gaussian))
    _, low, high = t_interval(logs)
    covered = float(((low <= truth) & (truth <= high)).mean())
    assert (0.925 if gaussian else 0.945) <= covered <= 0.955
    _, low, high = bootstrap_interval(logs[:4000], resamples=2000)
    covered = float(((low <= truth) & (truth <= high)).mean())
    assert (0.90 if gaussian else 0.92) <= covered <= 0.97


@pytest.mark.parametrize("n", [8, 24])
def test_false_alarms_are_about_5_percent(n: int) -> None:
    """No effect: both rules share the document's effect and differ by exchangeable noise."""
    rng = np.random.default_rng(n)
    runs = 1500
    shared = rng.normal(0, 0.5, (runs, 1, n))
    a = np.exp(shared + rng.normal(0, 0.3, (runs, 3, n)))
    b = np.exp(shared + rng.normal(0, 0.3, (runs, 3, n)))
    outcomes = [[paired(a[i, zone], b[i, zone]) for zone in range(3)] for i in range(runs)]
    p = np.array([[one.p for one in family] for family in outcomes])
    excluded = np.array([[one.low > 1 or one.high < 1 for one in family] for family in outcomes])
    assert 0.03 <= (p < 0.05).mean() <= 0.06
    assert 0.04 <= excluded.mean() <= 0.06
    any_alarm = np.mean([(holm(family) < 0.05).any() for family in p])
    assert any_alarm <= 0.065


def test_estimate_is_a_geometric_mean_without_interval_below_six() -> None:
    few = estimate([1.0, 4.0, 16.0])
    assert few.value == pytest.approx(4.0)
    assert few.scale == "geometric"
    assert np.isnan(few.low)
    assert np.isnan(few.high)
    assert "need 6" in (few.reason or "")
    many = estimate([1.0, 4.0, 16.0] * 2)
    assert many.reason is None
    assert many.low < 4.0 < many.high


def test_zero_and_negative_values_fall_back_for_all_documents_and_say_so() -> None:
    values = [0.0, 1.0, 2.0, 3.0, -1.0, 4.0]
    out = estimate(values)
    assert out.scale == "arithmetic"
    assert out.value == pytest.approx(1.5)
    assert "2 of 6" in (out.reason or "")
    assert (out.low, out.high) == pytest.approx(stats.t.interval(0.95, 5, 1.5, stats.sem(values)))
    pair = paired(values, [1.0] * 6)
    assert np.isnan(pair.ratio)
    assert pair.n == 6
    assert pair.p == pytest.approx(stats.wilcoxon(np.array(values) - 1).pvalue)
    assert "no ratio: 2 of 6" in (pair.reason or "")


def test_paired_ratio_drops_incomplete_pairs() -> None:
    b = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    a = 3 * b
    a[6] = np.nan
    out = paired(a, b)
    assert (out.ratio, out.low, out.high) == pytest.approx((3.0, 3.0, 3.0))
    assert (out.n, out.wins, out.effect) == (6, 6, 1.0)
    assert out.p == pytest.approx(2 / 2**6)
    assert np.isnan(paired(a[:3], b[:3]).p)
    assert paired([np.nan], [1.0]).n == 0


def test_clusters_are_the_unit() -> None:
    values = np.array([1.0, 4.0, 9.0, 16.0])
    np.testing.assert_allclose(units(values, ["b", "b", "a", "a"]), [12.5, 2.5])
    out = estimate([1.0, 4.0, 9.0], ["x", "x", "y"])
    assert out.n == 2
    assert out.value == pytest.approx(np.sqrt(2 * 9))  # the geometric mean of each cluster's geometric mean
    twelve = np.exp(np.random.default_rng(0).normal(size=12))
    assert paired(twelve, np.ones(12), np.arange(12) // 2).n == 6
    assert paired(twelve, np.ones(12), np.arange(12) // 3).reason is not None
