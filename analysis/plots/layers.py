"""Layer by layer, as heat maps: the influence of layers ablated one by one, or where each layer's selection lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from forward_influence.analysis import style
from forward_influence.analysis.layer_profile import POSITION_BINS, layer_influence, layer_positions
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.selections import has_selections, model_layers
from forward_influence.errors import UsageError


def draw(data: PlotData) -> Figure:
    """Influence (layers x distance) where layers were ablated one by one, else selections (layers x position).

    Raises:
        UsageError: neither a per-layer run nor saved selections.
    """
    sweep = data.sweep
    if not sweep.empty:
        return _influence(sweep)
    if not has_selections(data.run):
        raise UsageError(
            f"{data.run.folder} has neither selections nor layers ablated one by one; "
            "measure with --save-selections or --per-layer into a new --out"
        )
    return _selections(data)


def _influence(sweep: pd.DataFrame) -> Figure:
    tables: dict[str, pd.DataFrame] = {}
    for title, part in common.panels(sweep):
        for rule, table in layer_influence(part).items():
            tables[f"{rule}, {title}" if title else rule] = table
    values = np.concatenate([t.to_numpy().ravel() for t in tables.values()])
    positive = values[values > 0]
    norm: Normalize = LogNorm(positive.min(), positive.max()) if len(positive) else Normalize(0, 1)
    figure, axes, image = _maps({k: t.to_numpy() for k, t in tables.items()}, norm, "mako")
    for one, table in zip(axes, tables.values(), strict=True):
        starts = table.columns.to_numpy()
        picked = np.unique(np.linspace(0, len(starts) - 1, min(5, len(starts))).round().astype(int))
        one.xaxis.set_major_locator(FixedLocator([float(p) for p in picked]))
        one.set_xticklabels([common.plain_number(float(starts[p])) for p in picked])
        _layer_ticks(one, table.index.tolist())
    bar = figure.colorbar(image, ax=axes, location="top", aspect=40, shrink=0.8, label="mean KL (nats)")
    bar.ax.xaxis.set_major_formatter(FuncFormatter(common.plain_number))
    bar.outline.set_visible(False)
    common.finish(figure, axes, "distance from the context (tokens)", "layer")
    return figure


def _selections(data: PlotData) -> Figure:
    maps = layer_positions(data.run, selectors=data.selectors or None, budget=data.budget)
    if not maps:
        raise UsageError("no selections of that rule and budget were saved; leave one of them out")
    budgets, modes = ({key[i] for key in maps} for i in (1, 2))
    titled = {}
    for (rule, budget, mode), lift in maps.items():
        extra = [f"budget {budget}"] * (len(budgets) > 1) + [mode] * (len(modes) > 1)
        titled[", ".join([rule, *extra])] = lift
    top = max(2.0, float(np.nanquantile(np.concatenate([m.ravel() for m in maps.values()]), 0.995)))
    figure, axes, image = _maps(titled, Normalize(0, top), "mako_r")
    for one in axes:
        bins = next(iter(maps.values())).shape[1]
        one.xaxis.set_major_locator(FixedLocator([-0.5, bins / 2 - 0.5, bins - 0.5]))
        one.set_xticklabels(["0%", "50%", "100%"])
        labels = one.get_xticklabels()
        if labels:  # the outer labels must not run into those of the neighbouring panel
            labels[0].set_horizontalalignment("left")
            labels[-1].set_horizontalalignment("right")
        _layer_ticks(one, model_layers(data.run))
    bar = figure.colorbar(image, ax=axes, location="top", aspect=40, shrink=0.8, label="selected, × an even spread")
    bar.outline.set_visible(False)
    common.finish(figure, axes, f"position among the candidates ({POSITION_BINS} parts)", "layer")
    return figure


def _maps(tables: Mapping[str, np.ndarray], norm: Normalize, colours: str) -> tuple[Figure, list[Axes], Any]:
    count = len(tables)
    if count > common.MAX_PANELS:
        raise UsageError(f"{count} heat maps do not fit into a picture; choose rules with --selector or a --budget")
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = style.new_figure(style.COLUMN_WIDTH, rows * 1.35 + 0.75)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    image: Any = None
    for one, (title, values) in zip(axes, tables.items(), strict=False):
        image = one.imshow(values, aspect="auto", norm=norm, cmap=style.colour_map(colours), interpolation="nearest")
        one.set_title(common.shortened(title, 23), fontsize=7)
        one.grid(False)
    for unused in axes[count:]:
        unused.set_visible(False)
        axes[axes.index(unused) - columns].tick_params(labelbottom=True)
    return figure, axes[:count], image


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    picked = [int(v) for v in MaxNLocator(5, integer=True).tick_values(0, len(layers) - 1) if 0 <= v < len(layers)]
    axes.yaxis.set_major_locator(FixedLocator([float(p) for p in picked]))
    axes.set_yticklabels([str(layers[p]) for p in picked])
