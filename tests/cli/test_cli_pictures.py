"""`plot` and `report` as typed: where they write, what they say, and what they refuse in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import Decay, simulate

from forward_influence.cli.app import main
from forward_influence.storage.run import Run

RULES = {name: Decay("power", level, 0.6) for name, level in (("attention", 1.0), ("entropy", 0.2), ("random", 0.1))}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return simulate(tmp_path / "run", RULES, documents=2, draws=1)


def typed(*arguments: object) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_plot_writes_next_to_the_run_and_says_where(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("plot", run.folder) == 0
    path = run.folder / "plots" / "decay.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"written to {path}" in capsys.readouterr().out


def test_plot_writes_where_it_is_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "ratio.svg"
    assert typed("plot", run.folder, "--kind", "ratio", "--log-bins", "--selector", "entropy", "--out", path) == 0
    svg = path.read_text()
    assert "<svg" in svg
    assert not (run.folder / "plots").exists()


def test_a_run_called_by_a_dot_has_its_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.folder)
    assert typed("report", ".", "--out", tmp_path / "r.html") == 0
    assert "<title>Forward Influence: run</title>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert typed("compare", ".", "--format", "csv") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("run,")
    monkeypatch.chdir(run.folder / "parts")
    assert typed("plot", "..", "--out", tmp_path / "p.png") == 0


def test_the_picture_of_an_address_is_written_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("plot", run.folder.as_uri()) == 0
    assert (tmp_path / "decay.png").exists()
    assert typed("report", run.folder.as_uri()) == 0
    assert "<title>Forward Influence: run</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_rules_and_budgets_may_be_typed_at_length(run: Run, tmp_path: Path) -> None:
    more = ("--selector", "attention:window=64", "--selector", "random:per=entry", "--budget", "0.20")
    assert typed("plot", run.folder, *more, "--kind", "crossover", "--out", tmp_path / "p.png") == 0
    assert typed("compare", run.folder, "--baseline", "random:per=entry", "--budget", "0.200") == 0
    assert typed("report", run.folder, "--baseline", "entropy:per=entry", "--out", tmp_path / "r.html") == 0


def test_authors_can_be_the_unit_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = simulate(tmp_path / "run", RULES, documents=6, draws=1, authors=list("abc"))
    for command in (("plot", "--out", tmp_path / "p.svg"), ("report", "--out", tmp_path / "r.html"), ("compare",)):
        name, *rest = command
        assert typed(name, run.folder, *rest, "--cluster", "author", "--bootstrap") == 0
        out = capsys.readouterr().out
        if name != "plot":
            assert "not 3" in out or "With 3 documents" in out
        assert typed(name, run.folder, *rest, "--cluster", "party") == 2
        assert "has no 'party' to cluster by" in capsys.readouterr().err


def test_two_models_are_drawn_and_reported_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = {"save_selections": True, "draws": 1, "documents": 2}
    one = simulate(tmp_path / "one", RULES, **saved)
    two = simulate(tmp_path / "two", RULES, **saved, manifest={"model": {"fingerprint": "0" * 64, "spec": "other"}})
    for kind in ("decay", "overlap", "layers", "positions", "tokens"):
        assert typed("plot", one.folder, two.folder, "--kind", kind, "--out", tmp_path / f"{kind}.png") == 0
    assert typed("report", one.folder, two.folder, "--out", tmp_path / "r.html") == 0
    assert "stand side by side" in capsys.readouterr().out
    assert typed("compare", one.folder, two.folder) == 2
    assert "`report` and `plot` set them side by side" in capsys.readouterr().err


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = simulate(tmp_path / "half", RULES, documents=4, measured=3, save_selections=True, draws=1)
    bare = simulate(tmp_path / "bare", RULES, documents=2)
    how = "half is not finished; documents: 3 of 4 measured (continue with: forward-influence measure"
    assert typed("plot", half.folder, "--out", tmp_path / "p.png") == 0
    assert how in capsys.readouterr().out
    assert typed("report", half.folder, "--out", tmp_path / "r.html") == 0
    assert how in capsys.readouterr().out
    assert typed("plot", half.folder, bare.folder, "--kind", "overlap", "--out", tmp_path / "o.png") == 0
    assert "left out, no saved selections: bare" in capsys.readouterr().out


def test_a_corrupt_part_is_left_out_of_pictures_of_selections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = simulate(tmp_path / "run", RULES, documents=3, save_selections=True, draws=1)
    path = run.part_path("speech-001")
    path.write_bytes(path.read_bytes()[:-100])
    for kind in ("overlap", "tokens", "layers", "positions", "decay"):
        assert typed("plot", run.folder, "--kind", kind, "--out", tmp_path / f"{kind}.png") == 0
        assert "documents: 2 of 3 measured" in capsys.readouterr().out
    assert typed("report", run.folder, "--out", tmp_path / "r.html") == 0


def test_report_writes_a_page_and_tells_its_findings(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "r.html"
    assert typed("report", run.folder, "--out", path, "--title", "A <title>") == 0
    assert "<title>A &lt;title&gt;</title>" in path.read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "- With 2 documents nothing can be inferred" in out
    assert f"written to {path} (" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plot", "{run}", "--kind", "decya"], 2, "did you mean 'decay'"),
        (["plot", "{run}", "--kind", "overlap"], 2, "measure with --save-selections"),
        (["plot", "{run}", "--out", "a.jpg"], 2, "--out must end in .png, .svg, .pdf"),
        (["plot", "{run}", "--out", "/proc/nowhere/a.png"], 1, "choose another --out"),
        (["plot", "{run}/parts"], 2, "is not a run folder"),
        (["plot", "{run}", "--bin-width", "0"], 2, "--bin-width"),
        (["plot", "{run}", "{run}"], 2, "is given twice; give each folder once"),
        (["report", "{run}", "{run}/parts/.."], 2, "is given twice; give each folder once"),
        (["compare", "{run}", "{run}/"], 2, "is given twice; give each folder once"),
        (["plot", "{run}", "--budget", "0.3"], 2, "budget 0.3 was not measured; measured: 0.2"),
        (["plot", "{run}", "--kind", "crossover", "--selector", "random"], 2, "needs two rules, one was chosen"),
        (["compare", "{run}", "--baseline", "h2o"], 2, "choose one with --baseline"),
        (["compare", "{run}", "--show", "tokens"], 2, "measure with --save-selections"),
        (["plot", "{run}", "--selector", "entropi"], 2, "did you mean 'entropy'"),
        (["report", "{run}", "--baseline", "nothing"], 2, "was not measured"),
        (["report", "{run}", "--out", "/proc/nowhere/r.html"], 1, "choose another --out"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], code: int, message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(*(a.format(run=run.folder) for a in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_run_without_any_part_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = simulate(tmp_path / "empty", RULES, documents=2, measured=0)
    assert typed("plot", empty.folder) == 1
    assert "continue it with: forward-influence measure" in capsys.readouterr().err
