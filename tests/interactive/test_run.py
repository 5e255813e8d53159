"""Runs in Python: what they show equals what the analysis computes, and looks like something in a notebook."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated import Decay, simulate
from tiny import tiny_model

import forward_influence as fi
from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.measures.summary import summarise
from forward_influence.errors import UsageError
from forward_influence.interactive.progress import Bar, default_progress, in_notebook
from forward_influence.interactive.run import Run
from forward_influence.utils.progress import Silent

RULES = {"attention": Decay(level=1.0), "entropy": Decay(level=0.2), "random": Decay(level=0.1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("interactive") / "run"
    return Run.of(simulate(folder, RULES, documents=6, continuation=256, save_selections=True))


def test_the_summary_is_what_the_analysis_says(run):
    table, wanted = run.summary(), summarise(run)
    assert table.values.equals(wanted) and table.notes[: len(wanted.attrs["notes"])] == wanted.attrs["notes"]
    assert [str(name) for name in table.frame["rule"]] == list(RULES)
    assert "mean KL in nats" in repr(table) and "<table" in table._repr_html_()


def test_the_comparison_is_what_the_analysis_says(run):
    wanted = compare(run, "random").table
    table = run.compare()
    ratios = wanted[wanted["ratio"].notna()]
    assert len(table.frame) == len(ratios) and set(table.frame["rule"]) == {"attention", "entropy"}
    first = table.frame.iloc[0]
    assert first["ratio to random [95%]"].startswith(f"{ratios.iloc[0]['ratio']:.2g}")


def test_the_frame_holds_means_by_document_and_the_curves_every_position(run):
    frame, curves = run.frame(), run.curves()
    assert list(frame.columns[-3:]) == ["near", "middle", "far"] and len(frame) == 6 * len(RULES)
    name = frame["document"].iloc[0]
    rows = curves[(curves["document"] == name) & (curves["selector"] == "attention")]
    floor = curves[(curves["document"] == name) & (curves["kind"] == "noise_floor")]["kl"].iloc[0]
    far = np.mean([kl[128:].mean() for kl in rows["kl"]]) - floor[128:].mean()
    found = frame[(frame["document"] == name) & (frame["selector"] == "attention")]["far"].item()
    assert found == pytest.approx(far, rel=1e-6)


def test_pictures_are_shown_without_any_magic_and_written(run, tmp_path):
    picture = run.plot("decay")
    assert picture._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")
    picture.save(tmp_path / "decay.svg")
    assert (tmp_path / "decay.svg").read_text("utf-8").lstrip().startswith("<?xml")
    with pytest.raises(UsageError, match="decay"):
        run.plot("decai")


def test_the_text_is_shown_with_what_a_rule_selected(run):
    marked = run.show("entropy", document=1)
    assert len(marked.pieces) == len(marked.shares) and 0 < sum(marked.shares) < len(marked.shares)
    assert "&lt;b&gt;" in marked._repr_html_() and "<b>bold" not in marked._repr_html_()
    with pytest.raises(UsageError, match="attention, entropy"):
        run.show("entropi")
    with pytest.raises(UsageError, match="the first is 0"):
        run.show(document=6)


def test_without_selections_showing_says_how_to_get_them(tmp_path):
    bare = Run.of(simulate(tmp_path / "bare", RULES, documents=6, continuation=256))
    with pytest.raises(UsageError, match="selections"):
        bare.show()


def test_the_report_is_written(run, tmp_path):
    path = run.report(tmp_path / "new" / "report.html")
    assert path.read_text("utf-8").startswith("<!doctype html>")


def test_public_names_are_listed_and_nothing_else_is():
    assert {name for name in dir(fi) if not name.startswith("__")} == {n for n in fi.__all__ if n != "__version__"}
    assert all(hasattr(fi, name) for name in dir(fi))


def test_everything_shows_itself_in_a_line(run):
    from forward_influence.data.cutting import Cut
    from forward_influence.data.document import make_document

    model = fi.wrap_model(tiny_model("llama"), None)
    document = Cut(make_document("a <name>", "word " * 2000), (torch.arange(80) % 97,), 2000)
    request = fi.Request(selectors=("recent",), context=48, continuation=32, protect_last=8)
    trace = fi.record(model, document.segments[0][:48], fi.Needs.merge({"entropy:256"}), span=80, first=4, last=40)
    selection = fi.select(fi.parse_selector("entropy"), trace, 8)
    [influence] = fi.forward_influence(model, trace, document.segments[0][48:], selection)
    for shown in (model, document, document.document, request, trace, selection, influence, run):
        assert len(repr(shown)) < 300 and "\n" not in repr(shown)
        assert "<name>" not in shown._repr_html_()
    assert "3 layers, 4 query and 2 kv heads" in repr(model) and "48 tokens" in repr(trace)
    assert repr(request) == "Request(selectors=('recent',), context=48, continuation=32, protect_last=8)"


def test_there_is_a_bar_in_a_notebook_and_none_elsewhere(monkeypatch, capsys):
    assert not in_notebook() and isinstance(default_progress(), Silent)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    assert isinstance(default_progress(), Bar)
    bar = Bar()
    bar.begin(10, "measuring")
    bar.advance(4, "a document")
    bar.message("a line")
    bar.end()
    assert "a line" in capsys.readouterr().err
