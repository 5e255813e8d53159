"""Crossovers: planted ones are found and covered, early and late; what is not there is not claimed."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from simulated import RISES, Decay, crossing_documents, simulate

from forward_influence.analysis.measures import crossover
from forward_influence.analysis.measures.crossover import NONE, bounds_text, cross, crossing, crossovers, not_refused
from forward_influence.analysis.reading.curves import bins, fine_bins, load

RNG = np.random.default_rng
M = 2048


def planted_crossing(a: Decay, b: Decay, m: int) -> int:
    return int(np.argmax(a.at(np.arange(m)) > b.at(np.arange(m))))


def documents(levels: list[float], n: int = 8, spread: float = 0.05) -> tuple[np.ndarray, ...]:
    """A and B in fine bins of M positions, whose log ratio is each level over an equal part of the bins."""
    edges = fine_bins(M)
    parts = np.array_split(np.arange(len(edges) - 1), len(levels))
    mean = np.concatenate([np.full(len(part), level) for level, part in zip(levels, parts, strict=True)])
    ratio = mean + RNG(0).normal(0, spread, (n, 1)) + RNG(1).normal(0, spread, (n, len(mean)))
    return np.exp(ratio), np.ones_like(ratio), edges[:-1], edges[1:]


@pytest.mark.parametrize("m", [3, 4, 5, 16, 100, 768, 2048, 12_288])
def test_fine_bins_are_narrow_and_cover_every_position(m: int) -> None:
    edges = fine_bins(m)
    widths = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == m and (widths > 0).all()
    assert (widths <= np.maximum(6, 0.13 * edges[:-1])).all(), "8%, and a sliver at the end at most"
    sampled = fine_bins(m, 128)
    assert sampled[-1] == m
    assert (sampled[:-1] % 128 == 0).all()


def test_cross_by_hand() -> None:
    low, high = np.array([0, 10, 20, 30]), np.array([10, 20, 30, 40])
    middle = np.log1p([14.5, 24.5])
    assert cross(np.array([-1.0, -1.0, 1.0, 1.0]), low, high) == pytest.approx(np.expm1(middle.mean()))
    assert cross(np.array([-1.0, -3.0, 1.0, 1.0]), low, high) == pytest.approx(
        np.expm1(middle[0] + 0.75 * (middle[1] - middle[0]))
    )
    for ratios, expected in (
        ([1, 1, 1, 1], 0),
        ([-1, -1, -1, -1], np.inf),
        ([1, 1, -1, -1], np.inf),
        ([5, 1, 1, 3], 0),
    ):
        assert cross(np.array(ratios, dtype=float), low, high) == expected
    assert cross(np.array([5.0, 1, -1, -1]), low, high) == np.inf, "A exceeds B nowhere to the end"
    assert cross(np.array([-9.0, 1, 1, 1]), low, high, (2, 4)) > 14.5, "only among the cuts that are left"
    assert cross(np.array([1.0]), np.array([0]), np.array([8])) == 0


@pytest.mark.parametrize("rises", RISES)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9])
def test_a_planted_crossing_is_found_wherever_it_lies(rises: str, share: float) -> None:
    """Noiseless, to a hundredth; so far a crossing in the last half of the distances was "none within the range"."""
    edges = fine_bins(M)
    ratio = np.exp(RISES[rises](np.arange(M), share * M))
    means = np.add.reduceat(ratio, edges[:-1]) / np.diff(edges)
    a = np.repeat(means[None], 7, axis=0)
    found = crossing(a, np.ones_like(a), edges[:-1], edges[1:])
    assert found.distance == pytest.approx(share * M, rel=0.01)
    assert found.low <= share * M <= found.high
    assert found.within and "from" in found.text


def test_the_cuts_that_are_left_are_those_that_t_tests_leave() -> None:
    """Against scipy's test at every cut, one after another from both ends."""
    edges = fine_bins(600)
    low, high = edges[:-1], edges[1:]
    for seed, truth in itertools.product(range(4), (8, 100, 400)):
        a, b = crossing_documents(RNG(seed), "power laws", truth, edges, 7)
        logs = np.log(a) - np.log(b)

        def refused(bins_: np.ndarray, side: str, level: float, logs: np.ndarray = logs) -> bool:
            return stats.ttest_1samp(logs[:, bins_].mean(axis=1), 0, alternative=side).pvalue < level

        def inwards(first: int, refused: object = refused) -> int:
            while first < len(low):
                window = np.flatnonzero((low >= low[first]) & (low < low[first] + max(16, 0.15 * low[first])))
                if not refused(window, "less", 0.025 * 0.95):
                    break
                first += 1
            return first

        first, last = inwards(0), len(low)
        while last > 0:
            end = high[last - 1]
            window = np.flatnonzero((high <= end) & (high > min(end - 16, end / 1.15)))
            if not refused(window, "greater", 0.025):
                break
            last -= 1
        octaves = [(0, 16), *((16 * 2**k, 32 * 2**k) for k in range(6))]
        inside = [np.flatnonzero((low >= start) & (low < stop)) for start, stop in octaves]
        for window in inside:
            if refused(window, "less", 0.025 * 0.05 / len(octaves)):
                first = max(first, inwards(window[0] + 1))
        assert not_refused(logs, low, high) == (first, last)


@pytest.mark.parametrize(("rises", "truth"), [("power laws", 8), ("power laws", 1300), ("exponential", 1800)])
@pytest.mark.parametrize("n", [8, 24])
def test_intervals_cover_early_and_late(rises: str, truth: float, n: int) -> None:
    """As benchmarks/crossover_coverage.py, smaller; the bootstrap covered 83% at 8, 80 at 1,300, 19 at 1,800."""
    rng, edges, runs = RNG([n, int(truth)]), fine_bins(M), 120
    covered = 0
    for _ in range(runs):
        out = crossing(*crossing_documents(rng, rises, truth, edges, n), edges[:-1], edges[1:])
        covered += out.low <= truth <= out.high
        assert out.low <= out.distance <= out.high
        assert out.text != NONE, "a crossing that is there is not denied"
    assert covered / runs >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("truth", [1300, 1800])
def test_intervals_cover_in_wide_bins_too(truth: float) -> None:
    """Bounds are as precise as the bins, no more."""
    rng, edges = RNG(3), bins(M, log=True)
    found = [
        crossing(*crossing_documents(rng, "exponential", truth, edges, 24), edges[:-1], edges[1:]) for _ in range(60)
    ]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.93


def test_intervals_are_not_wider_than_they_have_to_be() -> None:
    """Where documents differ little, an interval is a few bins; twice as many documents make it narrower."""
    edges = fine_bins(M)
    ratio = RISES["exponential"](np.arange(M), 1024)
    logs = np.add.reduceat(ratio, edges[:-1]) / np.diff(edges)
    widths = []
    for n, spread in ((8, 0.02), (8, 0.4), (24, 0.4)):
        a = np.exp(logs + RNG(0).normal(0, spread, (n, 1)))
        out = crossing(a, np.ones_like(a), edges[:-1], edges[1:])
        assert out.low < 1024 < out.high
        widths.append(math.log(out.high / out.low))
    assert widths[0] < 0.4
    assert widths[0] < widths[2] < widths[1]


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ([1.0, 1.0], "throughout"),
        ([-1.0, -1.0], NONE),
        ([1.0, -1.0], NONE),
        ([3.0, -0.3, -0.3], NONE),
        ([-1.0, 1.0], "from 2"),
        ([1.0, -1.0, 1.0], "from 4"),
        ([3.0, -0.3, 3.0], "from 4"),
        ([-1.0, 1.0, -1.0], NONE),
    ],
)
def test_what_is_claimed_of_a_shape(levels: list[float], text: str) -> None:
    """From a distance on means up to the end: a rule that falls back, or starts above, exceeds nothing "throughout"."""
    out = crossing(*documents(levels))
    assert out.text.startswith(text)
    assert out.low <= out.distance <= out.high


def test_what_cannot_be_told_is_left_open() -> None:
    out = crossing(*documents([0.0], spread=0.5))
    assert (out.low, out.high) == (0, np.inf)
    assert out.text.endswith("[95%: anywhere or nowhere]")
    edges = fine_bins(M)
    late = crossing(*crossing_documents(RNG(2), "power laws", 1638, edges, 8), edges[:-1], edges[1:])
    assert math.isinf(late.high) and 0 < late.low < 1638
    assert f"[95%: after {late.low:,.0f}]" in late.text
    never = crossing(*crossing_documents(RNG(0), "exponential", 2100, edges, 12), edges[:-1], edges[1:])
    assert never.text == f"no crossing seen up to 2,047 [95%: after {never.low:,.0f}]"


def test_bounds_in_words() -> None:
    cases = {
        (300, 1700): "300 to 1,700",
        (1800, np.inf): "after 1,800",
        (0, 40): "0 to 40",
        (0, np.inf): "anywhere or nowhere",
    }
    assert {bounds: bounds_text(*bounds) for bounds in cases} == cases
    assert bounds_text(0, 0) == bounds_text(np.inf, np.inf) == bounds_text(np.nan, np.nan) == ""


def test_crossovers_of_a_run(tmp_path: Path) -> None:
    rules = {"attention": Decay("power", 1.0, 0.9), "entropy": Decay("power", 0.12, 0.5), "random": Decay("power", 2.0)}
    run = simulate(tmp_path / "run", rules, documents=12, continuation=2048)
    frame = load(run, fine=True)
    truth = planted_crossing(rules["entropy"], rules["attention"], 2048)
    table = crossovers(frame, [("entropy", "attention"), ("entropy", "random"), ("random", "entropy"), ("x", "random")])
    assert table["rule"].tolist() == ["entropy", "entropy", "random"]
    assert table["low"][0] < truth < table["high"][0]
    assert table["distance"][0] == pytest.approx(truth, rel=0.35)
    assert f"from {table['distance'][0]:.0f} tokens [95%: {table['low'][0]:.0f} to" in table["text"][0]
    assert table["text"][1] == NONE
    assert table["text"][2] == "throughout"
    assert table["within"].tolist() == [True, False, False]
    by_default = crossovers(frame[frame["selector"] != "random"])
    assert (by_default["rule"][0], by_default["over"][0]) == ("entropy", "attention")
    few = crossovers(frame[frame["document"] < "speech 003"], [("entropy", "attention")])
    assert np.isnan(few["low"][0]) and few["within"][0] is None
    assert "need 6" in few["reason"][0]


def test_the_level_and_the_clusters_are_those_asked_for() -> None:
    edges = fine_bins(M)
    a, b = crossing_documents(RNG(8), "power laws", 300, edges, 12)
    plain, wide = (crossing(a, b, edges[:-1], edges[1:], confidence=level) for level in (0.95, 0.999))
    assert wide.low < plain.low < plain.high < wide.high
    doubled = crossing(np.repeat(a, 2, 0), np.repeat(b, 2, 0), edges[:-1], edges[1:], np.repeat(np.arange(12), 2))
    assert (doubled.low, doubled.high, doubled.n) == (plain.low, plain.high, 12)


def test_documents_without_positive_influence_are_counted() -> None:
    edges = bins(512, 128)
    a = np.ones((3, 4))
    a[1, 2] = 0.0
    out = crossing(a, 2 * np.ones((3, 4)), edges[:-1], edges[1:])
    assert out.n == 2
    assert out.distance == np.inf
    assert out.text == "no crossing seen up to 511", "two documents exclude nothing"
    assert "1 document without" in (out.reason or "")


def test_bins_in_which_both_rules_are_under_the_floor_are_left_out_of_a_crossover() -> None:
    """A overtakes B about 32; from 256 on both are below the flag, where chance turns them round again."""
    edges = np.array([0, 16, 32, 64, 128, 256, 512, 1024])
    rng = RNG(0)
    ratio = np.array([-1.0, -1, 1, 1, 1, -2, -2]) + rng.normal(0, 0.05, (8, 7))
    flagged = np.array([False] * 5 + [True] * 2)
    a, b = np.exp(ratio), np.ones_like(ratio)
    assert crossing(a, b, edges[:-1], edges[1:]).distance == np.inf
    out = crossing(a, b, edges[:-1], edges[1:], flagged=flagged)
    assert 16 <= out.low <= out.distance <= out.high <= 64
    assert out.range == (0, 256)
    assert "2 bins in which both are under 4x the noise floor left out" in (out.reason or "")
    nothing = crossing(a, b, edges[:-1], edges[1:], flagged=np.ones(7, dtype=bool))
    assert np.isnan(nothing.distance)
    assert "in every bin" in (nothing.reason or "")


def test_a_crossing_where_bins_were_left_out_is_covered() -> None:
    """Both rules are under the floor from 64 to 256, and cross there: bounds are the edges of what remains."""
    edges = np.array([0, 16, 32, 64, 128, 256, 512, 1024])
    ratio = np.array([-1.0, -1, -1, 0, 0, 1, 1]) + RNG(0).normal(0, 0.05, (8, 7))
    flagged = np.array([False] * 3 + [True] * 2 + [False] * 2)
    out = crossing(np.exp(ratio), np.ones_like(ratio), edges[:-1], edges[1:], flagged=flagged)
    assert out.low <= 64 < 256 <= out.high


def test_a_crossover_keeps_bins_in_which_one_rule_stands_above_the_floor(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 1.0, 60), "entropy": Decay("flat", 0.05)}
    run = simulate(tmp_path / "run", rules, documents=8, floor=1e-3, noise=0.1)
    (row,) = crossovers(load(run, fine=True), [("entropy", "attention")]).to_dict("records")
    truth = planted_crossing(rules["entropy"], rules["attention"], 1024)
    assert row["low"] <= truth <= row["high"]
    assert (row["first"], row["last"], row["reason"]) == (0, 1023, None)


def test_where_positions_were_sampled_bounds_lie_between_the_stretches(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 1.0, 150), "entropy": Decay("flat", 0.05)}
    run = simulate(tmp_path / "run", rules, documents=8, continuation=1024, positions_per_bin=8, noise=0.1)
    (row,) = crossovers(load(run, fine=True), [("entropy", "attention")]).to_dict("records")
    assert row["low"] <= planted_crossing(rules["entropy"], rules["attention"], 1024) <= row["high"]
    assert row["low"] % 128 == 0 and row["high"] % 128 == 0
    assert row["n"] == 8


def test_windows_hold_at_least_a_bin() -> None:
    edges = np.array([0, 500, 1000])
    assert crossover._behind(edges[:-1], edges[1:]).tolist() == [1, 2, 2]
    assert crossover._before(edges[:-1], edges[1:]).tolist() == [0, 0, 1]
