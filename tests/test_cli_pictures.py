"""`plot` and `report` as typed: where they write, what they say, and what they refuse in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import Decay, simulate

from forward_influence.cli.app import main
from forward_influence.runs import Run

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
        (["plot", "{run}", "--selector", "entropi"], 2, "did you mean 'entropy'"),
        (["report", "{run}", "--baseline", "nothing"], 2, "was not measured"),
        (["report", "{run}", "--out", "/proc/nowhere/r.html"], 1, "choose a folder that can be written"),
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
