"""Influence on each measured span: a point per rule with its interval, small ones for documents."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forward_influence.analysis.measures.spans import span_curves, span_names
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.matrix import matrix
from forward_influence.analysis.statistics.inference import estimate

_HEIGHT = 0.24
_MARGINS = 0.7


@picture(
    "Influence on each measured span: means with 95% intervals, and a small point per document.",
    needs_spans=True,
    place=25,
)
def draw(data: PlotData) -> Figure:
    """A panel per run, budget, mode, effect and span; rules downwards, mean KL across on a log axis.

    Large points are geometric means over documents with 95% intervals, small ones documents; hollow ones are under the
    noise-floor flag.
    """
    frame = span_curves(data.runs, data.cluster)
    rules = [rule for rule in frame["selector"].unique() if rule in data.wanted_rules]
    frame = frame[frame["selector"].isin(rules) & frame["budget"].isin(data.wanted_budgets)]
    several = len(span_names(data.runs)) > 1
    parts = common.panels(frame, [*common.PANEL_COLUMNS, *(["span"] if several else [])])
    figure, axes = common.grid(len(parts), _MARGINS + _HEIGHT * len(rules))
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        for place, rule in enumerate(rules):
            rows = part[part["selector"] == rule]
            if not rows.empty:
                _rule(one, place, rows, data)
        one.set_xscale("log")
        one.set_yticks(range(len(rules)), [data.labels.get(rule, rule) for rule in rules])
        one.set_ylim(len(rules) - 0.4, -0.6)
    spans = " and ".join(span_names(data.runs))
    common.finish(figure, axes, f"mean KL on {spans} (nats)", "")
    return figure


def _rule(axes: Axes, place: int, rows: pd.DataFrame, data: PlotData) -> None:
    curve, look = matrix(rows), data.styles[str(rows["selector"].iloc[0])]
    values = curve.kl[:, 0]
    made = estimate(values, curve.clusters if data.cluster is not None else None, method=data.inference["method"])
    shown = values[values > 0]
    axes.plot(shown, np.full(len(shown), place), ".", color=look.colour, alpha=0.35, markersize=3, zorder=2)
    if not made.value > 0:
        return
    if made.low > 0:
        axes.plot([made.low, made.high], [place, place], color=look.colour, linewidth=1.6, zorder=3)
    hollow = bool(curve.below_floor[0])
    face = "white" if hollow else look.colour
    axes.plot([made.value], [place], look.marker, color=look.colour, markerfacecolor=face, markersize=6, zorder=4)
