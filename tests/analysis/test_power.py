"""Power against statsmodels, a published size, and simulation; what `plan RUN --detect` makes of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from simulated import Decay, simulate
from statsmodels.stats.power import TTestPower

from forward_influence.analysis.measures.sizing import documents_needed
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.statistics.equivalence import tost
from forward_influence.analysis.statistics.power import (
    documents_for,
    power_of_difference,
    power_of_equivalence,
    smallest_found,
    upper_spread,
)
from forward_influence.errors import UsageError


@pytest.mark.parametrize("n", [6, 12, 40, 300])
@pytest.mark.parametrize("effect", [0.0, 0.05, 0.18, -0.4])
def test_power_is_that_of_statsmodels(effect, n):
    expected = TTestPower().power(effect / 0.3, n, 0.05, alternative="two-sided")
    assert power_of_difference(effect, 0.3, n) == pytest.approx(float(expected), abs=1e-6)


def test_the_size_that_r_gives():
    """pwr.t.test(d = 0.5, power = 0.8, type = "paired") of R's pwr: n = 33.37."""
    assert documents_for(lambda n: power_of_difference(0.5, 1.0, n)) == 34


@pytest.mark.parametrize(("margin", "sd", "n"), [(0.1, 0.1, 12), (0.1, 0.2, 24), (0.2, 0.3, 40), (0.1, 0.3, 6)])
def test_power_of_equivalence_is_what_simulated_studies_have(margin, sd, n):
    rng = np.random.default_rng(n)
    x = sd * rng.standard_normal((40_000, n))
    half = stats.t.ppf(0.95, n - 1) * x.std(axis=1, ddof=1) / math.sqrt(n)
    inside = np.abs(x.mean(axis=1)) + half < margin
    assert inside[:200].tolist() == [tost(row, margin) < 0.05 for row in x[:200]]
    assert power_of_equivalence(margin, sd, n) == pytest.approx(inside.mean(), abs=0.008)


def test_the_fewest_documents_are_the_fewest():
    for sd in (0.05, 0.3, 1.0):
        n = documents_for(lambda n, sd=sd: power_of_difference(math.log(1.2), sd, n))
        assert n >= 6 and power_of_difference(math.log(1.2), sd, n) >= 0.8
        assert n == 6 or power_of_difference(math.log(1.2), sd, n - 1) < 0.8
    assert documents_for(lambda n: 0.1) is None


def test_the_smallest_difference_found_has_the_power():
    assert power_of_difference(smallest_found(0.3, 12), 0.3, 12) == pytest.approx(0.8, abs=1e-6)


def test_the_upper_limit_of_a_spread_is_above_it_in_four_of_five_pilots():
    spreads = np.random.default_rng(0).standard_normal((20_000, 8)).std(axis=1, ddof=1)
    assert np.mean([upper_spread(s, 8) > 1 for s in spreads]) == pytest.approx(0.8, abs=0.01)


def test_no_spread_is_always_enough():
    assert (power_of_difference(0.1, 0.0, 6), power_of_difference(0.0, 0.0, 6)) == (1.0, 0.0)
    assert power_of_equivalence(0.1, 0.0, 6) == 1.0


def test_a_run_says_how_many_documents_the_next_one_needs(tmp_path):
    run = simulate(tmp_path / "run", {"attention": Decay("flat", 2.0), "random": Decay("flat", 1.0)}, documents=40)
    table = documents_needed(load_zones(run), 1.2).set_index("zone")
    frame = load_zones(run)
    wide = frame[frame["zone"] == "far"].pivot(index="document", columns="selector", values="kl")
    sd = np.log(wide["attention"] / wide["random"]).std(ddof=1)
    assert table.loc["far", "sd"] == pytest.approx(sd)
    expected = math.ceil(TTestPower().solve_power(math.log(1.2) / sd, power=0.8, alpha=0.05))
    assert table.loc["far", "documents"] == expected < table.loc["far", "documents_safe"]
    assert table.loc["far", "equal_documents"] > expected  # the margin is smaller than the ratio
    assert documents_needed(load_zones(run), 1 / 1.2)["documents"].tolist() == table["documents"].tolist()


@pytest.mark.parametrize("ratio", [1, 0, -1, math.nan, math.inf])
def test_nothing_to_detect_is_refused(ratio):
    with pytest.raises(UsageError, match="no difference to detect"):
        documents_needed(None, ratio)


def test_a_pilot_of_five_documents_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a pilot of 5 documents"):
        documents_needed(load_zones(simulate(tmp_path / "run", documents=5)), 1.2)
    with pytest.raises(UsageError, match="nothing was measured beside recent"):
        documents_needed(load_zones(simulate(tmp_path / "other", documents=6)), 1.2, baseline="recent")
