"""Binning equals a plain loop; averaging goes draws, segments, document; several runs are read together."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated import Decay, simulate

from forward_influence.analysis.measures.layer_profile import layer_influence
from forward_influence.analysis.reading.binning import bins, zone_edges
from forward_influence.analysis.reading.curves import (
    ZONES,
    bin_means,
    labels,
    load,
    load_zones,
    named,
)
from forward_influence.errors import ForwardInfluenceError, UsageError


@pytest.mark.parametrize(
    ("continuation", "width", "log", "count"),
    [
        (1024, 128, False, None),
        (1000, 128, False, None),
        (5, 128, False, None),
        (3072, 128, True, None),
        (40, 128, True, 50),
        (1024, 128, False, 7),
        (1, 1, True, None),
        (16, 16, True, 1),
    ],
)
def test_edges_cover_every_position_once(continuation: int, width: int, log: bool, count: int | None) -> None:
    edges = bins(continuation, width, log=log, count=count)
    assert edges[0] == 0
    assert edges[-1] == continuation
    assert (np.diff(edges) > 0).all()
    if not log and count is None:
        assert (np.diff(edges)[:-1] == width).all()


def test_log_bins_grow_by_a_constant_factor() -> None:
    edges = bins(14000, log=True)[1:]
    ratios = edges[1:] / edges[:-1]
    assert ratios.max() / ratios.min() < 1.1


@pytest.mark.parametrize("continuation", [1000, 1024, 100, 128, 3072])
def test_bins_of_sampled_positions_hold_whole_stretches(continuation: int) -> None:
    for edges in (bins(continuation, stretch=128, log=True), bins(continuation, stretch=128)):
        assert edges[0] == 0
        assert edges[-1] == continuation
        assert (np.diff(edges) > 0).all()
        assert (edges[:-1] % 128 == 0).all()
    assert bins(continuation, 32, stretch=128).tolist() == bins(continuation, 32).tolist()  # as asked for


def test_zones_are_an_eighth_and_a_half() -> None:
    assert zone_edges(1024).tolist() == [0, 128, 512, 1024]
    assert zone_edges(100, near=0.2, middle=0.4).tolist() == [0, 20, 40, 100]
    assert zone_edges(3).tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="at least 3"):
        zone_edges(2)
    with pytest.raises(UsageError, match="near < middle"):
        zone_edges(100, near=0.5, middle=0.4)
    with pytest.raises(UsageError, match="cannot bin"):
        bins(100, 0)


@pytest.mark.parametrize("seed", range(20))
def test_bin_means_equal_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m = int(rng.integers(3, 400))
    edges = np.unique(np.append(rng.integers(0, m + 50, 9), [0, m]))
    distance = np.sort(rng.choice(m, int(rng.integers(1, m + 1)), replace=False)) if seed % 2 else None
    values = rng.random(m if distance is None else len(distance)).astype(np.float32)
    means, counts = bin_means(values, edges, distance)
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [float(v) for i, v in enumerate(values) if low <= (i if distance is None else distance[i]) < high]
        assert counts[k] == len(inside)
        if inside:
            assert means[k] == pytest.approx(sum(inside) / len(inside), rel=1e-12)
        else:
            assert np.isnan(means[k])


def test_draws_then_segments_then_document(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", documents=2, segments=2, draws=3, continuation=256, positions_per_bin=9)
    frame = load(run, 64)
    rows = [r for r in run.rows() if r["kind"] == "condition"]
    for _, line in frame.iterrows():
        mine = [r for r in rows if r["document"] == line["document"] and r["selector"] == line["selector"]]
        for column, shown in (("kl", "measured"), ("top1_changed", "top1_changed")):
            of_segments = []
            for segment in (0, 1):
                of_draws = []
                for row in (r for r in mine if r["segment"] == segment):
                    pairs = zip(row["distance"], row[column], strict=True)
                    picked = [float(v) for d, v in pairs if line["low"] <= d < line["high"]]
                    of_draws.append(sum(picked) / len(picked))
                of_segments.append(sum(of_draws) / len(of_draws))
            assert line[shown] == pytest.approx(sum(of_segments) / 2, rel=1e-12)
        assert line["draws"] == (3 if line["selector"] == "random" else 1)
    assert set(frame["selector"]) == {"attention", "entropy", "random"}
    assert not frame.duplicated(["document", "selector", "bin"]).any()


def test_the_position_without_a_next_token_is_left_out_of_nll_alone(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", {"attention": Decay()}, documents=1, continuation=64)
    last = load(run, 16).iloc[-1]
    row = next(r for r in run.rows() if r["kind"] == "condition")
    assert np.isnan(row["nll_delta"][-1])
    assert last["nll_delta"] == pytest.approx(row["nll_delta"][48:63].astype(float).mean())
    assert last["measured"] == pytest.approx(row["kl"][48:].astype(float).mean())


def test_zone_means_recover_the_planted_curve(tmp_path: Path) -> None:
    decay = Decay("exponential", 0.4, 200.0)
    planted = {"attention": decay}
    run = simulate(tmp_path / "run", planted, documents=2, document_spread=0, rule_spread=0, noise=0, floor=3e-5)
    frame = load_zones(run)
    assert tuple(frame["zone"][:3]) == ZONES
    expected = [decay.mean(0, 128), decay.mean(128, 512), decay.mean(512, 1024)]
    np.testing.assert_allclose(frame["kl"], expected * 2, rtol=2e-5)  # the floor that rounding added is off
    assert frame["floor"].to_numpy() == pytest.approx(3e-5, rel=0.05)


def test_several_runs_and_clusters(tmp_path: Path) -> None:
    one = simulate(tmp_path / "a" / "run", documents=2, authors=("Adams", "Bush"))
    two = simulate(tmp_path / "b" / "run", documents=3, authors=("Adams",), continuation=512)
    frame = load([one, two], cluster="author")
    assert sorted(frame["run"].unique()) == sorted(named([one, two])) == ["a/run", "b/run"]
    assert frame.groupby("run")["continuation"].first().tolist() == [1024, 512]
    assert set(frame["cluster"]) == {"Adams", "Bush"}
    with pytest.raises(UsageError, match="did you mean 'author'"):
        load([one, two], cluster="autor")


def test_names_say_what_tells_folders_apart_and_a_folder_is_given_once(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/other")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert labels(folders) == ["a/x/run", "b/x/run", "other"]
    (tmp_path / "link").symlink_to(folders[2])
    for again in (folders[2], tmp_path / "b" / "." / "other", tmp_path / "link"):
        with pytest.raises(UsageError, match="is given twice; give each folder once"):
            labels([*folders, again])


@pytest.mark.parametrize(("continuation", "width"), [(14_000, 128), (1024, 128), (1023, 64), (100, 8), (8, 1), (3, 1)])
def test_short_continuations_get_narrower_bins(continuation: int, width: int) -> None:
    edges = bins(continuation)
    assert (np.diff(edges)[:-1] == width).all()
    assert len(edges) - 1 >= min(8, continuation)
    assert len(bins(continuation, 128)) - 1 == -(-continuation // 128)  # a width that is asked for is taken


def test_a_run_without_a_measured_document_says_how_to_go_on(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", documents=4, measured=0)
    with pytest.raises(ForwardInfluenceError, match=r"0 of 4 documents.*forward-influence measure"):
        load(run)


def test_influence_by_layer_is_of_single_layers_in_their_own_order() -> None:
    rows = [("10", 0, 4.0), ("10", 0, 1.0), ("2", 0, 9.0), ("2", 64, 3.0), ("2-10", 0, 7.0), ("2,10", 0, 7.0)]
    sweep = pd.DataFrame(rows, columns=["layers", "low", "kl"]).assign(selector="attention")
    table = layer_influence(sweep)["attention"]
    assert table.index.tolist() == [2, 10]
    assert table[0].tolist() == pytest.approx([9.0, 2.0])  # the geometric mean over documents
    assert table[64].tolist()[0] == pytest.approx(3.0)
