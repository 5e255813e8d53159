"""Two one-sided tests: against statsmodels, by their interval, and what is said of every case."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import Decay, simulate
from statsmodels.stats.weightstats import ttost_paired

from forward_influence.analysis.measures.equivalence import equivalences, undecided
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.statistics.equivalence import beyond, equivalence, percent, tost, two_sided
from forward_influence.errors import UsageError
from forward_influence.utils.margins import check_margin


def logs_of(mean: float, sd: float, n: int) -> np.ndarray:
    """n values of exactly this mean and standard deviation."""
    x = np.random.default_rng(n).standard_normal(n)
    return mean + sd * (x - x.mean()) / x.std(ddof=1)


def of(mean: float, sd: float = 0.1, n: int = 12, margin: float = 1.1):
    return equivalence(np.exp(logs_of(mean, sd, n)), np.ones(n), margin)


@pytest.mark.parametrize("mean", [-0.2, -0.05, 0.0, 0.03, 0.0953, 0.3])
@pytest.mark.parametrize("n", [6, 12, 40])
def test_p_is_that_of_statsmodels(mean, n):
    a, b = np.exp(logs_of(mean, 0.1, n)), np.random.default_rng(9).lognormal(0, 1, n)
    expected = ttost_paired(np.log(a * b), np.log(b), -math.log(1.1), math.log(1.1))[0]
    found = equivalence(a * b, b, 1.1)
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert found.ratio == pytest.approx(math.exp(mean), rel=1e-9)


@pytest.mark.parametrize("mean", np.linspace(-0.15, 0.15, 13))
def test_equal_exactly_where_the_90_percent_interval_lies_within_the_margin(mean):
    found = of(mean)
    assert found.equal == (found.equal_low > 1 / 1.1 and found.equal_high < 1.1)
    assert found.low < found.equal_low < found.equal_high < found.high


def test_every_finding_is_told_from_the_others():
    assert of(0.5).in_words == "more"
    assert of(-0.5).in_words == "less"
    assert of(0.0, sd=0.03).in_words == "equal within 10%"
    assert of(0.04, sd=0.03).in_words == "more, but equal within 10%"
    assert of(-0.04, sd=0.03).in_words == "less, but equal within 10%"
    assert of(0.0, sd=0.6).in_words == "not told apart"
    assert of(0.0, sd=0.03, n=5).in_words == ""


def test_without_an_interval_the_reason_is_said():
    assert "intervals need 6 documents" in of(0.0, n=5).reason
    zero = equivalence(np.array([0.0, *np.ones(7)]), np.ones(8), 1.1)
    assert zero.reason == "no ratio: 1 of 8 documents have a value of 0 or below" and not zero.equal
    assert equivalence([], [], 1.1).reason == "no document has both"


def test_documents_of_a_cluster_count_once():
    values = np.exp(logs_of(0.02, 0.1, 8))
    twice = equivalence(np.repeat(values, 3), np.ones(24), 1.1, np.repeat(np.arange(8), 3))
    once = equivalence(values, np.ones(8), 1.1)
    assert (twice.p, twice.n, twice.high) == (pytest.approx(once.p), 8, pytest.approx(once.high))


def test_documents_that_all_agree():
    same = np.full(8, 0.01)
    assert tost(same, math.log(1.1)) == 0 and tost(same, 0.005) == 1
    assert two_sided(np.zeros(8)) == 1 and two_sided(same) == 0
    assert beyond(np.full(8, 0.5), 0.1) == 0 and beyond(same, 0.1) == 1


@pytest.mark.parametrize("margin", [1, 0.9, 0, -2, math.nan, math.inf, 11])
def test_a_margin_without_room_is_refused(margin):
    with pytest.raises(UsageError, match="to be equal in; give a factor above 1"):
        check_margin(margin)


def test_a_margin_in_words():
    assert [percent(m) for m in (1.1, 1.25, 2)] == ["10%", "25%", "100%"]


def test_a_run_says_equal_or_not_told_apart_and_never_both(tmp_path):
    rules = {"attention": Decay("flat", 1.0), "entropy": Decay("flat", 1.0), "random": Decay("flat", 1.0)}
    tight = simulate(tmp_path / "tight", rules, documents=20, rule_spread=0.02, noise=0.01)
    wide = simulate(tmp_path / "wide", rules, documents=8, rule_spread=0.4, noise=0.01)
    equal, open_ = (undecided(equivalences(load_zones(run))) for run in (tight, wide))
    assert equal[0] == "equal to random within 10%: entropy near, middle and far"
    assert not any("not told apart" in line for line in equal)
    assert [line.partition(":")[0] for line in open_] == ["not told apart from random, which is not the same as equal"]
    # a margin that nothing is within: the same rule is then not told apart
    assert "not told apart" in undecided(equivalences(load_zones(tight), margin=1.001))[0]
