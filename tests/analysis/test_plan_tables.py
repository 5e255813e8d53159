"""The plan of a run in `compare` and reports: its questions first, all else exploratory."""

from __future__ import annotations

import html

import numpy as np
import pytest
from simulated import simulate
from test_answers import ask, run_of

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.report.findings_planned import EXPLORATORY
from forward_influence.analysis.report.page import report
from forward_influence.analysis.tables.registry import measure_of
from forward_influence.cli import app
from forward_influence.errors import UsageError


def compared(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(["compare", *arguments])
    assert ended.value.code == code


TABLES = ("plan", "equivalence", "mixed")


def test_a_report_answers_the_plan_first(tmp_path):
    run = run_of(tmp_path / "run", [ask("attention", "more"), ask("entropy", "equal")], documents=8)
    made = report([run])
    assert made.findings[0].heading.startswith("Asked before the run")
    assert len(made.findings[0].sentences) == 2
    assert all(part.heading.startswith(EXPLORATORY) for part in made.findings[1:])
    assert "The plan's questions, asked before the run" in html.unescape(made.html)
    assert made.html.index("Asked before the run") < made.html.index(EXPLORATORY)


def test_compare_shows_the_plan_unasked_where_there_is_one(tmp_path, capsys):
    run_of(tmp_path / "planned", [ask("attention", "more")], documents=8)
    simulate(tmp_path / "other", documents=8)
    compared(str(tmp_path / "planned"))
    told = capsys.readouterr().out
    assert told.index("The plan's questions") < told.index("Influence near, middle and far")
    compared(str(tmp_path / "other"))
    assert "plan" not in capsys.readouterr().out
    compared(str(tmp_path / "other"), "--show", "plan")
    assert "nothing to show, no run was measured under a plan (--plan)" in " ".join(capsys.readouterr().out.split())


def test_the_margin_decides_what_is_equal(tmp_path, capsys):
    run = simulate(tmp_path / "run", documents=12)
    for margin in (1.0001, 1.1, 10):
        found = compare(run, margin=margin)
        table = measure_of("equivalence").frame(found)
        inside = (table["equal_low"] > 1 / margin) & (table["equal_high"] < margin)
        np.testing.assert_array_equal(table["finding"].str.contains("equal within"), inside)
        notes = measure_of("equivalence").notes(found, only=True)
        assert any(line.startswith("equal within") for line in notes)
    compared(str(tmp_path / "run"), "--show", "equivalence", "--margin", "10")
    assert "equal within" in capsys.readouterr().out
    with pytest.raises(UsageError, match="margin"):
        compare(run, margin=1)
    compared(str(tmp_path / "run"), "--margin", "1", code=2)
    assert "--margin" in capsys.readouterr().err


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_made_of_runs_that_are_too_few(name, tmp_path, capsys):
    simulate(tmp_path / "run", documents=2)
    compared(str(tmp_path / "run"), "--show", name)
    assert "error" not in capsys.readouterr().err
