"""Where one rule's influence overtakes another's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from forward_influence.analysis import style
from forward_influence.analysis.controls import controls
from forward_influence.analysis.crossover import crossovers
from forward_influence.analysis.findings import is_control
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.errors import UsageError

#: What other rules are held against where it was measured: the paper's claim is about it.
REFERENCE = "attention"
#: More lines than these cannot be told apart; controls give way first.
MOST = 8


def reference(data: PlotData) -> str:
    """The rule that the others are held against: the second of two asked for, attention, or the first measured."""
    rules = data.curves["selector"].unique().tolist()
    if len(data.selectors) == 2:
        return data.selectors[1]
    return REFERENCE if REFERENCE in rules else rules[0]


def draw(data: PlotData) -> Figure:
    """Ratio of each rule's influence to the reference's in log-spaced bins; a bar at 1 marks the crossover.

    Raises:
        UsageError: fewer than two rules.
    """
    frame = data.log_curves
    against = reference(data)
    others = sorted((r for r in frame["selector"].unique() if r != against), key=is_control)
    rules = others[:MOST]
    if not rules:
        raise UsageError("a crossover needs two rules, one was chosen; leave --selector out or give two")
    found = crossovers(frame, [(rule, against) for rule in rules])
    parts = common.panels(frame)
    entries = common.handles(rules, data.styles)
    if len(parts) == 1:
        for entry, rule in zip(entries, rules, strict=True):
            entry.set_label(f"{rule}: {in_short(found[found['rule'] == rule])}")
    figure, axes = common.grid(len(parts), 2.05, extra=common.legend_height(entries))
    values: list[float] = [1.0]
    for one, (title, part) in zip(axes, parts, strict=True):
        left_out = f"{MOST} of {len(others)} rules" if len(others) > MOST else ""
        one.set_title(", ".join(filter(None, [title, left_out])))
        one.axhline(1, color=style.INK, linewidth=0.8, zorder=0)
        other = part[part["selector"] == against]
        here = found
        for column in common.PANEL_COLUMNS:
            here = here[here[column] == part[column].iloc[0]] if part[column].nunique() == 1 else here
        for rule in rules:
            pair = pd.concat([part[part["selector"] == rule], other])
            table = common.ratio_table(ratios_to(pair, against))
            common.rule_line(one, table, data.styles[rule])
            values += [*table["value"], *table["low"], *table["high"]]
            _mark(one, here[here["rule"] == rule], data.styles[rule], float(frame["high"].max()))
    for one in axes:
        common.distance_axis(one, float(frame["low"].min() + frame["high"].min()) / 2 + 0.5, float(frame["high"].max()))
        common.log_values(one, values)
    common.finish(figure, axes, "distance from the context (tokens)", f"influence ÷ {against}'s")
    common.legend_above(figure, entries)
    return figure


def ratios_to(pair: pd.DataFrame, against: str) -> pd.DataFrame:
    """Per-bin ratios of the other rule of a pair to `against`."""
    ratios = controls(pair, against)
    return ratios[(ratios["control"] == against) & (ratios["control_selector"] == against)]


def in_short(rows: pd.DataFrame) -> str:
    """A crossover in a few characters: "92 (70 to 119)", "none (from 1439)", "throughout"."""
    if rows.empty or np.isnan(rows["distance"].iloc[0]):
        return "not known"
    at, low, high = (float(rows[c].iloc[0]) for c in ("distance", "low", "high"))
    text = "none" if np.isinf(at) else "throughout" if at == 0 else f"{at:.0f}"
    if np.isnan(low) or low == high:
        return text
    if np.isinf(low):
        return text
    return f"{text} (from {low:.0f})" if np.isinf(high) else f"{text} ({low:.0f} to {high:.0f})"


def _mark(axes: Axes, rows: pd.DataFrame, look: style.RuleStyle, end: float) -> None:
    """The crossover on the line at 1, where it is within the range, and its interval cut off at the range's end."""
    for row in rows.itertuples():
        if not np.isfinite(row.distance) or row.distance <= 0:
            continue
        if np.isfinite(row.low):
            high = min(row.high, end) + 1
            axes.plot([row.low + 1, high], [1, 1], color=look.colour, linewidth=3.2, alpha=0.55, zorder=5)
        edges: dict[str, Any] = {"markeredgecolor": style.INK, "markeredgewidth": 0.8}
        axes.plot(row.distance + 1, 1, marker=look.marker, color=look.colour, markersize=6.5, zorder=6, **edges)
