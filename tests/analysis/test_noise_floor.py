"""The noise floor is taken off every mean; what lies under four times it is marked and left out of inference."""

from __future__ import annotations

from pathlib import Path

from simulated import Decay, simulate

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.measures.controls import controls, effects, flags
from forward_influence.analysis.measures.notes import flag_remarks
from forward_influence.analysis.measures.summary import summarise
from forward_influence.analysis.reading.curves import load
from forward_influence.analysis.reading.matrix import UNDER_FLOOR


def test_flags_mark_bins_under_four_floors(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 0.1, 100), "random": Decay("flat", 0.01)}
    run = simulate(tmp_path / "run", rules, documents=6, floor=1e-3, noise=0, document_spread=0, rule_spread=0)
    frame = flags(load(run, 64))
    assert (frame["flagged"] == (frame["kl"] < 4 * frame["floor"])).all()
    assert frame[frame["selector"] == "attention"]["flagged"].to_numpy().tolist() == [False] * 5 + [True] * 11
    table = compare(run).table.set_index(["selector", "zone"])
    assert f"far {UNDER_FLOOR}" in table.loc[("attention", "far"), "flags"]
    assert table["flagged"].to_dict() == {
        (rule, zone): (rule, zone) == ("attention", "far") for rule, zone in table.index
    }
    assert table.loc[("attention", "far"), "ratio_flagged"]
    bins = controls(load(run, 64)).set_index("selector").loc["attention"]
    assert bins["flagged"].tolist() == [False] * 5 + [True] * 11
    summary = summarise(run).set_index("selector")
    assert f"far {UNDER_FLOOR}" in summary.loc["attention", "flags"]
    assert summary.loc["random", "flags"] == ""


def test_ratios_to_a_flagged_baseline_and_effects_under_the_floor_are_marked(tmp_path: Path) -> None:
    rules = {"attention": Decay("flat", 0.1), "random": Decay("flat", 1e-4)}
    run = simulate(tmp_path / "run", rules, documents=2, floor=1e-3, effects=("total", "direct"), direct_share=0.02)
    table = compare(run).table.query("selector == 'attention' and effect == 'total'")
    assert not table["flagged"].any()
    assert table["ratio_flagged"].all()
    marked = effects(load(run, 512)).set_index("selector")["flagged"]
    assert marked["attention"].all()  # direct: 0.02 x 0.1 is under three times the floor
    assert marked["random"].all()


def test_a_rule_without_a_fit_and_a_crossover_with_bins_left_out_say_why(tmp_path: Path) -> None:
    rules = {"attention": Decay("flat", 1e-4), "entropy": Decay("exponential", 0.5, 100), "random": Decay()}
    found = compare(simulate(tmp_path / "run", rules, documents=7, floor=1e-3))
    out = "\n".join(found.notes)
    assert "attention: no decay fitted, a fit needs 4 bins above the noise floor, there are 0" in out
    assert f"in which both are {UNDER_FLOOR} left out" in out
    assert f"attention, entropy: far {UNDER_FLOOR}" in "\n".join(flag_remarks(found.table))
