"""Fits recover planted exponents, lengths, half-distances, shares, and their intervals cover them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated import Decay, simulate

from forward_influence.analysis.measures.decay import HALF_FROM, bin_law, fit, fit_decay, half_distance, predict, shares
from forward_influence.analysis.measures.fading import told_apart
from forward_influence.analysis.reading.curves import bins, load, load_zones
from forward_influence.analysis.statistics.inference import t_interval

QUIET = {"document_spread": 0.0, "rule_spread": 0.0, "noise": 0.0}
RNG = np.random.default_rng


def planted(decay: Decay, edges: np.ndarray) -> np.ndarray:
    return np.log([decay.mean(a, b) for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("law", ["power", "exponential"])
def test_fits_recover_planted_rates_exactly_without_noise(law: str, log: bool) -> None:
    edges = bins(3072, log=log)
    for rate in (0.2, 0.9, 1.7) if law == "power" else (150.0, 900.0, 1e5):
        decay = Decay(law, 0.4, rate)
        logs = planted(decay, edges)[None].repeat(2, axis=0)
        logs[1, 3] = np.nan
        rates, levels, errors = fit(law, logs, edges[:-1], edges[1:])
        np.testing.assert_allclose(rates if law == "power" else 1 / rates, rate, rtol=1e-5)
        np.testing.assert_allclose(levels, np.log(0.4), atol=1e-4)
        assert errors.max() < 1e-9
        drawn = predict(law, float(rates[0]), float(levels[0]), edges[:-1], edges[1:])
        np.testing.assert_allclose(drawn, np.exp(logs[0]), rtol=1e-4)


def test_the_law_of_a_bin_is_a_plain_mean() -> None:
    low, high = np.array([0, 5]), np.array([5, 40])
    for law, function in (("power", lambda d: (d + 1) ** -0.7), ("exponential", lambda d: np.exp(-0.7 * d))):
        value, slope = bin_law(law, np.array([0.7]), low, high)
        nudged, _ = bin_law(law, np.array([0.7 + 1e-6]), low, high)
        for k in range(2):
            expected = sum(function(d) for d in range(low[k], high[k])) / (high[k] - low[k])
            assert value[0, k] == pytest.approx(np.log(expected))
        np.testing.assert_allclose((nudged - value) / 1e-6, slope, rtol=1e-3)


def test_half_distance_halves_the_law() -> None:
    for law, decay in (("power", Decay("power", 1, 0.6)), ("exponential", Decay("exponential", 1, 300))):
        there = HALF_FROM + half_distance(law, 0.6 if law == "power" else 1 / 300)
        start, end = decay.at(np.array([HALF_FROM, there]))
        assert end == pytest.approx(start / 2)
    assert half_distance("power", -0.1) == half_distance("exponential", 0.0) == np.inf


def test_a_run_is_fitted_with_the_planted_laws_chosen(tmp_path: Path) -> None:
    rules = {
        "attention": Decay("power", 1.0, 0.9),
        "entropy": Decay("exponential", 0.3, 400),
        "first": Decay("flat", 0.1),
    }
    run = simulate(tmp_path / "run", rules, documents=12, noise=1.0)
    table = fit_decay(load(run, log=True)).set_index("selector")
    assert table.loc["attention", "model"] == "power"
    assert table.loc["entropy", "model"] == "exponential"
    assert table.loc["attention", "exponent"] == pytest.approx(0.9, abs=0.03)
    assert table.loc["attention", "exponent_low"] < 0.9 < table.loc["attention", "exponent_high"]
    assert table.loc["entropy", "length"] == pytest.approx(400, rel=0.05)
    assert table.loc["entropy", "half_low"] < 400 * np.log(2) < table.loc["entropy", "half_high"]
    expected = (HALF_FROM + 1) * (2 ** (1 / 0.9) - 1)
    assert table.loc["attention", "half_low"] < expected < table.loc["attention", "half_high"]
    assert table.loc["first", "half_high"] == np.inf
    assert table.loc["attention", "reason"] is None
    grouped = fit_decay(load(run, log=True, cluster="name"), clustered=True).set_index("selector")
    assert grouped.loc["attention", "exponent_low"] == pytest.approx(table.loc["attention", "exponent_low"])


def test_bins_below_the_floor_are_left_out_of_a_fit(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", {"attention": Decay("exponential", 0.5, 60)}, documents=7, floor=1e-4)
    table = fit_decay(load(run, 64))
    assert table["flagged_bins"][0] >= 8
    assert table["length"][0] == pytest.approx(60, rel=0.1)
    nothing = simulate(tmp_path / "none", {"attention": Decay("flat", 1e-6)}, documents=7, floor=1e-4)
    table = fit_decay(load(nothing, 64))
    assert table["model"][0] is None
    assert "above the noise floor" in table["reason"][0]


def test_exponent_intervals_cover_95_percent() -> None:
    """2000 runs of 8 documents whose own exponents vary with sd 0.15 around 0.8."""
    rng, edges = RNG(5), bins(1024, log=True)
    exponents = rng.normal(0.8, 0.15, (2000, 8))
    laws, _ = bin_law("power", exponents.ravel(), edges[:-1], edges[1:])
    rates, _, _ = fit("power", laws + rng.normal(0, 0.2, laws.shape), edges[:-1], edges[1:])
    _, low, high = t_interval(rates.reshape(2000, 8))
    assert 0.935 <= ((low <= 0.8) & (high >= 0.8)).mean() <= 0.965


def test_shares_are_the_planted_ones(tmp_path: Path) -> None:
    decay = Decay("power", 0.4, 0.8)
    run = simulate(tmp_path / "run", {"attention": decay}, documents=8)
    table = shares(load_zones(run))
    total = decay.at(np.arange(1024)).sum()
    near, far = decay.at(np.arange(128)).sum() / total, decay.at(np.arange(512, 1024)).sum() / total
    assert table["near_share_low"][0] < table["near_share"][0] < table["near_share_high"][0]
    assert table["near_share"][0] == pytest.approx(near, abs=0.02)
    assert table["far_share"][0] == pytest.approx(far, abs=0.02)


@pytest.mark.parametrize(("rate", "expected"), [(0.9, True), (0.5, False)])
def test_rules_fade_apart_only_where_documents_say_so(tmp_path: Path, rate: float, expected: bool) -> None:
    rules = {"fast": Decay("power", 1.0, rate), "slow": Decay("power", 0.3, 0.5)}
    zones = load_zones(simulate(tmp_path / "run", rules, documents=8))
    fast, slow = (zones[zones["selector"] == name] for name in rules)
    assert told_apart(fast, slow) is expected
    assert told_apart(slow, fast) is False
    assert told_apart(fast[fast["document"] < "speech 005"], slow) is False
    assert told_apart(fast.assign(floor=1.0), slow) is False


def test_more_comparisons_ask_for_wider_intervals() -> None:
    rng = RNG(3)
    edges = {"low": [0, 128, 512], "high": [128, 512, 1024]}

    def rule(far: np.ndarray) -> pd.DataFrame:
        rows = [
            {"document": f"{i}", "cluster": f"{i}", "floor": 0.0, "kl": [1.0, 0.5, x], **edges}
            for i, x in enumerate(far)
        ]
        frame = pd.DataFrame(rows).explode(["kl", "low", "high"]).astype({"kl": float, "low": int, "high": int})
        return frame.assign(measured=frame["kl"])

    found = []
    for shift in np.linspace(0.0, 0.6, 25):
        noise = rng.normal(0, 0.2, 8)
        fast, slow = rule(np.exp(-2 - shift + noise)), rule(np.full(8, np.exp(-2)))
        found.append((told_apart(fast, slow), told_apart(fast, slow, comparisons=28)))
    assert any(one and not many for one, many in found)
    assert not any(many and not one for one, many in found)
