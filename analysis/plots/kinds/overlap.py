"""How much of the budget rules share: over all layers as a heat map, and layer by layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from seaborn.utils import relative_luminance

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.overlap import overlap_matrix, overlap_summary
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.kinds.crossover import reference
from forward_influence.analysis.plots.registry import picture
from forward_influence.errors import UsageError

#: Inches of a panel that shows layers.
_LAYERS = 1.75
#: Of numbers on cells: one of the two has a contrast of at least 4.5 to any colour. Not the style's ink, which turns
#: light on a dark page where cells do not; nor pure black, which SVG leaves to the page.
_INKS = ("#010101", "#ffffff")


@picture(
    "Share of the budget that each pair of rules has in common, over all layers and layer by layer; the line "
    "without markers is what chance alone would give.",
    needs_selections=True,
    place=50,
)
def draw(data: PlotData) -> Figure:
    """Above, for every pair, percent of the budget in common, mean over layers and documents; the title has chance's.

    Below, each rule with the reference (attention, where it was measured), layer by layer; bands are 95% intervals,
    the line without markers is what independent choices would share.

    Raises:
        UsageError: no selections, or fewer than two rules.
    """
    if len(data.wanted_rules) < 2:
        which = "was measured" if len(data.rules) < 2 else "was chosen; leave `selectors` out or give two"
        raise UsageError(f"an overlap needs two rules with saved selections, one {which}")
    frame = data.overlap
    parts = common.panels(frame)
    rules = _rules(frame)
    against = reference(data)
    others = [rule for rule in rules if rule != against]
    entries = common.handles(others, data.styles, labels=data.labels)
    cells, cell = _cells(rules)
    columns = 1 if len(parts) == 1 else 2
    rows = math.ceil(len(parts) / columns)
    height = rows * (cells + _LAYERS) + common.legend_height(entries, columns * style.COLUMN_WIDTH)
    figure = style.new_figure(columns * style.COLUMN_WIDTH, height)
    # figures of their own: long names beside the map would narrow the panel under it
    places = figure.subfigures(2 * rows, columns, squeeze=False, height_ratios=[cells, _LAYERS] * rows)
    for place, (title, part) in enumerate(parts):
        row, column = 2 * (place // columns), place % columns
        _pairs(places[row, column].subplots(), title, part, cell)
        reference_here = against if against in _rules(part) else _rules(part)[0]
        _layers(places[row + 1, column].subplots(), part, reference_here, data)
    common.legend_above(figure, entries)
    return figure


def _rules(frame: pd.DataFrame) -> list[str]:
    """The rules of a frame of pairs, in the order measured."""
    return list(dict.fromkeys([*frame["rule_a"], *frame["rule_b"]]))


def _cells(rules: list[str]) -> tuple[float, float]:
    """Height of a heat map of rules and of a cell of it, in inches."""
    shown = common.shortened(rules, 24)
    margin = 0.3 + 0.056 * max(map(len, shown[1:]))
    cell = min(0.42, (style.COLUMN_WIDTH - margin) / (len(rules) - 1))
    return cell * (len(rules) - 1) + 0.65 + 0.035 * max(map(len, shown[:-1])), cell


def _pairs(axes: Axes, title: str, part: pd.DataFrame, cell: float) -> None:
    rules = _rules(part)
    shown = common.shortened(rules, 24)
    matrix = overlap_matrix(part, "shared", rules).iloc[1:, :-1] * 100
    above = np.triu(np.ones(matrix.shape, dtype=bool), 1) | matrix.isna().to_numpy()
    looks: dict[str, Any] = {"cmap": "mako_r", "vmin": 0, "vmax": 100, "square": True, "cbar": False}
    looks |= {"annot": True, "fmt": ".0f", "annot_kws": {"fontsize": 7 if cell > 0.25 else 5.5}}
    # lines around cells would be drawn around masked ones too, white on a dark page
    sns.heatmap(matrix, mask=above, ax=axes, linewidths=0, xticklabels=shown[:-1], yticklabels=shown[1:], **looks)
    _readable(axes, matrix.shape[1])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    chance = part["chance"].mean() * 100
    lead = "\n" if title else ""
    axes.set_title(f"{title}{lead}budget shared, % (by chance {chance:.0f})", fontsize=7.5)
    axes.set_xticks(axes.get_xticks(), shown[:-1], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(axes.get_yticks(), shown[1:], rotation=0)
    axes.tick_params(length=0)


def _readable(axes: Axes, columns: int) -> None:
    """Give each number of a heat map of so many columns the ink that stands out more from its cell."""
    cells = axes.collections[0].get_facecolor()
    for text in axes.texts:
        x, y = text.get_position()
        contrasts = {_contrast(ink, cells[int(y) * columns + int(x)]): ink for ink in _INKS}
        text.set_color(contrasts[max(contrasts)])


def _contrast(one: Any, other: Any) -> float:
    """The contrast ratio of two colours as WCAG defines it, 1 to 21."""
    dark, light = sorted(float(relative_luminance(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _layers(axes: Axes, part: pd.DataFrame, against: str, data: PlotData) -> None:
    mine = part[(part["rule_a"] == against) | (part["rule_b"] == against)]
    summary = overlap_summary(mine, by_layer=True, **data.inference)
    for (a, b), pair in summary.groupby(["rule_a", "rule_b"], sort=False):
        percent = {new: 100 * pair[old] for new, old in _COLUMNS.items()}
        table = pd.DataFrame({"x": pair["layer"], **percent}).sort_values("x")
        common.rule_line(axes, table, data.styles[b if a == against else a])
    chance = 100 * summary.groupby("layer")["chance"].mean()
    axes.plot(chance.index, chance, color=style.INK, linewidth=0.8, zorder=0)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(f"with {against}, layer by layer", fontsize=7.5)
    axes.set_xlabel("layer")
    axes.set_ylabel("budget shared, %")


_COLUMNS = {"value": "shared", "low": "shared_low", "high": "shared_high"}
