"""Leave-one-out maps: equal to separate ablations, resumable, refused where they are another's."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import tiny_data
import torch

from forward_influence.analysis.plots.influence_map import draw_map
from forward_influence.cli import influence_map as command
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.measure import forward_influence
from forward_influence.measurement import leave_one_out as module
from forward_influence.measurement.leave_one_out import MapRequest, influence_map, read_controls
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

SMALL = MapRequest(context=21, continuation=12, block=2, bin_width=5)


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


@pytest.fixture(scope="module")
def tokens():
    return tiny_data.documents(1, 40)[0].segments[0]


@pytest.mark.parametrize("effect", ["total", "direct"])
def test_equals_removing_each_block_by_itself(model, tokens, tmp_path, effect):
    request = MapRequest(context=21, continuation=12, block=2, bin_width=5, effect=effect)
    frame = influence_map(model, tokens, request, tmp_path / "map.parquet")
    assert len(frame) == 11 * 3 and frame["last"].max() == 21
    assert frame[["low", "high"]].drop_duplicates().to_numpy().tolist() == [[0, 5], [5, 10], [10, 12]]
    trace = record(model, tokens[:21], span=33)
    for block in (0, 4, 10):
        mask = torch.zeros(trace.shape, dtype=torch.bool)
        mask[..., 2 * block : 2 * block + 2] = True
        [found] = forward_influence(model, trace, tokens[21:33], Selection(mask, trace.layers), effect=effect)
        rows = frame[frame["block"] == block]
        wanted = [float(found.kl[a:b].mean()) for a, b in ((0, 5), (5, 10), (10, 12))]
        assert rows["kl"].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_stopped_map_goes_on(model, tokens, tmp_path, monkeypatch):
    whole = influence_map(model, tokens, SMALL, tmp_path / "whole.parquet")
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    honest, calls = module.measure_ablations, []

    def interrupted(*args, **kwargs):
        calls.append(len(args[3]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)

    monkeypatch.setattr(module, "measure_ablations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        influence_map(model, tokens, SMALL, tmp_path / "map.parquet")
    assert pd.read_parquet(tmp_path / "map.parquet")["block"].max() == 3
    again = influence_map(model, tokens, SMALL, tmp_path / "map.parquet")
    assert calls == [2, 4, 4, 2, 4, 3], "controls first, also when it goes on"
    assert again["kl"].tolist() == pytest.approx(whole["kl"].tolist(), abs=1e-7)
    calls.clear()
    influence_map(model, tokens, SMALL, tmp_path / "map.parquet")
    assert calls == []


@pytest.mark.parametrize("effect", ["total", "direct"])
def test_controls(model, tokens, tmp_path, effect, capsys):
    request = dataclasses.replace(SMALL, effect=effect)
    frame = influence_map(model, tokens, request, tmp_path / "map.parquet")
    controls = read_controls(tmp_path / "map.parquet")
    assert 0 <= controls.noise_floor < 1e-6 < float(frame["kl"].mean()) < controls.positive
    assert frame.groupby("low")["floor"].nunique().tolist() == [1, 1, 1]
    weights = frame["high"] - frame["low"]
    floor = float((frame["floor"] * weights).sum() / weights.sum())
    assert floor == pytest.approx(controls.noise_floor)
    assert (frame["flagged"] == (frame["kl"] < 4 * frame["floor"])).all()
    command._show(frame, controls)
    shown = capsys.readouterr().out
    assert "0 of 11 lie below 4 times that" in shown and "with all tokens but the first removed" in shown


def test_an_ablation_that_does_nothing_is_an_error(model, tokens, tmp_path, monkeypatch):
    honest = module.removal

    def without(trace, *others, **named):
        return dataclasses.replace(honest(trace, *others, **named), branch=lambda room: trace.cache.branch(None, room))

    monkeypatch.setattr(module, "removal", without)
    with pytest.raises(ForwardInfluenceError, match="dropping all tokens but the first: the ablation left every logit"):
        influence_map(model, tokens, SMALL, tmp_path / "map.parquet")


def test_refusals(model, tokens, tmp_path):
    influence_map(model, tokens, SMALL, tmp_path / "map.parquet")
    with pytest.raises(UsageError, match=r"holds another map \(different: tokens\); choose another `out`"):
        influence_map(model, tokens.flip(0), SMALL, tmp_path / "map.parquet")
    other = dataclasses.replace(SMALL, block=3, effect="direct")
    wanted = r'\(different: block: 2 there, 3 now; effect: "total" there, "direct" now\)'
    with pytest.raises(UsageError, match=wanted):
        influence_map(model, tokens, other, tmp_path / "map.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(UsageError, match="exists and is no influence map"):
        influence_map(model, tokens, SMALL, tmp_path / "table.parquet")
    with pytest.raises(UsageError, match="fewer than 21"):
        influence_map(model, tokens[:20], SMALL, tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no")
    with pytest.raises(ForwardInfluenceError, match="does not read back"):
        influence_map(model, tokens, SMALL, tmp_path / "broken.parquet")
    with pytest.raises(UsageError, match="no influence map"):
        read_controls(tmp_path / "broken.parquet")
    with pytest.raises(UsageError, match="`block` 0 is too small"):
        MapRequest(block=0)


def test_picture(model, tokens, tmp_path):
    frame = influence_map(model, tokens, SMALL, tmp_path / "map.parquet")
    figure = draw_map(frame, "a title")
    upper, lower = figure.axes[:2]
    assert upper.get_title(loc="left") == "a title" and lower.get_xlabel() == "context token removed"
    assert lower.collections[0].get_array().shape == (3, 11)
