"""The house style: a look of its own for every rule, files that repeat, vector pictures fit for a page."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from simulated import Decay, simulate

from forward_influence.analysis.formatting import style
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots import registry as plots
from forward_influence.analysis.plots.data import PlotData
from forward_influence.compression.compressor import NAMED
from forward_influence.selectors import discover

RULES = {name: Decay("power", level, 0.6) for name, level in (("attention", 1.0), ("entropy", 0.2), ("random", 0.1))}


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Figure:
    run = simulate(tmp_path_factory.mktemp("runs") / "run", RULES, documents=6, draws=2)
    return plots.draw("decay", PlotData((run,)))


def test_every_rule_of_a_run_has_a_style_of_its_own() -> None:
    names = ["attention", "entropy", "infokv", "random", "mine.py:Rule", "other.py:Rule"]
    names += [f"attention:window={2**k}" for k in range(7)]
    styles = style.rule_styles(names)
    assert len({(s.colour, s.marker) for s in styles.values()}) == len(names)
    assert styles["attention"] == style.rule_style("attention")
    assert all(styles[n].colour == styles["attention"].colour for n in names if n.startswith("attention:"))
    assert style.rule_styles(reversed(names)) == styles


def test_every_rule_and_compressor_has_a_style_of_its_own() -> None:
    names = {*discover(), *NAMED}
    assert names <= set(style._KNOWN)
    assert set(style._KNOWN) <= names  # no style for what does not exist


def test_known_rules_differ_in_marker_and_line_within_a_colour() -> None:
    for (a, one), (b, other) in itertools.combinations(style._KNOWN.items(), 2):
        assert (one.colour, one.marker) != (other.colour, other.marker), (a, b)


def test_names_are_shortened_so_that_they_differ() -> None:
    names = ["position-matched:of=attention", "position-matched:of=entropy", "mix:0.9*attention+0.1*entropy,per=token"]
    assert all(len(text) <= 23 for text in common.shortened(names, 23))
    alike = [f"attention:window={n},kernel=7,pooling=average" for n in (16, 32)]
    made = common.shortened(alike, 16)
    assert len(set(made)) == 2
    assert common.shortened(["a", "b"], 1) == ["a", "b"]


@pytest.mark.parametrize("ending", style.FORMATS)
def test_written_files_are_what_they_say_and_repeat(ending: str, figure: Figure, tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    contents = []
    for name in ("a", "b"):
        path = tmp_path / name / f"decay.{ending}"
        style.save(figure, path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(starts[ending])
    assert contents[0] == contents[1]


def test_inline_svg_takes_the_pages_ink_and_owns_its_ids(figure: Figure) -> None:
    svg = style.inline_svg(figure, "p1", "a &quot;picture&quot;")
    assert svg.startswith('<svg role="img" aria-label="a &quot;picture&quot;"')
    assert style.INK not in svg
    assert "currentColor" in svg
    assert "http://purl.org" not in svg
    assert 'id="' in svg
    assert 'id="p1-' in svg
    assert svg.count('id="') == svg.count('id="p1-')


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01, "0.01"), (1.0, "1"), (128, "128"), (2000, "2k"), (14000, "14k"), (0.0001, "1e-4"), (0, "0")],
)
def test_tick_labels(value: float, text: str) -> None:
    assert common.plain_number(value) == text
