"""Pictures: what is drawn is what was measured, the style holds, nothing overlaps, requests that cannot be met."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from simulated import Decay, simulate

from forward_influence.analysis import plots, style
from forward_influence.analysis.layer_profile import layer_positions, position_lift
from forward_influence.analysis.plots import PlotData, common, crossover
from forward_influence.analysis.selections import read_selections
from forward_influence.errors import UsageError
from forward_influence.runs import Run, read_part

RULES = {
    "attention": Decay("power", 1.0, 0.9),
    "entropy": Decay("power", 0.12, 0.45),
    "position-matched:of=attention": Decay("power", 0.12, 0.6),
    "random": Decay("power", 0.1, 0.6),
}


@dataclass(frozen=True)
class Runs:
    """Simulated runs that the tests share."""

    plain: Run
    many: Run
    few: Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    selections = {"save_selections": True, "draws": 2, "layers": 3}
    return Runs(
        plain=simulate(folder / "plain", RULES, documents=6, draws=2),
        many=simulate(folder / "many", RULES, documents=8, **selections),
        few=simulate(folder / "few", RULES, documents=3, budgets=("0.1", "0.2"), floor=2e-3, **selections),
    )


def test_every_rule_of_a_run_has_a_style_of_its_own() -> None:
    names = ["attention", "entropy", "infokv", "random", "mine.py:Rule", "other.py:Rule"]
    names += [f"attention:window={2**k}" for k in range(7)]
    styles = style.rule_styles(names)
    assert len({(s.colour, s.marker) for s in styles.values()}) == len(names)
    assert styles["attention"] == style.rule_style("attention")
    assert all(styles[n].colour == styles["attention"].colour for n in names if n.startswith("attention:"))
    assert style.rule_styles(reversed(names)) == styles


def test_a_rule_looks_the_same_whatever_else_is_drawn(runs: Runs) -> None:
    whole = PlotData((runs.many,)).styles
    alone = PlotData((runs.many,), selectors=("entropy",)).styles
    assert whole == alone
    assert len({s.marker for s in style._KNOWN.values() if s.colour == style._GREY}) >= 2


def test_known_rules_differ_in_marker_and_line_within_a_colour() -> None:
    known = {n: s for n, s in style._KNOWN.items() if n != "position-matched:of=attention"}
    for (a, one), (b, other) in itertools.combinations(known.items(), 2):
        assert (one.colour, one.marker) != (other.colour, other.marker), (a, b)


def _overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes intersect by more than a pixel or two, and texts outside the figure."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = []
    for text in figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip()
        axes = text.axes
        if shown and (axes is None or axes.get_visible()):
            boxes.append((text.get_text(), text.get_window_extent(renderer), text.get_rotation()))
    found = []
    width, height = figure.canvas.get_width_height()
    for label, box, _ in boxes:
        if box.x0 < -2 or box.y0 < -2 or box.x1 > width + 2 or box.y1 > height + 2:
            found.append((label, "the edge"))
    for (a, one, turned), (b, other, also) in itertools.combinations(boxes, 2):
        wide = min(one.x1, other.x1) - max(one.x0, other.x0)
        high = min(one.y1, other.y1) - max(one.y0, other.y0)
        if wide > 2 and high > 2 and not (turned not in (0, 90) and also not in (0, 90)):
            found.append((a, b))
    return found


def _drawn_labels(figure: Figure) -> None:
    """Tick labels outside the axes' limits are never drawn: hide them, so that they are not counted."""
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    tick.label1.set_visible(False)


@pytest.mark.parametrize("name", [k.name for k in plots.KINDS.values() if k.reads == "run"])
@pytest.mark.parametrize("which", ["many", "few"])
def test_no_text_overlaps_or_leaves_the_picture(name: str, which: str, runs: Runs) -> None:
    before = dict(mpl.rcParams)
    figure = plots.draw(name, PlotData((getattr(runs, which),)))
    assert dict(mpl.rcParams) == before
    assert figure.get_figwidth() in (style.COLUMN_WIDTH, 2 * style.COLUMN_WIDTH)
    with style.house_style():
        figure.canvas.draw()
    _drawn_labels(figure)
    assert _overlapping(figure) == []


def test_legends_are_off_the_data(runs: Runs) -> None:
    for name in ("decay", "ratio", "nearfar", "crossover", "positions", "tokens"):
        figure = plots.draw(name, PlotData((runs.many,)))
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        (legend,) = figure.legends
        assert all(legend.get_window_extent(renderer).y0 >= a.get_window_extent().y1 - 1 for a in figure.axes), name
        assert [a for a in figure.axes if a.get_legend()] == []


def test_decay_draws_geometric_means_and_t_intervals(runs: Runs) -> None:
    figure = plots.draw("decay", PlotData((runs.plain,), width=256))
    (axes,) = figure.axes
    attention = next(line for line in axes.lines if line.get_marker() == "o")
    expected, low, high = [], [], []
    for start in range(0, 1024, 256):
        logs = []
        for document in runs.plain.documents:
            rows = read_part(runs.plain.part_path(document["part"]))
            (row,) = [r for r in rows if r["selector"] == "attention"]
            logs.append(np.log(np.mean(row["kl"][start : start + 256], dtype=np.float64)))
        half = stats.t.ppf(0.975, 5) * np.std(logs, ddof=1) / np.sqrt(6)
        expected.append(np.exp(np.mean(logs)))
        low.append(np.exp(np.mean(logs) - half))
        high.append(np.exp(np.mean(logs) + half))
    assert np.allclose(attention.get_xdata(), [128.5, 384.5, 640.5, 896.5])
    assert np.allclose(attention.get_ydata(), expected, rtol=1e-6)
    band = np.concatenate([c.get_paths()[0].vertices for c in axes.collections if len(c.get_paths())])
    assert all(np.isclose(band[:, 1], v, rtol=1e-6).any() for v in [*low, *high])


def test_no_bands_below_six_documents(runs: Runs) -> None:
    figure = plots.draw("ratio", PlotData((runs.few,), budget="0.2"))
    assert all(len(a.collections) == 0 for a in figure.axes)


def test_bins_under_the_noise_floor_are_hollow(runs: Runs) -> None:
    quiet = plots.draw("decay", PlotData((runs.plain,)))
    noisy = plots.draw("decay", PlotData((runs.few,), budget="0.1"))
    hollow = [
        sum(c.get_offsets().shape[0] for c in f.axes[0].collections if len(c.get_offsets())) for f in (quiet, noisy)
    ]
    assert hollow[0] <= 4  # bands have an offset each, markers of bins none here
    assert hollow[1] > 10
    assert "3× noise floor" in [t.get_text() for t in noisy.legends[0].get_texts()]


def test_nearfar_has_a_point_per_document(runs: Runs) -> None:
    (axes,) = plots.draw("nearfar", PlotData((runs.many,))).axes
    sizes = sorted(len(c.get_offsets()) for c in axes.collections)
    assert sizes == [1] * 4 + [8] * 4


def test_position_lift_of_a_toy() -> None:
    selection = np.zeros((2, 1, 8), dtype=bool)
    selection[0, 0, :2] = True
    selection[1, 0, ::2] = True
    assert position_lift(selection, 4).tolist() == [[4, 0, 0, 0], [1, 1, 1, 1]]


def test_layer_positions_average_documents(runs: Runs) -> None:
    maps = layer_positions(runs.many, 5)
    assert list(maps) == [(rule, "0.2", "drop") for rule in RULES]
    wanted = []
    for document in read_selections(runs.many, selectors=["entropy"]):
        (choice,) = document.choices
        context = document.contexts[0]
        inside = choice.selection[:, 0, context.first : context.stop]
        edges = [len(inside[0]) * k // 5 for k in range(6)]
        share = [inside[:, a:b].sum(1) / inside.sum(1) for a, b in itertools.pairwise(edges)]
        wanted.append([s / ((b - a) / edges[-1]) for s, (a, b) in zip(share, itertools.pairwise(edges), strict=True)])
    assert np.allclose(maps["entropy", "0.2", "drop"], np.mean(wanted, axis=0).T)


def _swept(folder: Path) -> Run:
    """A run whose layers were ablated one by one: layer k has k + 1 times the influence of layer 0."""
    source = simulate(folder / "source", {"attention": RULES["attention"]}, documents=2, layers=3)
    target = simulate(folder / "swept", {"attention": RULES["attention"]}, documents=2, layers=3, measured=0)
    for document in source.documents:
        rows = []
        for row in read_part(source.part_path(document["part"])):
            if row["kind"] != "condition":
                rows.append(row)
                continue
            rows += [{**row, "layers": np.array([k], dtype=np.int32), "kl": row["kl"] * (k + 1)} for k in range(3)]
        target.write_part(document["part"], rows, {})
    return target


def test_layers_ablated_one_by_one(tmp_path: Path) -> None:
    run = _swept(tmp_path)
    figure = plots.draw("layers", PlotData((run,)))
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert image.shape[0] == 3
    assert np.allclose(image[1] / image[0], 2, rtol=1e-5)
    assert np.allclose(image[2] / image[0], 3, rtol=1e-5)
    with pytest.raises(UsageError, match="--kind layers"):
        plots.draw("decay", PlotData((run,)))


def test_crossover_in_short() -> None:
    import pandas as pd

    def say(distance: float, low: float, high: float) -> str:
        return crossover.in_short(pd.DataFrame({"distance": [distance], "low": [low], "high": [high]}))

    inf, nan = float("inf"), float("nan")
    assert say(512.4, 300, 700) == "512 (300 to 700)"
    assert say(512.4, 300, inf) == "512 (from 300)"
    assert say(inf, 900, inf) == "none (from 900)"
    assert say(inf, inf, inf) == "none"
    assert say(0.0, 0, 0) == "throughout"
    assert say(512.4, nan, nan) == "512"
    assert say(nan, nan, nan) == "not known"


@pytest.mark.parametrize("ending", style.FORMATS)
def test_written_files_are_what_they_say_and_repeat(ending: str, runs: Runs, tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    contents = []
    for name in ("a", "b"):
        path = tmp_path / name / f"decay.{ending}"
        style.save(plots.draw("decay", PlotData((runs.plain,))), path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(starts[ending])
    assert contents[0] == contents[1]


def test_inline_svg_takes_the_pages_ink_and_owns_its_ids(runs: Runs) -> None:
    svg = style.inline_svg(plots.draw("decay", PlotData((runs.plain,))), "p1", "a &quot;picture&quot;")
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("decai", {}, "did you mean 'decay'"),
        ("overlap", {}, "--save-selections"),
        ("tokens", {}, "--save-selections"),
        ("positions", {}, "--save-selections"),
        ("layers", {}, "--save-selections or --per-layer"),
        ("decay", {"selectors": ("entropi",)}, "did you mean 'entropy'"),
        ("decay", {"budget": "0.3"}, "measured: 0.2"),
        ("ratio", {"baseline": "recent"}, "'recent' was not measured"),
        ("ratio", {"selectors": ("random",)}, "no rule beside the control"),
        ("crossover", {"selectors": ("random",)}, "needs two rules"),
    ],
)
def test_requests_that_cannot_be_met(name: str, options: dict[str, object], message: str, runs: Runs) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plots.draw(name, PlotData((runs.plain,), **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
