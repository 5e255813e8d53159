"""Reports of several runs: compared where they can be, side by side where not; and runs that are not finished."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import Decay, simulate
from test_report import Page

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.report.page import report
from forward_influence.errors import ForwardInfluenceError, UsageError

RULES = {
    "attention": Decay("power", 1.0, 0.9),
    "entropy": Decay("power", 0.12, 0.45),
    "random": Decay("power", 0.1, 0.6),
}
OTHER = {"model": {"fingerprint": "0" * 64, "spec": "other-model", "layers": 3, "full_layers": [0, 1, 2]}}


def test_two_runs_of_one_kind_are_compared(tmp_path: Path) -> None:
    runs = [
        simulate(tmp_path / name, RULES, documents=3, budgets=(budget,), save_selections=True, draws=1)
        for name, budget in (("low", "0.1"), ("high", "0.2"))
    ]
    made = report(runs)
    page = Page(made.html)
    assert {f"table-{name}" for name in ("overlap", "overlap-layers", "tokens", "comparison")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(run.manifest["command"] in page.text for run in runs)
    assert [g.heading for g in made.findings][-1] == "All conditions"


def test_two_models_stand_side_by_side(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", RULES, documents=6, save_selections=True, draws=1)
    more = {**RULES, "infokv": Decay("power", 0.5, 0.6)}
    two = simulate(tmp_path / "two", more, documents=7, layers=3, save_selections=True, draws=1, manifest=OTHER, seed=1)
    made = report([one, two])
    page = Page(made.html)
    assert len(page.ids) == len(set(page.ids))
    assert {f"table-{name}-{place}" for name in ("comparison", "decay") for place in (0, 1)} <= set(page.ids)
    side = "two and one stand side by side and are not set against one another: they differ in model (simulated against"
    assert any(note.startswith(side) for note in made.notes)
    assert side in page.text
    assert [g.heading for g in made.findings] == ["one", "two"]
    assert "simulated and other-model, 7 documents" in page.text
    alone = compare(two)
    far = alone.table.query("selector == 'infokv' and zone == 'far'").iloc[0]
    assert repr(float(far["kl"])) in made.html  # a cell's sorting value: the run's own number, of its own documents
    assert page.tags.count("svg") == 8  # both runs in every picture


def test_runs_that_do_not_fit_into_one_picture_get_one_each(tmp_path: Path) -> None:
    runs = [
        simulate(tmp_path / f"run{i}", RULES, documents=2, budgets=("0.1", "0.2", "0.3", "0.4"), draws=1)
        for i in range(4)
    ]
    page = Page(report(runs).html)
    assert page.tags.count("svg") == 4 * 4
    assert "run3: Mean KL against distance" in page.text


def test_runs_that_cannot_be_reported(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2)
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        report([run], baseline="entropi")
    with pytest.raises(UsageError, match=r"budget 0\.3 was not measured; measured: 0\.2"):
        report([run], budgets=["0.3"])
    with pytest.raises(UsageError, match="has no 'author' to cluster by"):
        report([run], cluster="author")
    with pytest.raises(UsageError, match="is given twice"):
        report([run, run])
    with pytest.raises(ForwardInfluenceError, match="holds no measured condition yet"):
        report([simulate(tmp_path / "empty", RULES, documents=2, measured=0)])


def test_without_random_the_first_rule_is_the_baseline(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", {k: RULES[k] for k in ("attention", "entropy")}, documents=6)
    assert any("attention's." in s and "×" in s for s in report([run]).sentences)


def test_clusters_budgets_and_bootstrap_reach_every_table(tmp_path: Path) -> None:
    run = simulate(
        tmp_path / "run", RULES, documents=12, budgets=("0.1", "0.2"), authors=list("abcdef"), save_selections=True
    )
    page = Page(report([run], cluster="author", budgets=["0.20"], method="bootstrap").html)
    assert "unit: author (6 groups of 12 documents)" in page.text
    assert "bootstrap over documents (expanded percentiles); measured coverage" in page.text
    assert "budget 0.1" not in page.text
    expected = compare(run, cluster="author", budgets=["0.2"], method="bootstrap").table
    plain = compare(run, budgets=["0.2"]).table
    row = expected.query("selector == 'attention' and zone == 'near'").iloc[0]
    assert row["n"] == 6
    assert not (expected["kl_low"] == plain["kl_low"]).any()
    assert "6 of 6" in page.text


def test_a_half_finished_run_says_how_much_there_is_and_how_to_go_on(tmp_path: Path) -> None:
    whole = simulate(tmp_path / "whole", RULES, documents=6)
    half = simulate(tmp_path / "half", RULES, documents=9, measured=7, save_selections=True)
    made = report([whole, half])
    (note,) = [n for n in made.notes if "not finished" in n]
    assert note.startswith("half is not finished; documents: 7 of 9 measured (continue with: forward-influence measure")
    assert note in Page(made.html).text
    assert not any("not finished" in n for n in report([whole]).notes)


def test_a_part_that_does_not_read_back_is_left_out_of_all_of_the_report(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=8, save_selections=True, draws=1)
    path = run.part_path("speech-003")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    made = report([run])
    assert any("7 of 8 measured" in note for note in made.notes)
    text = Page(made.html).text
    assert "speech 003" not in [option for option in text.split("\n") if option.startswith("speech")][7:]
    assert "7 documents" in text
