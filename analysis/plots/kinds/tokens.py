"""What kind of token a rule selects, against the base rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.tokens import DIVISIONS
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture

_GAP = 0.35
#: Inches of a panel at most: what a column of a page holds beside a caption.
_TALLEST = 7.5


@picture(
    "What kind of token a rule selects, against the base rate; bars are 95% intervals.", needs_selections=True, place=80
)
def draw(data: PlotData) -> Figure:
    """A point per rule and group: how often it is selected over how often the candidates hold it, with 95% intervals.

    Groups that no candidate belongs to are left out.
    """
    profile = data.profile
    profile = profile[(profile["division"] != "position") & (profile["base"] > 0)]
    rules = profile["selector"].unique().tolist()
    entries = common.handles(rules, data.styles, line=False, labels=data.labels)
    parts = common.panels(profile)
    places = _places(profile)
    step = 0.07 + 0.05 * len(rules)
    height = min(max(places.values()) * step + 0.75, _TALLEST)
    columns = min(len(parts), 2)
    figure, axes = common.grid(len(parts), height, columns=columns, extra=common.legend_height(entries))
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        one.axvline(1, color=style.INK, linewidth=0.8, zorder=1)
        for k, rule in enumerate(rules):
            shift = (k - (len(rules) - 1) / 2) * 0.84 / max(len(rules), 2)
            _points(one, part[part["selector"] == rule], places, shift, data.styles[rule])
        one.set_yticks(list(places.values()), [group for _, group in places])
        one.set_ylim(max(places.values()) + 0.6, -0.6)
        one.grid(axis="y", visible=False)
        for place in places.values():
            one.axhspan(place - 0.47, place + 0.47, color=style.FAINT, alpha=0.08, linewidth=0, zorder=0)
    right = max(one.dataLim.x1 for one in axes) * 1.04
    axes[0].set_xlim(-0.02 * right, right)  # markers at 0 stay whole
    common.finish(figure, axes, "selected, × the base rate", "")
    common.legend_above(figure, entries)
    return figure


def _places(profile: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Where each (division, group) stands on the y axis, with a gap between divisions."""
    present = set(zip(profile["division"], profile["group"], strict=True))
    places: dict[tuple[str, str], float] = {}
    at = 0.0
    for division, groups in DIVISIONS.items():
        held = [g for g in groups if (division, g) in present]
        for group in held:
            places[division, group] = at
            at += 1
        at += _GAP if held else 0
    return places


def _points(
    axes: Axes, part: pd.DataFrame, places: dict[tuple[str, str], float], shift: float, look: style.RuleStyle
) -> None:
    y = np.array([places[d, g] for d, g in zip(part["division"], part["group"], strict=True)]) + shift
    axes.plot(
        part["lift"],
        y,
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.3,
        zorder=3,
    )
    known = part["low"].notna().to_numpy()
    low = part["low"].clip(lower=0)
    axes.hlines(y[known], low[known], part["high"][known], color=look.colour, linewidth=1.0, zorder=2)
