"""Layer by layer, as heat maps: the influence of layers ablated one by one, or where each layer's selection lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.layer_profile import POSITION_BINS, layer_influence, layer_positions
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.selections import model_layers
from forward_influence.errors import UsageError


@dataclass(frozen=True)
class _Map:
    """One heat map: values (layers, columns), the model's index of each layer, and what the panel is about."""

    rule: str
    about: str
    values: np.ndarray
    layers: list[int]


@picture("Layer by layer: where in the context each rule selects, or each layer's influence.", place=60)
def draw(data: PlotData) -> Figure:
    """Influence (layers x distance) where layers were ablated one by one, else selections (layers x position).

    Raises:
        UsageError: neither a per-layer run nor saved selections.
    """
    if not data.sweep.empty:
        return _influence(data.sweep)
    if not data.selecting:
        raise UsageError(
            f"{data.runs[0].where} has neither selections nor layers ablated one by one; "
            "measure with `save_selections` or `per_layer` into a new `out`"
        )
    return _selections(data)


def _influence(sweep: pd.DataFrame) -> Figure:
    maps: list[_Map] = []
    starts: list[np.ndarray] = []
    for title, part in common.panels(sweep):
        for rule, table in layer_influence(part).items():
            maps.append(_Map(rule, title, table.to_numpy(), table.index.tolist()))
            starts.append(table.columns.to_numpy())
    values = np.concatenate([m.values.ravel() for m in maps])
    positive = values[values > 0]
    norm: Normalize = LogNorm(positive.min(), positive.max()) if len(positive) else Normalize(0, 1)
    figure, axes, image = _maps(maps, norm, "mako")
    for one, low in zip(axes, starts, strict=True):
        picked = range(0, len(low), math.ceil(len(low) / 5))
        one.xaxis.set_major_locator(FixedLocator([float(p) + 0.5 for p in picked]))
        one.set_xticklabels([common.plain_number(float(low[p])) for p in picked])
    bar = figure.colorbar(image, ax=axes, location="top", aspect=40, shrink=0.8, label="mean KL (nats)")
    bar.ax.xaxis.set_major_formatter(FuncFormatter(common.plain_number))
    bar.outline.set_visible(False)
    common.finish(figure, axes, "distance from the context (tokens)", "layer")
    return figure


def _selections(data: PlotData) -> Figure:
    found = [
        (run, label, key, lift)
        for label, run in data.selecting.items()
        for key, lift in layer_positions(run, selectors=data.wanted_rules, budgets=data.wanted_budgets).items()
    ]
    if not found:
        raise UsageError("no selections of that rule and budget were saved; leave one of them out")
    several = [len({label for _, label, _, _ in found}), *(len({key[i] for *_, key, _ in found}) for i in (1, 2))]
    maps = []
    for run, label, (rule, budget, mode), lift in found:
        about = [label] * (several[0] > 1) + [f"budget {budget}"] * (several[1] > 1) + [mode] * (several[2] > 1)
        maps.append(_Map(rule, ", ".join(about), lift, model_layers(run)))
    top = max(2.0, float(np.nanquantile(np.concatenate([m.values.ravel() for m in maps]), 0.995)))
    figure, axes, image = _maps(maps, Normalize(0, top), "mako_r")
    for one, drawn in zip(axes, maps, strict=True):
        bins = drawn.values.shape[1]
        one.xaxis.set_major_locator(FixedLocator([0, bins / 2, bins]))
        one.set_xticklabels(["0%", "50%", "100%"])
        labels = one.get_xticklabels()
        if labels:  # the outer labels must not run into those of the neighbouring panel
            labels[0].set_horizontalalignment("left")
            labels[-1].set_horizontalalignment("right")
    bar = figure.colorbar(image, ax=axes, location="top", aspect=40, shrink=0.8, label="selected, × an even spread")
    bar.outline.set_visible(False)
    common.finish(figure, axes, f"position among the candidates ({POSITION_BINS} parts)", "layer")
    return figure


def _maps(maps: list[_Map], norm: Normalize, colours: str) -> tuple[Figure, list[Axes], Any]:
    count = len(maps)
    if count > common.MAX_PANELS:
        raise common.TooManyPanels(
            f"{count} heat maps do not fit into a picture; choose rules with `selectors` or one of the `budgets`"
        )
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    lines = 1.35 + 0.12 * any(m.about for m in maps)
    figure = style.new_figure(style.COLUMN_WIDTH, rows * lines + 0.75)
    alike = all(m.layers == maps[0].layers for m in maps)  # models of different depth have scales of their own
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=alike).flat)
    shown = common.shortened([m.rule for m in maps], 23)
    image: Any = None
    for one, drawn, rule in zip(axes, maps, shown, strict=False):
        # edges in the colour of the cells: without them a page shows through in hairlines between the cells
        edges: dict[str, Any] = {"edgecolors": "face", "linewidth": 0.4}
        image = one.pcolormesh(drawn.values, norm=norm, cmap=style.colour_map(colours), **edges)
        one.set_ylim(len(drawn.layers), 0)
        one.set_xlim(0, drawn.values.shape[1])
        one.set_title(f"{rule}\n{drawn.about}" if drawn.about else rule, fontsize=7)
        one.grid(False)
        _layer_ticks(one, drawn.layers)
    common.hide_unused(axes, count, columns)
    return figure, axes[:count], image


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    picked = [int(v) for v in MaxNLocator(5, integer=True).tick_values(0, len(layers) - 1) if 0 <= v < len(layers)]
    axes.yaxis.set_major_locator(FixedLocator([p + 0.5 for p in picked]))
    axes.set_yticklabels([str(layers[p]) for p in picked])
