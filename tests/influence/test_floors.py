"""The noise floor: measured where conditions are in 16 bits, taken off every mean, and what is left of its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import torch
from simulated import Decay, simulate

from forward_influence.analysis.measures.controls import floor_text
from forward_influence.analysis.reading.curves import load, load_zones
from forward_influence.analysis.reading.matrix import by_rule, matrix
from forward_influence.analysis.statistics.stopping import far_means
from forward_influence.influence.noise_floor import FLAG_FACTOR, floor_of, taken_off
from forward_influence.measurement.costs import document_operations, plan
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import document_tokens, floor_runs
from forward_influence.models.sizes import Sizes

RNG = np.random.default_rng


def floor_row(kl: Any, distance: Any = None, effect: str = "total", m: int = 1024) -> dict[str, Any]:
    kl = np.asarray(kl, np.float32)
    where = np.arange(len(kl)) if distance is None else np.asarray(distance)
    return {"kind": "noise_floor", "kl": kl, "distance": where, "effect": effect, "continuation": m}


def test_each_bin_has_its_own_floor() -> None:
    """Against plain means; so far the mean of the first 256 positions stood for all."""
    rng, edges = RNG(0), np.array([0, 128, 512, 1024])
    one, other = rng.random(1024), rng.random(1024)
    found = floor_of([floor_row(one), floor_row(other), {"kind": "condition", "kl": one}], "total", edges)
    expected = [(one[a:b].mean() + other[a:b].mean()) / 2 for a, b in ((0, 128), (128, 512), (512, 1024))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_where_the_floor_was_not_measured_its_mean_stands_for_it() -> None:
    first = RNG(0).random(256)
    found = floor_of([floor_row(first)], "total", np.array([0, 128, 256, 512, 1024]))
    expected = [first[:128].mean(), first[128:].mean(), first.mean(), first.mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    partly = floor_of([floor_row(first)], "total", np.array([0, 200, 1024]))
    np.testing.assert_allclose(partly, [first[:200].mean(), first.mean()], rtol=1e-6)
    assert np.isnan(floor_of([], "total", np.array([0, 4, 8]))).all()


def test_floors_at_sampled_positions_cover_the_end() -> None:
    where = np.array([3, 40, 90, 130, 200, 250, 300])
    values = np.arange(1.0, 8.0)
    found = floor_of([floor_row(values, where, m=320)], "total", np.array([0, 128, 256, 320]))
    np.testing.assert_allclose(found, [2.0, 5.0, 7.0])


def test_a_floor_of_the_same_effect_is_taken() -> None:
    rows = [floor_row([1.0] * 8, m=8), floor_row([3.0] * 8, effect="direct", m=8)]
    assert floor_of(rows, "direct", np.array([0, 8])).tolist() == [3.0]
    assert floor_of(rows[:1], "direct", np.array([0, 8])).tolist() == [1.0]


def test_taking_off() -> None:
    measured, floor = np.array([3.0, 0.0, 2.0]), np.array([1.0, 1.0, np.nan])
    assert taken_off(measured, floor, np.array([1.0, 0.0, 1.0])).tolist() == [2.0, 0.0, 2.0]


def test_means_are_those_without_rounding(tmp_path: Path) -> None:
    """A floor of the size of the influence: means are the planted ones, not a third or a half higher."""
    decay = Decay("flat", 1e-3)
    options = {"documents": 8, "floor": 4e-4, "noise": 0.2, "document_spread": 0.1, "rule_spread": 0.0}
    run = simulate(tmp_path / "run", {"attention": decay, "random": Decay("flat", 3e-3)}, **options)
    for key, group in by_rule(load_zones(run)):
        truth = 1e-3 if key["selector"] == "attention" else 3e-3
        curve = matrix(group)
        np.testing.assert_allclose(curve.geometric_mean, truth, rtol=0.12)
        np.testing.assert_allclose(curve.measured.mean(axis=0), truth + 4e-4, rtol=0.12)
        assert curve.below_floor.all() == (key["selector"] == "attention")
        np.testing.assert_allclose(curve.floor, 4e-4, rtol=0.02)
    assert "noise floor: 4.0e-4 nats, taken off every mean; means below 4 times it" in floor_text(load(run)).replace(
        "4.0e-04", "4.0e-4"
    )


def test_until_looks_at_the_same_means_as_the_tables(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", documents=2, floor=1e-3, noise=0.2)
    frame = load_zones(run).query("zone == 'far'").set_index(["document", "selector"])["kl"]
    for document in run.documents:
        for (selector, *_), value in far_means(run.part(document["part"]).rows).items():
            assert value == pytest.approx(frame[document["name"], selector], rel=1e-6)


SMALL = {"selectors": ("recent",), "context": 60, "continuation": 300, "protect_last": 8}


@pytest.mark.parametrize(
    ("dtype", "changes", "expected"),
    [
        (torch.float32, {}, {0: 256}),
        (torch.float32, {"segments": 2}, {0: 256}),
        (torch.bfloat16, {}, {0: 300}),
        (torch.bfloat16, {"segments": 2, "effect": "both"}, {0: 300, 1: 300}),
        (torch.float16, {"positions_per_bin": 8, "bin_width": 32, "effect": "both"}, {0: 77}),
    ],
)
def test_in_16_bits_the_floor_covers_what_conditions_cover(
    dtype: torch.dtype, changes: dict[str, Any], expected: dict[int, int]
) -> None:
    request = Request(**{**SMALL, **changes})
    [document] = tiny_data.documents(1, 360, segments=request.segments)
    told: list[int] = []

    class Heard:
        def begin(self, total: int, what: str) -> None: ...
        def advance(self, tokens: int, what: str) -> None:
            told.append(tokens)

        def message(self, text: str) -> None: ...
        def end(self) -> None: ...

    rows = measure_document(tiny_data.model(dtype=dtype), document, request, progress=Heard()).rows
    floors = [row for row in rows if row["kind"] == "noise_floor"]
    assert {row["segment"]: len(row["kl"]) for row in floors} == expected
    assert [row["effect"] for row in floors] == [effect.name for effect in request.effects] * len(expected)
    for row in floors:
        like = next(r for r in rows if r["kind"] == "condition" and r["segment"] == row["segment"])
        where = np.arange(300) if like["distance"] is None else np.asarray(like["distance"])
        assert np.asarray(row["distance"]).tolist() == where[: len(row["kl"])].tolist()
    assert sum(row["kind"] == "positive_control" for row in rows) == len(request.effects)
    assert sum(told) == document_tokens(request, itemsize=dtype.itemsize)
    assert [compared for _, compared in floor_runs(request, dtype.itemsize)] == [len(row["kl"]) for row in floors]


def test_what_the_floor_costs_is_planned() -> None:
    sizes = {"layers": 2, "hidden": 64, "query_heads": 4, "kv_heads": 2, "head_size": 16, "vocabulary": 97}
    request = Request(**{**SMALL, "continuation": 3000})
    wide, narrow = (Sizes(**sizes, intermediate=128, itemsize=size) for size in (4, 2))
    assert document_operations(narrow, request) > 1.2 * document_operations(wide, request)
    assert plan(narrow, request, 1).tokens == plan(wide, request, 1).tokens + 3000 - 256


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("alike", [0.0, 0.3])
def test_what_is_not_flagged_is_within_a_quarter(alike: float) -> None:
    """As benchmarks/rounding_floor.py --simulate, smaller: real KLs of logits that influence and rounding move."""
    rng, rounding, shape = RNG(1), 0.02, (6, 200, 300)
    kept = []
    for times in (1, 2, 3, 4, 6, 12):
        z = 2 * rng.standard_normal(shape)
        shift = np.sqrt(2 * times) * rounding * rng.standard_normal(shape)
        full, cut, order = (rounding * rng.standard_normal(shape) for _ in range(3))
        order = alike * full + np.sqrt(1 - alike**2) * order
        true, measured = kl(z, z + shift).mean(axis=1), kl(z + full, z + shift + cut).mean(axis=1)
        floor = kl(z + full, z + order).mean(axis=1)
        found = taken_off(measured, floor, np.ones(6)).mean()
        if found >= FLAG_FACTOR * floor.mean():
            kept.append(times)
            assert found / true.mean() == pytest.approx(1, abs=0.25)
            if times < 4:
                assert measured.mean() / true.mean() > 1.25, "what the floor would leave too high"
    assert set(kept) >= {6, 12} and 1 not in kept
