"""`compare` on simulated runs: planted ratios, several runs, refusals, flags; and the summary of a measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from invoking import invoke
from scipy import stats
from simulated import DEFAULT_RULES, Decay, simulate
from typer.testing import CliRunner

from forward_influence.analysis.measures.compare import Comparison, compare, table_of
from forward_influence.analysis.measures.controls import controls, effects
from forward_influence.analysis.measures.summary import notes, summarise
from forward_influence.analysis.reading import comparable
from forward_influence.analysis.reading.curves import load, load_zones, read_curves
from forward_influence.analysis.reading.pairing import grain_remark, position_control_for
from forward_influence.analysis.statistics.inference import STUDENT, estimate, paired
from forward_influence.cli.app import build
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.selectors.selection import Selection
from forward_influence.storage.run import Run

RULES = {**DEFAULT_RULES, "position-matched:of=attention": Decay("power", 0.25, 0.6)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(tmp_path_factory.mktemp("runs") / "both", RULES, documents=12, effects=("total", "direct"))


@pytest.fixture(scope="module")
def found(run: Run) -> Comparison:
    return compare(run)


def test_the_table_finds_the_planted_ratios(found: Comparison) -> None:
    table = found.table[found.table["effect"] == "total"].set_index(["selector", "zone"])
    for rule in ("attention", "entropy"):
        for zone, (low, high) in {"near": (0, 128), "middle": (128, 512), "far": (512, 1024)}.items():
            row = table.loc[(rule, zone)]
            truth = RULES[rule].mean(low, high) / RULES["random"].mean(low, high)
            assert row["ratio"] == pytest.approx(truth, rel=0.25)
            assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
            assert row["p"] <= row["p_holm"] <= 3 * row["p"] + 1e-12
            assert row["n"] == 12
    near = table.loc[("attention", "near")]
    assert near["ratio"] > 1
    assert near["p_holm"] < 0.01
    assert (near["rank_biserial"], near["wins"]) == (1.0, 12)
    assert table.loc[("random", "near"), "baseline"] == ""
    assert np.isnan(table.loc[("random", "near"), "ratio"])


def test_intervals_cover_through_the_whole_path(tmp_path: Path) -> None:
    """80 run folders of 8 documents: far ratio of entropy to random, and entropy's own far KL."""
    rules = {name: RULES[name] for name in ("entropy", "random")}
    kl = rules["entropy"].mean(32, 64)
    ratio = kl / rules["random"].mean(32, 64)
    hits = []
    for seed in range(80):
        run = simulate(tmp_path / str(seed), rules, documents=8, continuation=64, draws=2, noise=0.2, seed=seed)
        row = _compare_frame(load_zones(run), "random").query("zone == 'far'").iloc[0]
        hits.append((row["ratio_low"] < ratio < row["ratio_high"], row["kl_low"] < kl < row["kl_high"]))
    assert (np.mean(hits, axis=0) >= 0.88).all()


def test_the_table_equals_the_statistics_of_plain_columns(run: Run, found: Comparison) -> None:
    zones = load_zones(run)
    far = zones[(zones["zone"] == "far") & (zones["effect"] == "direct")].pivot(
        index="document", columns="selector", values="kl"
    )
    table = found.table
    row = table[(table["selector"] == "entropy") & (table["zone"] == "far") & (table["effect"] == "direct")].iloc[0]
    out, mean = paired(far["entropy"], far["random"]), estimate(far["entropy"])
    assert (row["ratio"], row["ratio_low"], row["p"]) == pytest.approx((out.ratio, out.low, out.p))
    assert (row["kl"], row["kl_high"]) == pytest.approx((mean.value, mean.high))


def test_random_of_the_same_grain_is_preferred_and_other_grains_are_named(tmp_path: Path) -> None:
    rules = {**DEFAULT_RULES, "random:per=token": Decay("power", 0.5, 0.6)}
    table = compare(simulate(tmp_path / "run", rules, documents=3)).table.groupby("selector").first()
    assert table.loc["attention", "baseline"] == "random"
    assert table.loc["entropy", "baseline"] == "random:per=token"
    named = compare(simulate(tmp_path / "run", rules, documents=3), "random:per=token").table
    flags = named.groupby("selector").first()["flags"]
    assert "entries against random:per=token's whole tokens, so that the multiple is too low" in flags["attention"]
    assert "(add `selectors` random)" in flags["attention"]
    assert "multiple" not in flags["entropy"]


@pytest.mark.parametrize(
    ("mine", "its", "control", "expected"),
    [
        ("token", "entry", "random", "whole tokens against random's entries, so that the multiple is too high "
         "(add `selectors` random:per=token)"),
        ("layer", "entry", "attention:window=8,kernel=3", "tokens of a layer against attention:window=8,kernel=3's "
         "entries, so that the multiple is too high (add `selectors` attention:window=8,kernel=3,per=layer)"),
        ("entry", "token", "entropy", "entries against entropy's whole tokens, so that the multiple is too low"),
    ],
)  # fmt: skip
def test_what_differing_grains_do_is_said_with_a_remedy(mine: str, its: str, control: str, expected: str) -> None:
    assert grain_remark({"rule": mine, control: its}, "rule", control) == [expected]
    assert grain_remark({"rule": mine, control: mine}, "rule", control) == []


def test_no_effect_raises_about_5_percent_false_alarms(tmp_path: Path) -> None:
    """120 pairs of rules that differ by chance only, each compared near, middle and far through the whole path."""
    rules = {f"rule{i}": Decay("power", 0.2, 0.6) for i in range(240)}
    run = simulate(tmp_path / "run", rules, documents=16, continuation=64, noise=1.0, rule_spread=0.3)
    zones = load_zones(run)
    alarms, excluded = [], []
    for i in range(0, 240, 2):
        table = _compare_frame(zones[zones["selector"].isin([f"rule{i}", f"rule{i + 1}"])], f"rule{i}")
        alarms.append(bool((table["p_holm"] < 0.05).any()))
        excluded.append(np.mean((table["ratio_low"] > 1) | (table["ratio_high"] < 1)))
    assert np.mean(alarms) <= 0.09  # 5% and two standard errors of what chance adds to 120 families
    assert 0.01 <= np.mean(excluded) <= 0.09


def _compare_frame(zones: pd.DataFrame, baseline: str) -> pd.DataFrame:
    return table_of(zones, baseline, clustered=False, method=STUDENT).query("baseline != ''")


def test_two_runs_are_read_as_one(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", {k: RULES[k] for k in ("attention", "random")}, documents=8)
    two = simulate(tmp_path / "two", {"entropy": RULES["entropy"]}, documents=7)
    both = compare([one, two])
    assert set(both.table["run"]) == {"one + two"}
    counts = both.table.groupby("selector")["n"].first()
    assert counts.to_dict() == {"attention": 8, "entropy": 7, "random": 8}
    assert both.table.set_index("selector").loc["entropy", "baseline"].eq("random").all()
    assert len(both.crossovers) == 1
    again = simulate(tmp_path / "again", {"attention": RULES["attention"]}, documents=8, seed=1)
    twice = compare([one, again])
    assert any("averaged over these runs" in line for line in twice.notes)
    kl = [load_zones(r).query("selector == 'attention' and zone == 'far'")["kl"].to_numpy() for r in (one, again)]
    row = twice.table[(twice.table["selector"] == "attention") & (twice.table["zone"] == "far")].iloc[0]
    assert row["kl"] == pytest.approx(np.exp(np.log((kl[0] + kl[1]) / 2).mean()))


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"configuration": {"protect_first": 0}}, r"protect_first \(4 against 0\)"),
        ({"configuration": {"protect_first": None}}, r"protect_first \(4 against none\)"),
        ({"configuration": {"segments": 3}}, r"segments \(1 against 3\)"),
        ({"configuration": {"every": 64}}, r"every \(none against 64\)"),
        ({"configuration": {"context": 512}}, r"context \(256 against 512\)"),
        ({"model": {"fingerprint": "0" * 64, "spec": "other"}}, r"model \(simulated against other\)"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path: Path, over: dict, expected: str) -> None:
    one = simulate(tmp_path / "one", documents=1)
    two = simulate(tmp_path / "two", documents=1, manifest=over)
    with pytest.raises(UsageError, match=expected):
        compare([one, two])
    assert set(load([one, two])["run"]) == {"one", "two"}  # reading them together is no comparison
    assert comparable.groups([one, two, one]) == [[one, one], [two]]


def test_what_the_model_wrote_with_another_seed_is_another_text(tmp_path: Path) -> None:
    def run(name: str, seed: int, source: str) -> Run:
        fields = {"configuration": {"continuation_from": source}}
        return simulate(tmp_path / name, documents=1, seed=seed, manifest=fields)

    assert comparable.differences(run("a", 1, "text"), run("b", 2, "text")) == []
    assert comparable.differences(run("c", 1, "generate"), run("d", 2, "generate")) == ["seed (1 against 2)"]


def test_a_run_given_twice_is_refused_whatever_it_is_called(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UsageError, match="is given twice; give each folder once"):
        invoke(run.folder, run.folder / ".." / run.folder.name)
    with pytest.raises(UsageError, match="is given twice"):
        compare([run, run])


def test_curves_read_before_are_not_read_again(run: Run, found: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_curves(run)
    monkeypatch.setattr(Run, "rows", lambda self: pytest.fail("the parts are read again"))
    again = compare(run, read=read)
    pd.testing.assert_frame_equal(again.table, found.table)
    pd.testing.assert_frame_equal(again.controls, found.controls)
    assert again.notes == found.notes


def test_bad_requests_get_one_line(tmp_path: Path, run: Run) -> None:
    with pytest.raises(
        UsageError,
        match=r"baseline 'randm' was not measured \(did you mean 'random'\?\); measured: att.*; choose one with `base",
    ):
        compare(run, "randm")
    with pytest.raises(UsageError, match=r"budget 0\.3 was not measured; measured: 0\.2"):
        compare(run, budgets=["0.3"])
    with pytest.raises(UsageError, match=r"rule 'entropi' was not measured \(did you mean 'entropy'"):
        compare(run, pairs=[("entropi", "attention")])
    with pytest.raises(UsageError, match=r"no 'author'"):
        compare(run, cluster="author")
    with pytest.raises(UsageError, match="not a run folder"):
        invoke(tmp_path)
    with pytest.raises(UsageError, match="csv holds one table"):
        invoke(run.folder, "--format", "csv", "--show", "decay", "--show", "comparison")
    empty = simulate(tmp_path / "empty", documents=3, measured=0)
    with pytest.raises(ForwardInfluenceError, match=r"0 of 3 documents\); continue it with: forward-influence measure"):
        compare(empty)
    assert CliRunner().invoke(build(), ["compare", str(run.folder), "--format", "xml"]).exit_code == 2


def test_rules_are_found_as_they_were_typed(tmp_path: Path) -> None:
    """Runs store specs without parameters at their defaults; a rule's file need not be there any more."""
    mine = "rules.py:Gone:power=2"
    rules = {name: Decay() for name in ("attention", "entropy:per=token", "position-matched", "random", mine)}
    run = simulate(tmp_path / "run", rules, documents=2)
    table = compare(run, "position-matched:of=attention").table.set_index("selector")
    # the spec with its parameter is that rule, the bare name each rule's own control
    assert set(table.loc["random", "baseline"]) == {"position-matched"}
    own = compare(run, "position-matched").table.set_index("selector")
    assert set(own.loc["random", "baseline"]) == {""}
    pairs = compare(run, pairs=[("entropy:top_k=256,per=token", "attention:per=entry"), (mine, "random:per=entry")])
    assert pairs.crossovers[["rule", "over"]].to_numpy().tolist() == [
        ["entropy:per=token", "attention"],
        [mine, "random"],
    ]
    assert "entropy:per=token" in invoke(run.folder, "--crossover", "entropy:per=token,attention:window=64")


def test_a_half_finished_run_is_compared_and_says_how_to_continue(tmp_path: Path) -> None:
    part = simulate(tmp_path / "part", documents=9, measured=7)
    out = invoke(part.folder)
    assert "7 of 9 measured (continue with: forward-influence measure" in out
    assert "short speech (too short: 90 tokens)" in out
    assert compare(part).table["n"].eq(7).all()


def test_a_run_ended_by_its_own_intervals_says_what_they_cover(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", documents=9, measured=7)
    before = compare(run)
    run.write_stopped({"documents": 7, "until": 0.2, "level": 0.97, "half_widths": {}})
    after = compare(run)
    wider = stats.t.ppf(0.985, 6) / stats.t.ppf(0.975, 6)
    for table, column in (("table", "kl"), ("table", "ratio"), ("controls", "ratio")):
        one, other = (
            np.log(getattr(found, table)[f"{column}_high"] / getattr(found, table)[f"{column}_low"]).to_numpy()
            for found in (before, after)
        )
        np.testing.assert_allclose(other, wider * one, equal_nan=True)
    assert (after.crossovers["low"] <= before.crossovers["low"]).all()  # whole bins, which may be the same ones
    assert (after.crossovers["high"] >= before.crossovers["high"]).all()
    far = summarise(run).set_index("selector").loc["entropy"]
    assert far["far_high"] == after.table.query("selector == 'entropy' and zone == 'far'")["kl_high"].item()
    out = invoke(run.folder)
    assert "7 of 7 measured (ended by --until: intervals are of nominal 97%, to cover 95% after many looks)" in out
    assert "not finished" not in out


def test_sampled_positions_leave_no_document_out_of_crossovers_and_fits(tmp_path: Path) -> None:
    """Few positions of each 128: in narrow bins some documents would have none."""
    run = simulate(tmp_path / "run", documents=8, draws=1, positions_per_bin=4, noise=0.2)
    found = compare(run)
    assert set(found.crossovers["n"]) == {8}
    assert found.crossovers["low"].notna().all()
    assert found.decay["bins"].min() >= 4
    assert not any("left out" in line for line in found.notes)


def test_one_document_gives_values_and_no_inference(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", documents=1)
    table = compare(one).table
    assert table["kl"].notna().all()
    assert table[["kl_low", "ratio_high", "p", "p_holm"]].isna().all().all()
    assert "no intervals and no p-values: they need 6 documents (or clusters), not 1" in invoke(one.folder)


def test_clusters_and_budgets_and_bootstrap(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", documents=14, budgets=("0.2", "0.4"), authors=[f"author {i}" for i in range(7)])
    grouped = compare(run, cluster="author", budgets=["0.40"])
    assert set(grouped.table["budget"]) == {"0.4"}
    assert set(grouped.table["n"]) == {7}
    assert "unit: author (7 groups of 14 documents)" in grouped.notes
    plain, boot = compare(run), compare(run, method="bootstrap")
    np.testing.assert_allclose(plain.table["ratio"], boot.table["ratio"])
    width = {n: np.log(c.table["ratio_high"] / c.table["ratio_low"]) for n, c in (("t", plain), ("b", boot))}
    assert (width["b"] / width["t"]).dropna().between(0.6, 1.4).all()
    assert any("measured coverage" in line for line in boot.notes)


def test_controls_by_distance(run: Run) -> None:
    frame = controls(load(run, 256))
    row = frame[(frame["selector"] == "attention") & (frame["effect"] == "total") & (frame["low"] == 512)]
    truth = RULES["attention"].mean(512, 768)
    for control in ("random", "position-matched"):
        line = row[row["control"] == control].iloc[0]
        assert line["ratio"] == pytest.approx(truth / RULES[line["control_selector"]].mean(512, 768), rel=0.2)
        assert line["ratio_low"] < line["ratio"] < line["ratio_high"]
        assert line["same_grain"]
    assert not frame.loc[frame["selector"] == "entropy", "same_grain"].any()
    assert set(frame.loc[frame["selector"] == "entropy", "control"]) == {"random"}


def test_a_position_control_finds_its_rule_by_parameters(tmp_path: Path) -> None:
    wide, narrow = "attention:window=64,kernel=7", "attention"
    rules = {name: Decay() for name in (wide, narrow, "random")}
    rules |= {"position-matched": Decay(), "position-matched:of=attention(window=64,kernel=7)": Decay()}
    run = simulate(tmp_path / "run", rules, documents=1, draws=1)
    frame = load_zones(run)
    # the simulated parameters split at commas, as the real ones do not
    matched = frame["selector"] == "position-matched:of=attention(window=64,kernel=7)"
    frame.loc[matched, "parameters"] = json.dumps({"of_spec": wide, "per": "entry"})
    assert position_control_for(frame, wide) == "position-matched:of=attention(window=64,kernel=7)"
    assert position_control_for(frame, narrow) == "position-matched"
    assert position_control_for(frame, "random") is None


def test_the_grain_of_a_selection_is_what_came_out() -> None:
    mask = torch.zeros(3, 2, 8, dtype=torch.bool)
    mask[..., [1, 4]] = True
    assert Selection(mask, (0, 1, 2)).grain == "token"
    assert Selection(mask, (0, 1, 2)).restricted({0, 2}, {1}).grain == "token"
    mask[1] = torch.roll(mask[1], 1, dims=-1)
    assert Selection(mask, (0, 1, 2)).grain == "layer"
    mask[1, 0] = torch.roll(mask[1, 0], 1, dims=-1)
    assert Selection(mask, (0, 1, 2)).grain == "entry"


def test_direct_share_and_remainder(run: Run, tmp_path: Path) -> None:
    frame = effects(load(run, 512))
    assert frame["direct_share"].to_numpy() == pytest.approx(0.6, abs=0.03)
    np.testing.assert_allclose(frame["direct_share"] + frame["remainder_share"], 1)
    assert (frame["direct_share_low"] < 0.605).all()
    assert (frame["remainder"] > 0).all()
    more = simulate(tmp_path / "more", documents=7, effects=("total", "direct"), direct_share=1.5)
    assert (effects(load(more, 512))["remainder"] < 0).all()
    assert effects(load(simulate(tmp_path / "total", documents=2))).empty


def test_what_is_missing_is_missing_not_zero(found: Comparison) -> None:
    baseline = found.table["baseline"] == ""
    assert found.table.loc[baseline, "wins"].isna().all()
    assert found.table.loc[~baseline, "wins"].notna().all()


def test_notes_are_of_the_tables_shown(run: Run, found: Comparison) -> None:
    shown = invoke(run.folder, "--show", "controls")
    assert "as a multiple of the control's" in shown
    for other in ("Wilcoxon", "rank-biserial", "half-distance", "direct share"):
        assert other not in shown
    assert "half-distance: tokens beyond distance 64" in invoke(run.folder, "--show", "decay")
    assert "at every cut between bins of 4 positions" in invoke(run.folder, "--show", "crossovers")
    assert set(found.notes_about(["controls"])) < set(found.notes)


def test_summary(run: Run, tmp_path: Path) -> None:
    table = summarise(run)
    row = table[(table["selector"] == "entropy") & (table["effect"] == "total")].iloc[0]
    entropy, random = RULES["entropy"], RULES["random"]
    assert row["far_near_low"] < entropy.mean(512, 1024) / entropy.mean(0, 128) < row["far_near_high"]
    assert row["random_far"] == pytest.approx(entropy.mean(512, 1024) / random.mean(512, 1024), rel=0.2)
    assert row["near_low"] < row["near"] < row["near_high"]
    assert row["flags"].startswith("whole tokens against random's entries, so that the multiple is too high")
    assert table.loc[table["selector"] == "random", "random_near"].isna().all()
    attention = table[(table["selector"] == "attention") & (table["effect"] == "total")].iloc[0]
    matched = RULES["position-matched:of=attention"].mean(0, 128)
    assert attention["matched_near"] == pytest.approx(RULES["attention"].mean(0, 128) / matched, rel=0.2)
    assert attention["matched_near_low"] < attention["matched_near"] < attention["matched_near_high"]
    assert table.loc[table["selector"] != "attention", "matched_near"].isna().all()
    lines = table.attrs["notes"]
    assert lines == notes(run)
    assert (
        "position-matched:of=attention holds 30% of what its rule chose, which pulls the multiple of it towards 1"
        in lines
    )
    assert not any("no control" in line for line in lines)
    assert (
        "candidates: 188 of 256 context tokens; the first 4 and the last 64 are protected; budget 0.2: 51 of these "
        "dropped, 20% of the context"
    ) in lines
    assert any("noise floor: 1.0e-06 nats" in line for line in lines)
    few = summarise(simulate(tmp_path / "few", documents=2))
    assert "intervals need 6 documents; there are 2" in few.attrs["notes"]
    assert few["far_low"].isna().all()
    assert few["far"].notna().all()
    alone = summarise(simulate(tmp_path / "alone", {"attention": Decay()}, documents=1))
    assert any(line.startswith("no control was measured (random, say)") for line in alone.attrs["notes"])
