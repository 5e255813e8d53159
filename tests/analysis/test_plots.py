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

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures import overlap
from forward_influence.analysis.measures.crossover import crossovers
from forward_influence.analysis.measures.layer_profile import layer_positions, position_lift
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots import registry as plots
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.kinds import crossover
from forward_influence.analysis.reading.selections import read_selections
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run, read_part

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
    other: Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    selections = {"save_selections": True, "draws": 2, "layers": 3}
    return Runs(
        plain=simulate(folder / "plain", RULES, documents=6, draws=2),
        many=simulate(folder / "many", RULES, documents=8, **selections),
        few=simulate(folder / "few", RULES, documents=3, budgets=("0.1", "0.2"), floor=2e-3, **selections),
        other=simulate(
            folder / "other", {n: RULES[n] for n in ("entropy", "random")}, documents=6, **{**selections, "layers": 5}
        ),
    )


def test_a_rule_looks_the_same_whatever_else_is_drawn(runs: Runs) -> None:
    whole = PlotData((runs.many,)).styles
    alone = PlotData((runs.many,), selectors=("entropy",)).styles
    assert whole == alone
    assert len({s.marker for s in style._KNOWN.values() if s.colour == style._GREY}) >= 2


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


@pytest.mark.parametrize("name", [k.name for k in plots.kinds().values() if k.reads == "run" and not k.needs_spans])
@pytest.mark.parametrize("which", ["many", "few", "many other"])
def test_no_text_overlaps_or_leaves_the_picture(name: str, which: str, runs: Runs) -> None:
    before = dict(mpl.rcParams)
    figure = plots.draw(name, PlotData(tuple(getattr(runs, one) for one in which.split())))
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
            (floor,) = [np.mean(r["kl"], dtype=np.float64) for r in rows if r["kind"] == "noise_floor"]
            logs.append(np.log(np.mean(row["kl"][start : start + 256], dtype=np.float64) - floor))
        half = stats.t.ppf(0.975, 5) * np.std(logs, ddof=1) / np.sqrt(6)
        expected.append(np.exp(np.mean(logs)))
        low.append(np.exp(np.mean(logs) - half))
        high.append(np.exp(np.mean(logs) + half))
    assert np.allclose(attention.get_xdata(), [128.5, 384.5, 640.5, 896.5])
    assert np.allclose(attention.get_ydata(), expected, rtol=1e-6)
    band = np.concatenate([c.get_paths()[0].vertices for c in axes.collections if len(c.get_paths())])
    assert all(np.isclose(band[:, 1], v, rtol=1e-6).any() for v in [*low, *high])


def test_no_bands_below_six_documents(runs: Runs) -> None:
    figure = plots.draw("ratio", PlotData((runs.few,), budgets=("0.2",)))
    assert all(len(a.collections) == 0 for a in figure.axes)


def test_bins_under_the_noise_floor_are_hollow(runs: Runs) -> None:
    """In every picture of influence, and the legend says so; pictures without such bins do not speak of them."""
    for kind in ("decay", "ratio", "crossover"):
        counts = []
        for run in (runs.plain, runs.few):
            figure = plots.draw(kind, PlotData((run,), budgets=("0.20",) if run is runs.few else ()))
            hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
            counts.append(sum(len(line.get_xdata()) for line in hollow))
            told = [t.get_text() for t in figure.legends[0].get_texts()]
            assert ("hollow: under 4× the noise floor" in told) == bool(counts[-1]), kind
        assert counts[0] == 0
        assert counts[1] > 8, kind
    assert "4× noise floor" in [t.get_text() for t in plots.draw("decay", PlotData((runs.few,))).legends[0].get_texts()]
    few = PlotData((runs.few,), budgets=("0.1",))
    expected = int(sum(common.per_bin(p)["flagged"].sum() for _, p in few.curves.groupby("selector")))
    lines = [x for x in plots.draw("decay", few).axes[0].lines if x.get_markerfacecolor() == "white"]
    assert sum(len(x.get_xdata()) for x in lines) == expected
    far = plots.draw("nearfar", few).axes[0]
    large = [c for c in far.collections if c.get_sizes()[0] > 50]
    assert [tuple(c.get_facecolor()[0][:3]) == (1, 1, 1) for c in large] == [True] * 4


def test_the_measured_means_are_bold_and_the_fit_is_thin(runs: Runs) -> None:
    (axes,) = plots.draw("decay", PlotData((runs.plain,))).axes
    measured = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    fitted = [line for line in axes.lines if line.get_marker() in ("None", "")]
    assert len(measured) == len(fitted) == 4
    assert min(x.get_linewidth() for x in measured) > 1.5 * max(x.get_linewidth() for x in fitted)


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
    image = np.asarray(figure.axes[0].collections[0].get_array()).reshape(3, -1)
    assert np.allclose(image[1] / image[0], 2, rtol=1e-3)  # what rounding adds is not multiplied
    assert np.allclose(image[2] / image[0], 3, rtol=1e-3)
    with pytest.raises(UsageError, match="`kind` layers"):
        plots.draw("decay", PlotData((run,)))


def test_crossover_in_short() -> None:
    import pandas as pd

    def say(distance: float, low: float, high: float) -> str:
        return crossover.in_short(pd.DataFrame({"distance": [distance], "low": [low], "high": [high]}))

    inf, nan = float("inf"), float("nan")
    assert say(512.4, 300, 700) == "from 512 (95%: 300 to 700)"
    assert say(512.4, 300, inf) == "from 512 (95%: after 300)"
    assert say(inf, 1900, inf) == "nowhere seen (95%: after 1,900)"
    assert say(inf, inf, inf) == "nowhere"
    assert say(inf, nan, nan) == "nowhere seen"
    assert say(0.0, 0, 0) == "throughout"
    assert say(512.4, nan, nan) == "from 512"
    assert say(nan, nan, nan) == "not known"


def test_intervals_of_crossovers_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    rules = {"attention": Decay("power", 1.0, 0.9)}
    rules |= {name: Decay("power", 0.1 + 0.02 * i, 0.5) for i, name in enumerate(("entropy", "infokv", "h2o", "tova"))}
    run = simulate(tmp_path / "run", {**rules, "random": Decay("power", 0.01, 1.2)}, documents=8)
    (axes,) = plots.draw("crossover", PlotData((run,))).axes
    strip = axes.get_xaxis_transform()
    bars = [line for line in axes.lines if line.get_transform() == strip and len(line.get_xdata()) == 2]
    assert len(bars) == 4  # random never overtakes attention, and is sure not to
    heights = [float(bar.get_ydata()[0]) for bar in bars]
    assert np.diff(sorted(heights)).min() > 0.03
    top = max(heights)
    drawn = [v for line in axes.lines if len(line.get_xdata()) > 2 for v in line.get_ydata()]
    lowest = axes.transAxes.inverted().transform(axes.transData.transform((1, min(drawn))))[1]
    assert top < lowest
    data = PlotData((run,))
    table = crossovers(data.fine_curves, [(rule, "attention") for rule in ("entropy", "infokv", "h2o", "tova")])
    bounds = sorted((float(b.get_xdata()[0]) - 1, float(b.get_xdata()[1]) - 1) for b in bars)
    assert np.allclose(bounds, sorted(zip(table["low"], table["high"], strict=True)))


def test_panels_above_an_empty_place_have_their_tick_labels(runs: Runs) -> None:
    figure = plots.draw("decay", PlotData((runs.plain, runs.many, runs.few)))
    figure.draw_without_rendering()
    shown = [a for a in figure.axes if a.get_visible()]
    assert len(shown) == 4
    three = common.grid(3, 2.0, columns=2)[1]
    assert [a.xaxis.get_tick_params()["labelbottom"] for a in three] == [False, True, True]


@pytest.mark.parametrize("kind", ["overlap", "positions", "tokens", "layers", "decay", "ratio", "nearfar", "crossover"])
def test_several_runs_get_panels_of_their_own(kind: str, runs: Runs) -> None:
    """Of two models with other rules and another depth."""
    figure = plots.draw(kind, PlotData((runs.many, runs.other)))
    titles = " ".join(a.get_title("left") for a in figure.axes)
    assert "many" in titles and "other" in titles


def test_overlap_shows_the_shares_of_each_layer(runs: Runs) -> None:
    upper, lower = plots.draw("overlap", PlotData((runs.many,))).axes
    frame = overlap.overlap(runs.many)
    pair = frame[(frame["rule_a"] == "attention") & (frame["rule_b"] == "entropy")]
    line = next(x for x in lower.lines if x.get_marker() == "s")
    assert np.allclose(line.get_ydata(), 100 * pair.groupby("layer")["shared"].mean())
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert f"{100 * pair['shared'].mean():.0f}" in [t.get_text() for t in upper.texts]
    assert not any(np.any(mesh.get_linewidths()) for mesh in upper.collections)  # they would frame what is masked
    other = plots.draw("overlap", PlotData((runs.many, runs.other)))
    assert len(other.axes[2].texts) == 1  # one pair there: nothing is said of rules it did not measure


def test_layers_are_drawn_as_vectors(runs: Runs, tmp_path: Path) -> None:
    style.save(plots.draw("layers", PlotData((runs.many,))), tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert text.count("<image") <= 1  # the colour bar
    figure = plots.draw("layers", PlotData((runs.many,)))
    assert [len(a.images) for a in figure.axes[:4]] == [0] * 4


def test_a_short_continuation_is_drawn_in_several_bins(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2, continuation=100)
    line = plots.draw("decay", PlotData((run,))).axes[0].lines[0]
    assert len(line.get_xdata()) == 13
    assert len(plots.draw("decay", PlotData((run,), width=50)).axes[0].lines[0].get_xdata()) == 2


def test_markers_at_nothing_are_whole_and_a_picture_fits_on_a_page(tmp_path: Path) -> None:
    rules = {f"attention:window={n}": Decay() for n in range(1, 13)}
    run = simulate(tmp_path / "run", rules, documents=2, layers=1, save_selections=True)
    figure = plots.draw("tokens", PlotData((run,)))
    assert figure.get_figheight() < 10
    assert figure.axes[0].get_xlim()[0] < 0


def test_intervals_follow_the_clusters_asked_for(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=12, authors=list("abcdef"), save_selections=True)
    for kind in ("decay", "positions"):
        bands = []
        for cluster in (None, "author"):
            axes = plots.draw(kind, PlotData((run,), cluster=cluster)).axes[0]
            bands.append(np.concatenate([c.get_paths()[0].vertices[:, 1] for c in axes.collections]))
        assert bands[0].shape == bands[1].shape
        assert not np.allclose(*bands)
    with pytest.raises(UsageError, match="has no 'author' to cluster by"):
        plots.draw("decay", PlotData((simulate(tmp_path / "bare", RULES, documents=2),), cluster="author"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("decai", {}, "did you mean 'decay'"),
        ("overlap", {}, "`save_selections`"),
        ("tokens", {}, "`save_selections`"),
        ("positions", {}, "`save_selections`"),
        ("layers", {}, "`save_selections` or `per_layer`"),
        ("decay", {"selectors": ("entropi",)}, "did you mean 'entropy'"),
        ("decay", {"budgets": ("0.3",)}, "measured: 0.2"),
        ("ratio", {"baseline": "recent"}, "'recent' was not measured"),
        ("ratio", {"selectors": ("random",)}, "no rule beside the control"),
        ("crossover", {"selectors": ("random",)}, "needs two rules, one was chosen; leave `selectors` out"),
        ("overlap", {"selectors": ("random",)}, "needs two rules with saved selections, one was chosen"),
    ],
)
def test_requests_that_cannot_be_met(name: str, options: dict[str, object], message: str, runs: Runs) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plots.draw(name, PlotData((runs.plain,), **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["crossover", "overlap"])
def test_a_run_of_one_rule_has_nothing_to_set_against(kind: str, tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", {"attention": Decay()}, documents=2, save_selections=True)
    with pytest.raises(UsageError, match=r"needs two rules.*one was measured"):
        plots.draw(kind, PlotData((run,)))


def test_rules_and_budgets_are_taken_as_typed(runs: Runs) -> None:
    data = PlotData((runs.few,), selectors=("entropy:per=entry", "attention:window=64"), budgets=("0.10",))
    assert data.wanted_rules == ["entropy", "attention"]
    assert set(data.curves["budget"]) == {"0.1"}
    assert set(data.curves["selector"]) == {"attention", "entropy"}


def _luminance(colour: object) -> float:
    """Relative luminance as WCAG 2 defines it."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_numbers_of_the_overlap_stand_out_from_their_cells(tmp_path: Path) -> None:
    """Also on the middling colours, on which neither white nor a dark grey does."""
    inks = set()
    for budget in ("0.1", "0.3", "0.4", "0.5", "0.6"):
        run = simulate(tmp_path / budget, RULES, documents=2, draws=2, budgets=(budget,), save_selections=True)
        upper = plots.draw("overlap", PlotData((run,))).axes[0]
        cells = upper.collections[0].get_facecolor()
        columns = len(upper.get_xticks())
        assert len(upper.texts) == 6
        for text in upper.texts:
            x, y = text.get_position()
            dark, light = sorted([_luminance(text.get_color()), _luminance(cells[int(y) * columns + int(x)])])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, text
            inks.add(text.get_color())
    assert len(inks) == 2
