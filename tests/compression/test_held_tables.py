"""Where compressors stand beside one another, what each holds stands beside it, and what is not equal is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_data
from simulated import simulate
from test_evaluation import loaded, plan
from typer.testing import CliRunner

from forward_influence.analysis.formatting.held_words import entries, held_cell, is_equal
from forward_influence.analysis.formatting.summary_words import readable as means_of
from forward_influence.analysis.measures.accuracy import accuracy_notes, accuracy_table, paper_layout
from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.measures.summary import notes, summarise
from forward_influence.analysis.plots import registry as plots
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.reading.held import against, held_by, held_notes, held_sentences, held_table
from forward_influence.analysis.reading.pairing import grains
from forward_influence.analysis.report.findings import Evidence, findings
from forward_influence.analysis.report.page import report
from forward_influence.analysis.tables.measure import readable
from forward_influence.analysis.tables.registry import measure_of
from forward_influence.cli.app import build
from forward_influence.evaluation.run import evaluate
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.storage.run import Run

N, M = 64, 40
NAMES = ("rpc:window=4", "random-protected", "infokv", "streamingllm", "random", "random:per=token")
#: Seen at the end: 100; the prompt's 64 and a fraction of the 36 after it, and RPC's window of 4.
HELD = {
    "0.4": {"rpc:window=4": 82, "random-protected": 78, "infokv": 40, "streamingllm": 40, "random": 40},
    "0.2": {"rpc:window=4": 75, "random-protected": 71, "infokv": 20, "streamingllm": 20, "random": 20},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    request = Request(
        selectors=(), compressors=NAMES, budgets=tuple(HELD), context=N, continuation=M, every=12, draws=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("held") / "run"
    return measure(tiny_data.model(), tiny_data.documents(2, N + M), request, folder)


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments), catch_exceptions=False, env={"COLUMNS": "220"})
    assert result.exit_code == 0, result.output
    return result.output


def test_every_frame_has_what_was_held(run):
    table = held_table(load_zones(run))
    for row in table.to_dict("records"):
        if row["selector"] in HELD[row["budget"]]:
            assert row["held"] == HELD[row["budget"]][row["selector"]] == row["pinned"] + row["chosen"]
    found = compare(run, "random")
    for frame in (found.table, found.decay, found.controls):
        for row in frame.to_dict("records"):
            if row["selector"] in HELD[row["budget"]]:
                assert row["held"] == HELD[row["budget"]][row["selector"]]
    for row in found.crossovers.to_dict("records"):
        if {row["rule"], row["over"]} <= set(HELD["0.2"]):
            counts = HELD[row["budget"]]
            assert (row["held"], row["other_held"]) == (counts[row["rule"]], counts[row["over"]])


def test_unequal_sizes_are_said_and_equal_ones_are_not(run):
    flags = compare(run, "random").table.groupby(["budget", "selector"])["flags"].first()
    assert "holds 82 against 40 entries of random, not compared at equal size" in flags["0.4", "rpc:window=4"]
    assert "holds 71 against 20 entries of random, not compared at equal size" in flags["0.2", "random-protected"]
    assert "holds" not in flags["0.4", "infokv"]
    summary = summarise(run).set_index(["budget", "selector"])
    assert "holds 75 against 20 entries of random" in summary.loc[("0.2", "rpc:window=4"), "flags"]
    lines = "\n".join(notes(run))
    assert "held: entries per layer and head right after the last compression" in lines
    assert "not at equal size: at budget 0.4 rpc:window=4 82, random-protected 78, infokv, " in lines
    assert "`match_held` compares at equal numbers" in lines
    assert "the first 64 and the last 4 (rpc:window=4)" in lines
    assert (
        "at budget 0.2 the first 64 and the last 4 (rpc:window=4), the first 64 and the last 3 (random-protected)"
        in lines
    )
    assert "the first 4 and the last 10 (infokv, streamingllm, random, random:per=token)" in lines, "not the last 64"
    assert "more than half of what is held is pinned" in lines
    assert "14 of 20 (infokv, streamingllm, random, random:per=token)" in lines
    assert "candidates:" not in lines, "those of rules"
    # 8 tokens after the last compression but one were added before the next
    assert re.search(r"the most that was held between compressions, and at the end: at budget 0.4 \d+ \(rpc", lines)


def test_grains_of_compressors_came_out_and_are_flagged_as_those_of_rules(run):
    per = grains(load_zones(run).query("budget == '0.4'"))
    assert per["streamingllm"] == per["random:per=token"] == "token"
    assert per["infokv"] == per["random"] == per["random-protected"] == "entry"
    assert per["rpc:window=4"] == "layer"
    alone = [n for n in NAMES if n != "random:per=token"]
    frame = load_zones(run)
    from forward_influence.analysis.reading.pairing import pair_remarks

    some = frame[frame["selector"].isin(alone) & (frame["budget"] == "0.4")]
    [remark] = pair_remarks(some, "streamingllm", "random")
    assert remark == (
        "whole tokens against random's entries, so that the multiple is too high (add `compressors` random:per=token)"
    )
    assert pair_remarks(some, "infokv", "random") == []
    table = compare(run, "random").table.set_index(["budget", "selector"])
    assert set(table.loc[("0.4", "streamingllm"), "baseline"]) == {"random:per=token"}, "of the same grain"


def test_a_compressor_that_chose_nothing_has_no_grain(run):
    frame = load_zones(run).query("budget == '0.4'").copy()
    whole = frame["selector"] == "rpc:window=4"
    frame.loc[whole, ["held", "pinned", "chosen"]] = [100.0, 100.0, 0.0]
    frame.loc[whole, "per"] = ""
    frame.loc[whole, "parameters"] = json.dumps({"compressor": True, "grain": None, "ends": None})
    assert grains(frame)["rpc:window=4"] == ""
    lines = notes(run, frame)
    assert "nothing was removed: rpc:window=4" in lines
    assert "rpc" not in next(line for line in lines if line.startswith("grain: "))
    assert "rpc" not in next(line for line in lines if line.startswith("pinned: "))
    assert held_cell(held_table(frame).iloc[0]) == "100 (all)"


def test_sentences_say_what_is_not_equal(run):
    told = findings(Evidence(compare(run, "random")))
    text = " ".join(sentence for part in told for sentence in part.sentences)
    assert text.count("Compressors do not hold equally much here") == 2, "at both budgets"
    assert "rpc:window=4 82, random-protected 78, infokv, streamingllm, random and random:per=token 40 entries" in text
    assert "More than half of what is held is pinned, which mutes differences: 68 of 82 (rpc:window=4)" in text
    equal = load_zones(run).query("budget == '0.4' and selector in ['infokv', 'random']")
    assert held_sentences(held_table(equal)) == ["more than half of what is held is pinned, which mutes differences: "
                                                 "24 of 40 (infokv, random)."]  # fmt: skip


def test_crossings_with_attention_say_it(tmp_path):
    request = Request(
        selectors=(),
        compressors=("attention", "rpc:window=4", "knorm"),
        budgets=("0.4",),
        context=N,
        continuation=M,
        every=12,
    )
    found = measure(tiny_data.model(), tiny_data.documents(2, N + M), request, tmp_path / "run")
    text = " ".join(s for part in findings(Evidence(compare(found, "attention"))) for s in part.sentences)
    assert "(rpc:window=4 holds 82 against 40 entries)" in text
    assert "(knorm holds" not in text


def test_terminal_tables_reports_and_pictures_show_it(run, tmp_path):
    table = summarise(run)
    shown = means_of(table)
    assert shown.set_index(["rule", "budget"]).loc[("rpc:window=4", "0.4"), "held = pinned + chosen"] == "82 = 68 + 14"
    found = compare(run, "random")
    for part, column in (
        (measure_of("comparison"), "held = pinned + chosen"), (measure_of("decay"), "held = pinned + chosen"),
        (measure_of("crossovers"), "held"), (measure_of("controls"), "held"),
    ):  # fmt: skip
        assert column in readable(part.frame(found), part, 3), part.name
    assert "82 against 40" in set(readable(found.crossovers, measure_of("crossovers"), 3)["held"])
    assert "82 against 40" in set(readable(found.controls, measure_of("controls"), 3)["held"])
    html = report([run]).html
    assert "82 = 68 + 14" in html
    assert "do not hold equally much" in html
    assert "Compressors pin" in html
    assert "all but the first" not in html, "candidates are of rules, and none was measured"
    data = PlotData([run])
    assert data.labels["rpc:window=4"] == "rpc:window=4 (holds 82, 75)"
    for kind in ("decay", "ratio", "nearfar", "crossover"):
        legend = [t.get_text() for t in plots.draw(kind, data).legends[0].get_texts()]
        assert any(text.startswith("infokv (holds 40, 20)") for text in legend), kind
    axis = plots.draw("crossover", data).get_supylabel()
    assert axis == "influence ÷ rpc:window=4's\n(holds 82, 75)"
    out = invoked("compare", run.where, "--budget", "0.4", "--format", "json")
    row = json.loads(out)["comparison"][0]
    assert (row["held"], row["pinned"], row["chosen"], row["other_held"]) == (82, 68, 14, 40)


def test_rules_that_remove_say_what_a_budget_comes_to_and_hold_nothing(tmp_path):
    """A fifth of the context is more than a fifth of the candidates."""
    request = Request(selectors=("recent", "random"), budgets=("0.2",), context=N, continuation=M, protect_last=8)
    found = measure(tiny_data.model(), tiny_data.documents(1, N + M), request, tmp_path / "run")
    [line] = [line for line in notes(found) if line.startswith("candidates")]
    assert line == (
        "candidates: 52 of 64 context tokens; the first 4 and the last 8 are protected; budget 0.2: 12 of these "
        "dropped, 19% of the context"
    )
    assert line in compare(found, "random").notes
    frame = load_zones(found)
    assert frame["held"].isna().all()
    assert held_notes(held_table(frame)) == []
    assert "held = pinned + chosen" not in means_of(summarise(found))
    assert "held" not in " ".join(readable(compare(found).table, measure_of("comparison"), 3).columns)
    assert all("holds" not in text.get_text() for text in plots.draw("decay", PlotData([found])).legends[0].get_texts())


def test_kept_tokens_of_rules_are_shown_too(tmp_path):
    request = Request(
        selectors=("recent", "random"), budgets=("50",), context=N, continuation=M, protect_last=8, mode="keep"
    )
    found = measure(tiny_data.model(), tiny_data.documents(1, N + M), request, tmp_path / "run")
    lines = notes(found)
    assert any("budget 50: 50 kept with the protected, 78% of the context" in line for line in lines)
    assert "pinned: the first 4 and the last 8 (recent, random)" in lines
    assert set(means_of(summarise(found))["held = pinned + chosen"]) == {"50 = 12 + 38"}


def test_runs_of_rules_read_as_before(tmp_path):
    """Simulated parts have no such values."""
    found = simulate(tmp_path / "run")
    assert load_zones(found)["held"].isna().all()
    assert compare(found).table["other_held"].isna().all()


def test_words():
    held = {"a": 268.0, "b": 96.0, "c": 96.4, "d": float("nan")}
    assert against(held, "a", "b") == "holds 268 against 96 entries"
    assert against(held, "b", "c") == against(held, "a", "d") == ""
    assert is_equal(200, 201)
    assert not is_equal(200, 210)
    assert [entries(x) for x in (96, 96.04, 103.75, 1234.0)] == ["96", "96", "103.8", "1,234"]
    assert held_cell({"held": 96.0, "pinned": 52.0, "chosen": 44.0}) == "96 = 52 + 44"
    assert held_cell({"held": np.nan, "pinned": 52.0, "chosen": 44.0}) == ""
    frame = pd.DataFrame({"selector": ["a", "a", "b"], "held": [10.0, 20.0, np.nan]})
    assert held_by(frame)["a"] == 15
    assert np.isnan(held_by(frame)["b"])


# --- evaluate ---


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    made = plan(compressors=("attention", "streamingllm", "random"), budgets=("0.5", "0.1"))
    evaluate(loaded(), made, folder / "one", command="x")
    growing = plan(
        compressors=("attention", "rpc:window=4"),
        budgets=("0.2",),
        every=3,
        items=1,
        lengths=(300,),
        protect_last=0.25,
        keep_prompt="own",
    )
    evaluate(loaded(), growing, folder / "growing", command="x")
    return folder


def frame_of(folder: Path) -> pd.DataFrame:
    from forward_influence.storage.evaluation import open_evaluation

    return open_evaluation(folder).frame()


def test_rows_of_an_evaluation_say_it(evaluated):
    for row in frame_of(evaluated / "one").to_dict("records"):
        n = row["context_tokens"]
        if row["compressor"] == "full":
            assert (row["held"], row["pinned"], row["chosen"]) == (n, n, 0)
            assert pd.isna(row["grain"])
            assert pd.isna(row["pinned_first"])
            continue
        kept = int(float(row["budget"]) * n + 1e-9)
        last = min(64, kept // 2)
        assert (row["held"], row["pinned_first"], row["pinned_last"]) == (kept, 4, last)
        assert (row["pinned"], row["chosen"]) == (4 + last, kept - 4 - last)
        assert row["held_most"] == kept + row["question_tokens"] + row["new_tokens"] - 1
        assert row["grain"] == ("token" if row["compressor"] == "streamingllm" else "entry")


def test_rows_of_a_growing_evaluation_say_it(evaluated):
    import plain_held

    for row in frame_of(evaluated / "growing").to_dict("records"):
        if row["compressor"] == "full":
            continue
        n, total = row["context_tokens"], row["context_tokens"] + row["question_tokens"] + row["new_tokens"] - 1
        name = row["compressor"].partition(":")[0]
        # the question is read in one pass, after which the cache is compressed if it is time
        moments, last = [n], n
        for seen in range(n + row["question_tokens"], total + 1):
            if seen - last >= 3:
                moments.append(seen)
                last = seen
        at_end = plain_held.after("rpc" if name == "rpc" else name, "0.2", n, moments[-1], 0.25)
        if name == "rpc":
            rest = max(1, int(0.2 * (moments[-1] - n) + 1e-9)) + 4
            assert row["held"] == n + min(rest, moments[-1] - n)
            continue
        assert row["held"] == at_end.held
        assert (row["pinned"], row["chosen"]) == (at_end.first + at_end.last, at_end.chosen)
        assert row["held_most"] > row["held"]


def test_accuracy_tables_say_what_was_held_and_what_is_not_equal(evaluated):
    frame = frame_of(evaluated / "one")
    table = accuracy_table(frame, "random")
    wanted = "compressor == 'attention' and budget == '0.1' and protocol == 'seen'"
    mean = frame.query(wanted).groupby("task", sort=False)["held"].mean()
    made = table.query(wanted).set_index("task")
    assert (made["held"] == mean).all()
    assert np.allclose(made["pinned"] + made["chosen"], made["held"])
    assert (made["baseline_held"] == mean).all()
    part = table[table["protocol"] == "seen"]
    lines = accuracy_notes(part, "random")
    assert any(
        line.startswith("streamingllm: whole tokens against random's entries, so that the diff") for line in lines
    )
    assert not any("not at equal size" in line or ("against" in line and "attention:" in line) for line in lines)
    assert any("more than half of what is held is pinned" in line and "at budget 0.1" in line for line in lines)
    growing = accuracy_table(frame_of(evaluated / "growing"), "random-protected")
    told = "\n".join(accuracy_notes(growing[growing["protocol"] == "seen"], "random-protected"))
    assert "not at equal size: " in told
    assert re.search(r"attention: .*holds \d+ against \d[\d.]* entries of random-protected", told)
    laid_out = paper_layout(accuracy_table(frame), "seen", 600).set_index("compressor")
    held = frame.query("compressor == 'attention' and protocol == 'seen'").groupby("budget")[["held", "chosen"]].mean()
    each = [f"{entries(held.loc[b, 'held'])} ({entries(held.loc[b, 'chosen'])})" for b in ("0.5", "0.1")]
    assert laid_out.loc["attention", "held (chosen)"] == ", ".join(each)


def test_the_command_shows_it_in_every_form(evaluated):
    folder = str(evaluated / "one")
    out = invoked("evaluate", "--results", folder, "--baseline", "random")
    assert "held = pinned + chosen" in out
    assert "the first 4 and the last" in out
    for form in ("markdown", "latex"):
        out = invoked("evaluate", "--results", folder, "--format", form)
        assert "held (chosen)" in out
        assert "held: entries per layer and head" in out
    rows = json.loads(invoked("evaluate", "--results", folder, "--format", "json"))
    assert {"held", "held_most", "pinned", "chosen", "pinned_last", "baseline_held", "grain"} <= set(rows[0])
    legend = [t.get_text() for t in _retention(evaluated).legends[0].get_texts()]
    assert any(re.fullmatch(r"attention \(holds \d+, \d+\)", text) for text in legend)


def _retention(evaluated: Path):
    from forward_influence.storage.evaluation import open_evaluation

    return plots.draw("retention", [open_evaluation(evaluated / "one")])


def test_an_evaluation_at_matched_size(tmp_path):
    from forward_influence.errors import UsageError

    made = plan(budgets=(), match_held=(100,), compressors=("attention", "h2o", "adakv"), items=1, protect_last="0.25")
    assert [c.name for c in made.contenders] == ["full", "attention", "h2o", "adakv", "random"]
    frame = evaluate(loaded(), made, tmp_path / "matched", command="x").frame()
    some = frame[frame["compressor"] != "full"]
    assert set(some["held"]) == {100}
    assert set(some["budget"]) == {"held=100"}
    assert dict(some.groupby("compressor")["pinned"].first()) == {"attention": 29, "h2o": 54, "adakv": 29, "random": 29}
    assert "not at equal size" not in "\n".join(accuracy_notes(accuracy_table(frame)))
    # a prompt that is kept whole has to fit
    small = plan(budgets=(), match_held=100, compressors=("attention",), every=4)
    assert [c.name for c in small.contenders] == ["full", "attention", "random"]
    large = plan(budgets=(), match_held=(605,), compressors=("attention",), every=4)
    assert large.contenders[-1].name == "random-protected"
    with pytest.raises(UsageError, match=r"rpc keeps the prompt whole, 5[0-9][0-9] tokens .*; hold at least"):
        evaluate(
            loaded(),
            plan(budgets=(), match_held=100, compressors=("rpc",), every=4, keep_prompt="own"),
            tmp_path / "no",
            command="x",
        )
    assert not (tmp_path / "no").exists(), "nothing is made that is not answered"
    with pytest.raises(UsageError, match="no more than 600 tokens are seen"):
        plan(budgets=(), match_held=600)
    with pytest.raises(UsageError, match="give one of them"):
        plan(match_held=100)
