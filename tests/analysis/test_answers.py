"""The answers to a plan: every verdict from planted curves, corrected over the plan, and nothing too early."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from simulated import Decay, simulate

from forward_influence.analysis.measures.answers import answers, answers_table, sentence
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.errors import UsageError
from forward_influence.storage.study_plan import plan_of

RULES = {"attention": Decay("flat", 3.0), "entropy": Decay("flat", 1.0), "random": Decay("flat", 1.0)}


def run_of(folder, questions: list[dict], rules=RULES, documents: int = 16, measured: int | None = None, **fields):
    plan = plan_of({"documents": documents, "zones": ["far"], "questions": questions}, "plan")
    fields = {"rule_spread": 0.05, "noise": 0.01, "seed": 1, **fields}
    return simulate(
        folder,
        rules,
        documents=documents,
        measured=measured,
        manifest={"configuration": {"plan": plan.content}},
        **fields,
    )


def ask(rule: str, expect: str, over: str = "random", **more) -> dict:
    return {"rule": rule, "over": over, "expect": expect, **more}


def test_every_verdict(tmp_path):
    asked = [
        ask("attention", "more"),
        ask("attention", "less"),
        ask("attention", "different"),
        ask("attention", "equal"),
        ask("entropy", "equal"),
        ask("entropy", "more"),
        ask("entropy", "different", over="attention"),
    ]
    found = answers(run_of(tmp_path / "run", asked))
    assert [(one.verdict, one.because) for one in found] == [
        ("yes", "more"),
        ("no", "the opposite: more"),
        ("yes", "more"),
        ("no", "more by over 10%"),
        ("yes", "equal within 10%"),
        ("no", "equal within 10%"),
        ("yes", "less"),
    ]
    assert sentence(found[0]).startswith("Yes, more: far, attention has 3.0")
    assert sentence(found[0]).endswith("times the influence of random (p <0.001 after Holm).")
    assert found[0].question == "Does attention matter more than random, far?"


def test_what_documents_leave_open(tmp_path):
    asked = [ask("entropy", "more"), ask("entropy", "equal"), ask("entropy", "equal", margin=3)]
    found = answers(run_of(tmp_path / "run", asked, documents=8, rule_spread=0.4, seed=3))
    assert [one.verdict for one in found] == ["open", "open", "yes"]
    assert [one.because for one in found[:2]] == ["not told apart", "not told apart, nor surely equal within 10%"]


def test_p_is_the_paired_t_test_after_holm_over_the_plan(tmp_path):
    asked = [ask("attention", "more", zones=["near", "far"]), ask("entropy", "more")]
    run = run_of(tmp_path / "run", asked, {**RULES, "attention": Decay("flat", 1.1)}, rule_spread=0.2)
    found = answers(run)
    frame = load_zones(run)
    raw = []
    for one in found:
        wide = frame[frame["zone"] == one.zone].pivot(index="document", columns="selector", values="kl")
        raw.append(stats.ttest_rel(np.log(wide[one.rule]), np.log(wide["random"])).pvalue)
    order = np.argsort(raw)
    expected, largest = np.empty(3), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (3 - rank) * raw[index])
        expected[index] = min(largest, 1.0)
    assert [one.p for one in found] == pytest.approx(expected.tolist(), rel=1e-9)
    assert [(one.number, one.zone) for one in found] == [(1, "near"), (1, "far"), (2, "far")]


def test_nothing_is_answered_before_all_planned_documents_are_measured(tmp_path):
    found = answers(run_of(tmp_path / "run", [ask("attention", "more")], measured=10))
    assert [(one.verdict, one.found) for one in found] == [("not answered", None)]
    assert sentence(found[0]) == "Not answered: 10 of the 16 planned documents are measured."


def test_what_lies_under_the_noise_floor_is_not_answered(tmp_path):
    found = answers(run_of(tmp_path / "run", [ask("attention", "more"), ask("entropy", "equal")], floor=2.0))
    assert [one.verdict for one in found] == ["not answered"] * 2
    assert all("noise floor" in one.because and math.isnan(one.p) for one in found)


def test_a_run_without_a_plan_has_no_answers_and_a_changed_one_is_refused(tmp_path):
    assert answers(simulate(tmp_path / "plain", documents=6)) == []
    assert answers_table([]).empty
    broken = simulate(tmp_path / "broken", documents=6, manifest={"configuration": {"plan": {"documents": 6}}})
    with pytest.raises(UsageError, match=r"the plan of .*: questions is missing"):
        answers(broken)
    lacking = run_of(tmp_path / "lacking", [ask("attention", "more", over="recent")])
    with pytest.raises(UsageError, match="rule 'recent' was not measured"):
        answers(lacking)


def test_answers_as_a_table(tmp_path):
    table = answers_table(answers(run_of(tmp_path / "run", [ask("attention", "more", ask="More?")])))
    row = table.iloc[0]
    assert (row["question"], row["verdict"], row["n"]) == ("More?", "yes", 16)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"] and row["equal_low"] > row["ratio_low"]


def test_clusters_are_the_unit_where_asked(tmp_path):
    run = run_of(tmp_path / "run", [ask("attention", "more")], authors=[f"a{i // 2}" for i in range(16)])
    assert answers(run, cluster="author")[0].found.n == 8
