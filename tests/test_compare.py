"""`compare` on simulated runs: planted ratios, several runs, refusals, formats; and the table after a measurement."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from simulated import DEFAULT_RULES, Decay, simulate
from typer.testing import CliRunner

from forward_influence.analysis.compare import Comparison, _table, compare
from forward_influence.analysis.controls import controls, effects, flags
from forward_influence.analysis.curves import load, load_zones
from forward_influence.analysis.pairing import position_control_for
from forward_influence.analysis.statistics import estimate, paired
from forward_influence.analysis.summary import notes, summarise
from forward_influence.cli import tables
from forward_influence.cli.compare import _pair, compare_command
from forward_influence.cli.summary import show_summary
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.runs import Run
from forward_influence.selection import Selection

RULES = {**DEFAULT_RULES, "position-matched:of=attention": Decay("power", 0.25, 0.6)}
APP = typer.Typer()
APP.command()(compare_command)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(tmp_path_factory.mktemp("runs") / "both", RULES, documents=12, effects=("total", "direct"))


@pytest.fixture(scope="module")
def found(run: Run) -> Comparison:
    return compare(run)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(APP, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


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
    assert "per entry, random:per=token per token" in named.groupby("selector").first().loc["attention", "flags"]


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
    return _table(zones, baseline, clustered=False, method="t").query("baseline != ''")


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


def test_bad_requests_get_one_line(tmp_path: Path, run: Run) -> None:
    with pytest.raises(
        UsageError, match=r"baseline 'randm' was not measured \(did you mean 'random'\?\); measured: att"
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
    assert CliRunner().invoke(APP, [str(run.folder), "--format", "xml"]).exit_code == 2


def test_a_half_finished_run_is_compared_and_says_how_to_continue(tmp_path: Path) -> None:
    part = simulate(tmp_path / "part", documents=9, measured=7)
    out = invoke(part.folder)
    assert "7 of 9 measured (continue with: forward-influence measure" in out
    assert "short speech (too short: 90 tokens)" in out
    assert compare(part).table["n"].eq(7).all()


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
    frame.loc[matched, "parameters"] = json.dumps({"of": "attention(window=64,kernel=7)", "per": "entry"})
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


def test_flags_mark_bins_under_three_floors(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 0.1, 100), "random": Decay("flat", 0.01)}
    run = simulate(tmp_path / "run", rules, documents=6, floor=1e-3, noise=0, document_spread=0, rule_spread=0)
    frame = flags(load(run, 64))
    assert (frame["flagged"] == (frame["kl"] < 3 * frame["floor"])).all()
    assert frame[frame["selector"] == "attention"]["flagged"].to_numpy().tolist() == [False] * 6 + [True] * 10
    assert (
        "under 3x the noise floor"
        in compare(run).table.query("selector == 'attention' and zone == 'far'")["flags"].iloc[0]
    )
    summary = summarise(run).set_index("selector")
    assert "far under 3x the noise floor" in summary.loc["attention", "flags"]
    assert summary.loc["random", "flags"] == ""


def test_summary(run: Run, tmp_path: Path) -> None:
    table = summarise(run)
    row = table[(table["selector"] == "entropy") & (table["effect"] == "total")].iloc[0]
    entropy, random = RULES["entropy"], RULES["random"]
    assert row["far_near_low"] < entropy.mean(512, 1024) / entropy.mean(0, 128) < row["far_near_high"]
    assert row["random_far"] == pytest.approx(entropy.mean(512, 1024) / random.mean(512, 1024), rel=0.2)
    assert row["near_low"] < row["near"] < row["near_high"]
    assert row["flags"] == "per token, random per entry"
    assert table.loc[table["selector"] == "random", "random_near"].isna().all()
    lines = table.attrs["notes"]
    assert lines == notes(run)
    assert "candidates: 188 of 256 context tokens; the first 4 and the last 64 are protected" in lines
    assert any("noise floor: 1.0e-06 nats" in line for line in lines)
    few = summarise(simulate(tmp_path / "few", documents=2))
    assert "intervals need 6 documents; there are 2" in few.attrs["notes"]
    assert few["far_low"].isna().all()
    assert few["far"].notna().all()


def test_the_table_that_ends_a_measurement(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(run)
    out = capsys.readouterr().out
    assert "far / near" in out
    assert "x random, far" in out
    assert "entropy: per token, random per entry" in out
    table = summarise(run)
    row = table[(table["selector"] == "entropy") & (table["effect"] == "direct")].iloc[0]
    assert f"[{tables.number(row['far_low'], 2)}, {tables.number(row['far_high'], 2)}]" in out
    show_summary(simulate(tmp_path / "[bold]odd", {"attention": Decay()}, documents=1))
    out = capsys.readouterr().out
    assert "[bold]odd: mean KL" in out
    assert "x random" not in out
    assert "intervals need 6 documents; there are 1" in out


def test_formats(run: Run, found: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke(run.folder, "--format", "csv"))))
    assert len(rows) == len(found.table)
    assert float(rows[0]["ratio"]) == found.table["ratio"][0]
    content = json.loads(invoke(run.folder, "--format", "json", "--show", "comparison", "--show", "crossovers"))
    assert set(content) == {"comparison", "crossovers", "notes"}
    assert content["comparison"][0]["kl"] == found.table["kl"][0]
    nothing = [row for row in content["comparison"] if row["selector"] == "random"]
    assert nothing[0]["ratio"] is None
    text = invoke(run.folder, "--format", "markdown", "--crossover", "entropy,attention")
    assert "| rule | effect | zone | mean KL [95%] | ratio to random [95%] | p (Holm) | effect size | wins |" in text
    assert "| entropy | total | attention | from " in text
    latex = invoke(run.folder, "--format", "latex", "--show", "decay")
    assert r"\toprule" in latex
    assert r"[95\%]" in latex
    shown = invoke(run.folder, "--show", "controls", "--show", "effects", "--baseline", "position-matched")
    assert "position-matched:of=attention" in shown
    assert "direct share" in shown


def test_numbers_for_people() -> None:
    values = [0.05012, 2.544, 0.0, -0.8333, 1e-6, float("nan"), float("inf"), 12345.6]
    assert [tables.number(x) for x in values] == ["0.0501", "2.54", "0.00", "-0.833", "1.00e-06", "–", "∞", "12,346"]
    assert tables.interval(1.0, 0.5, 2.0) == "1.00 [0.500, 2.00]"
    assert tables.interval(1.0, float("nan"), 2.0) == "1.00"
    assert [tables.p_value(p) for p in (0.0004, 0.0451, float("nan"))] == ["<0.001", "0.045", "–"]


def test_pairs_with_parameters() -> None:
    assert _pair("entropy,attention") == ("entropy", "attention")
    assert _pair("infokv:alpha=0.9,tau=1,attention:window=32,kernel=7") == (
        "infokv:alpha=0.9,tau=1",
        "attention:window=32,kernel=7",
    )
    for bad in ("entropy", "a,b,c", ",b"):
        with pytest.raises(UsageError, match="takes two rules"):
            _pair(bad)
