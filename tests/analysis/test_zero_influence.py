"""Rules without any influence near the context, such as those that protect it: no warnings, nothing drawn of zeros."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from simulated import Decay, simulate

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.crossover import crossovers
from forward_influence.analysis.plots import registry as plots
from forward_influence.analysis.plots.data import PlotData
from forward_influence.storage.run import Run, read_part

#: Positions from the context on in which the protected rule has no influence; a bin drawn has 128.
ZERO = 256
HOLLOW = "hollow: under 4× the noise floor"


def _protected(folder: Path, name: str, zero: int, rules: dict[str, Decay]) -> Run:
    """A simulated run whose first rule has a KL of exactly 0 at the first `zero` positions."""
    source = simulate(folder / f"source-{name}", rules, documents=6)
    target = simulate(folder / name, rules, documents=6, measured=0)
    (first, *_) = rules
    for document in source.documents:
        rows = read_part(source.part_path(document["part"]))
        for row in rows:
            if row["kind"] == "condition" and row["selector"] == first:
                row["kl"] = np.where(np.arange(len(row["kl"])) < zero, 0, row["kl"]).astype(np.float32)
        target.write_part(document["part"], rows, {})
    return target


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rules = {"random-protected": Decay("power", 0.3, 0.3), "attention": Decay("power", 1.0, 0.9)}
    return _protected(tmp_path_factory.mktemp("zero"), "run", ZERO, rules)


def _lines(axes: Axes, rule: str) -> tuple[Line2D, Line2D]:
    """A rule's measured curve and its fitted law."""
    mine = [line for line in axes.lines if line.get_color() == style.rule_style(rule).colour]
    (measured,) = [line for line in mine if line.get_marker() not in ("None", "")]
    (law,) = [line for line in mine if line.get_marker() in ("None", "")]
    return measured, law


def test_crossovers_of_a_rule_without_near_influence_warn_of_nothing(run: Run, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = crossovers(PlotData((run,)).fine_curves).to_dict("records")
        assert (row["rule"], row["over"]) == ("random-protected", "attention")  # all of its influence is far
        rules = {"random-protected": Decay(), "attention": Decay("flat")}
        nowhere = _protected(tmp_path, "nowhere", 1024, rules)
        (row,) = crossovers(PlotData((nowhere,)).fine_curves).to_dict("records")
    assert {row["rule"], row["over"]} == set(rules)
    assert row["text"] == "not known"


def test_a_curve_breaks_where_it_is_zero_and_no_law_is_drawn_there(run: Run) -> None:
    figure = plots.draw("decay", PlotData((run,)))
    (axes,) = figure.axes
    measured, law = _lines(axes, "random-protected")
    gap = np.asarray(measured.get_xdata()) < ZERO
    assert gap.tolist() == [True, True] + [False] * 6
    assert np.isnan(measured.get_ydata()).tolist() == gap.tolist()
    assert np.isnan(law.get_ydata()).tolist() == gap.tolist()
    assert all(np.isfinite(line.get_ydata()).all() for line in _lines(axes, "attention"))
    bands = np.concatenate([path.vertices for band in axes.collections for path in band.get_paths()])
    assert (bands[:, 1] > 0).all()
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "fitted law" in told
    assert HOLLOW not in told  # those bins are flagged, but nothing is drawn of them
    assert not [line for line in axes.lines if line.get_markerfacecolor() == "white"]


def test_a_rule_without_any_influence_is_an_empty_picture_without_a_law(tmp_path: Path) -> None:
    run = _protected(tmp_path, "run", 1024, {"random-protected": Decay()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.draw("decay", PlotData((run,)))
        figure.draw_without_rendering()
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "fitted law" not in told
    assert HOLLOW not in told
