"""Tables as people and programs read them: formats, numbers, what a narrow terminal does, the end of a measurement."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from invoking import invoke
from rich.console import Console
from simulated import DEFAULT_RULES, Decay, simulate

from forward_influence.analysis.formatting import summary_words
from forward_influence.analysis.formatting.wording import interval, join, many, number, p_value, tokens
from forward_influence.analysis.measures.compare import Comparison, compare
from forward_influence.analysis.measures.overlap import overlap, overlap_summary
from forward_influence.analysis.measures.summary import summarise
from forward_influence.analysis.measures.tokens import token_profile, token_shares
from forward_influence.analysis.tables.measure import readable
from forward_influence.analysis.tables.registry import measure_of
from forward_influence.cli import summary, tables
from forward_influence.cli.compare import _pair
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run

RULES = {**DEFAULT_RULES, "position-matched:of=attention": Decay("power", 0.25, 0.6)}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "both"
    return simulate(folder, RULES, documents=12, effects=("total", "direct"), save_selections=True, draws=2)


@pytest.fixture(scope="module")
def found(run: Run) -> Comparison:
    return compare(run)


def on_terminal(frame: pd.DataFrame, width: int) -> list[str]:
    """The lines of a table on a terminal of that width."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(tables.rich_table(frame, "a title", width))
    return stream.getvalue().splitlines()


def test_formats(run: Run, found: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke(run.folder, "--format", "csv"))))
    assert len(rows) == len(found.table)
    assert float(rows[0]["ratio"]) == found.table["ratio"][0]
    assert {row["wins"] for row in rows if row["selector"] == "random"} == {""}
    assert all(row["wins"].isdigit() for row in rows if row["selector"] == "attention")
    content = json.loads(invoke(run.folder, "--format", "json", "--show", "comparison", "--show", "crossovers"))
    assert set(content) == {"comparison", "crossovers", "notes"}
    assert content["comparison"][0]["kl"] == found.table["kl"][0]
    nothing = [row for row in content["comparison"] if row["selector"] == "random"]
    assert (nothing[0]["ratio"], nothing[0]["wins"]) == (None, None)
    text = invoke(run.folder, "--format", "markdown", "--crossover", "entropy,attention")
    assert "| rule | effect | zone | mean KL [95%] | ratio to random [95%] | p (Holm) | effect size | wins |" in text
    assert "| entropy | total | attention | from " in text
    shown = invoke(run.folder, "--show", "controls", "--show", "effects", "--baseline", "position-matched")
    assert "position-matched:of=attention" in shown
    assert "direct share" in shown


def test_latex_has_no_characters_that_it_reads_otherwise(run: Run, found: Comparison) -> None:
    text = invoke(run.folder, "--format", "latex")
    assert r"\toprule" in text
    assert r"[95\%]" in text
    assert (found.table["p_holm"] < 0.005).any()
    frame = pd.DataFrame({"p": ["<0.001"], "far": ["∞"], "to": [tables.ABSENT]})
    made = tables.latex(frame)
    assert all(wanted in made for wanted in ("$<$0.001", r"$\infty$", "--"))
    assert not re.search(r"(?<!\$)[<>]", made)


@pytest.mark.parametrize("form", [form for form in tables.Format if form is not tables.Format.table])
def test_remarks_in_cells_name_options_as_they_are_typed(form: tables.Format, run: Run) -> None:
    invoke("--help")  # whichever command runs, the options of all are known
    frame = pd.DataFrame({"flags": ["too high (add `selectors` random:per=token)"], "n": [12]})
    written = tables.text(frame, form)
    assert "--selector random:per=token" in written and "`" not in written and "12" in written


def test_markdown_shows_marks_and_bars_as_they_are() -> None:
    assert "| 0.1\\* | a\\|b |" in tables.markdown(pd.DataFrame({"x": ["0.1*"], "y": ["a|b"]}))


def test_overlap_and_tokens_in_every_format(run: Run, tmp_path: Path) -> None:
    pairs, profile = overlap_summary(overlap(run)), token_profile(token_shares(run))
    for name, rows in (("overlap", 6), ("overlap-layers", 12), ("tokens", len(profile[profile["base"] > 0]))):
        made = list(csv.DictReader(io.StringIO(invoke(run.folder, "--show", name, "--format", "csv"))))
        assert len(made) == rows
        content = json.loads(invoke(run.folder, "--show", name, "--format", "json"))
        assert len(content[name]) == rows
        for form in ("markdown", "latex", "table"):
            text = invoke(run.folder, "--show", name, "--format", form)
            assert "entropy" in text
            assert "Wilcoxon" not in text
    made = pd.read_csv(io.StringIO(invoke(run.folder, "--show", "overlap", "--format", "csv", "--budget", "0.20")))
    assert made["shared"].tolist() == pytest.approx(pairs["shared"].tolist())
    assert made["shared_low"].tolist() == pytest.approx(pairs["shared_low"].tolist())
    bare = simulate(tmp_path / "bare", RULES, documents=2)
    with pytest.raises(UsageError, match="measure with `save_selections`"):
        invoke(bare.folder, "--show", "overlap")
    one = simulate(tmp_path / "one", {"attention": Decay()}, documents=2, save_selections=True)
    out = invoke(one.folder, "--baseline", "attention", "--show", "overlap", "--show", "controls", "--show", "effects")
    assert "nothing to show, no two rules of a run have saved selections" in " ".join(out.split())
    assert "nothing to show, no rule was measured with a control" in " ".join(out.split())
    assert "nothing to show, no rule was measured with both effects (--effect both)" in " ".join(out.split())


def test_flagged_values_bear_a_star_in_every_table(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 0.1, 100), "random": Decay("flat", 0.01)}
    run = simulate(tmp_path / "run", rules, documents=6, floor=1e-3, effects=("total", "direct"))
    found = compare(run)
    table = readable(found.table, measure_of("comparison"), 3)
    far = table[(table["rule"] == "attention") & (table["zone"] == "far")]
    assert far["mean KL [95%]"].str.contains(r"^[\d.e-]+\* \[").all()
    near = table[(table["rule"] == "attention") & (table["zone"] == "near")]
    assert not near["mean KL [95%]"].str.contains("*", regex=False).any()
    for name, column in (("controls", "ratio [95%]"), ("effects", "direct share [95%]")):
        frame = measure_of(name).frame(found)
        starred = readable(frame, measure_of(name), 3)[column].str.contains("*", regex=False)
        assert starred.tolist() == frame["flagged"].tolist()
        assert starred.any() and not starred.all()
    assert "(*)" in invoke(run.folder)


@pytest.mark.parametrize("part", ["comparison", "decay", "controls", "effects", "crossovers"])
@pytest.mark.parametrize("varying", [1, 2])
def test_eighty_columns_break_no_number(part: str, varying: int, tmp_path: Path) -> None:
    budgets = ("0.1", "0.2")[:varying]
    run = simulate(tmp_path / "run", RULES, documents=7, budgets=budgets, effects=("total", "direct")[:varying])
    found = compare(run)
    frame = measure_of(part).frame(found)
    if frame.empty:  # effects need two
        return
    table = readable(frame, measure_of(part), 2)
    lines = on_terminal(table, 80)
    assert max(map(len, lines)) <= 80
    words = set(re.split(r"\s+", "\n".join(lines)))
    for cell in table.map(str).to_numpy().ravel():
        if "[" in cell:
            assert set(cell.split()) <= words, cell


def test_wide_terminals_keep_a_row_on_a_line_and_three_digits(found: Comparison) -> None:
    lines = on_terminal(readable(found.table, measure_of("comparison"), 3), 200)
    row = found.table.iloc[0]
    wanted = interval(row["kl"], row["kl_low"], row["kl_high"])
    assert any(wanted in line for line in lines)


@pytest.mark.parametrize("width", [80, 220])
def test_the_table_that_ends_a_measurement(
    width: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(tables, "console", lambda: Console(file=stream, width=width, highlight=False))
    summary.show_summary(run)
    out = stream.getvalue()
    if width == 220:
        assert "far / near" in out
        assert "x random, far" in out
    assert "entropy: whole tokens against random's entries, so that the multiple is too high (add --selector" in out
    row = summarise(run).query("selector == 'entropy' and effect == 'direct'").iloc[0]
    assert number(row["far_low"], 2) in out
    stream.truncate(0)
    summary.show_summary(simulate(tmp_path / "[bold]odd", {"attention": Decay()}, documents=1))
    out = stream.getvalue()
    assert "[bold]odd: mean KL" in out
    assert "x random" not in out
    assert "intervals need 6 documents; there are 1" in out


def test_what_compressors_leave_is_judged_by_what_stays_the_same(tmp_path: Path) -> None:
    compressors = ["snapkv", "pyramidkv", "streamingllm", "random"]
    rules = {name: Decay("power", level, 0.3) for name, level in zip(compressors, (0.1, 0.12, 0.3, 0.4), strict=True)}
    asked = {"configuration": {"compressors": compressors, "selectors": []}}
    run = simulate(tmp_path / "run", rules, documents=7, mode="keep", budgets=("0.2", "0.4"), manifest=asked)
    table = summarise(run)
    kept = summary_words.fidelity(table)
    zones = ["near", "far"]
    assert list(kept) == ["rule", "budget", *(f"{w}, {z}" for z in zones for w in ("NLL shift", "same top token"))]
    row = table.iloc[0]
    assert kept["same top token, far"][0] == f"{row['same_far']:.1%}"
    assert kept["NLL shift, near"][0] == number(row["nll_near"], 2)
    for frame in (kept, summary_words.readable(table)):
        lines = on_terminal(frame, 80)
        assert max(map(len, lines)) <= 80
        words = set("\n".join(lines).split())
        values = {w for cell in frame.drop(columns="rule").map(str).to_numpy().ravel() for w in cell.split()}
        assert values <= words
    dropped = simulate(tmp_path / "dropped", RULES, documents=2)
    assert summary_words.fidelity(summarise(dropped)).empty


def test_numbers_for_people() -> None:
    values = [0.05012, 2.544, 0.0, -0.8333, 1e-6, NAN, INF, 12345.6, 0.9996, 99.96, 0.00009999]
    wanted = ["0.0501", "2.54", "0", "-0.833", "1.00e-6", "–", "∞", "12,346", "1.00", "100", "1.00e-4"]
    assert [number(x) for x in values] == wanted
    assert [number(x, 2) for x in (0.02344, 4.44, 1.5e-5, 1e6)] == ["0.023", "4.4", "1.5e-5", "1.0e6"]
    assert [p_value(p) for p in (0.0004, 0.0451, NAN)] == ["<0.001", "0.045", "–"]
    assert [join(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    assert [many(n, "document") for n in (1, 2)] == ["1 document", "2 documents"]
    assert [tokens(d) for d in (1234.4, INF)] == ["1,234", "beyond the range"]


def test_an_interval_is_written_in_one_notation() -> None:
    assert interval(1.0, 0.5, 2.0) == "1.00 [0.500, 2.00]"
    assert interval(1.0, NAN, 2.0) == "1.00"
    assert interval(0.00114, 8.7e-4, 0.00149) == "0.00114 [0.000870, 0.00149]"
    assert interval(2e-5, 1e-6, 3e-4) == "2.00e-5 [1.00e-6, 3.00e-4]"
    assert interval(299, 263, INF, unit=" tokens") == "299 tokens [263, ∞]"


def test_pairs_with_parameters() -> None:
    assert _pair("entropy,attention") == ("entropy", "attention")
    assert _pair("infokv:alpha=0.9,tau=1,attention:window=32,kernel=7") == (
        "infokv:alpha=0.9,tau=1",
        "attention:window=32,kernel=7",
    )
    for bad in ("entropy", "a,b,c", ",b"):
        with pytest.raises(UsageError, match="takes two rules"):
            _pair(bad)
