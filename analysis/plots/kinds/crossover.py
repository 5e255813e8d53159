"""Where one rule's influence overtakes another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from forward_influence.analysis.formatting import style
from forward_influence.analysis.formatting.wording import tokens
from forward_influence.analysis.measures.controls import controls
from forward_influence.analysis.measures.crossover import REFERENCE, bounds_text, crossovers
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.pairing import is_control
from forward_influence.errors import UsageError

#: More lines than these cannot be told apart; controls give way first.
MOST = 8
#: Height of an interval's row under the curves, as a part of the panel.
_ROW = 0.045


def reference(data: PlotData) -> str:
    """The rule that the others are held against: the second of two asked for, attention, or the first measured."""
    rules = data.wanted_rules
    if len(data.selectors) == 2:
        return rules[-1]
    return REFERENCE if REFERENCE in rules else rules[0]


@picture(
    "Where one rule's influence overtakes another's: a large marker where it does so for good, and in the "
    "strip below a bar for the 95% interval wherever that does not rule a crossover out.",
    place=40,
)
def draw(data: PlotData) -> Figure:
    """Ratio of each rule's influence to the reference's in log-spaced bins.

    A large marker on the line at 1 is a crossover within the range, a bar under the curves its 95% interval. Hollow
    markers are bins in which one of the two rules is under the noise-floor flag.

    Raises:
        UsageError: fewer than two rules.
    """
    if len(data.wanted_rules) < 2:
        which = "was measured" if len(data.rules) < 2 else "was chosen; leave `selectors` out or give two"
        raise UsageError(f"a crossover needs two rules, one {which}")
    frame = data.log_curves
    against = reference(data)
    others = sorted((r for r in data.wanted_rules if r != against), key=is_control)
    rules = others[:MOST]
    pairs, level = [(rule, against) for rule in rules], data.inference["method"].level
    found = crossovers(data.fine_curves, pairs, clustered=data.cluster is not None, level=level)
    parts = common.panels(frame)
    ratios = [{rule: _table(part, rule, against, data) for rule in rules} for _, part in parts]
    entries = common.handles(rules, data.styles, labels=data.labels)
    if len(parts) == 1:
        for entry, rule in zip(entries, rules, strict=True):
            entry.set_label(f"{data.labels.get(rule, rule)}: {in_short(found[found['rule'] == rule])}")
    entries += common.flag_entry(any(bool(t["flagged"].any()) for of_part in ratios for t in of_part.values()))
    bars = [rule for rule in rules if _has_interval(found[found["rule"] == rule])]
    figure, axes = common.grid(len(parts), 2.05 + 0.06 * len(bars), extra=common.legend_height(entries))
    values = [1.0]
    for of_part in ratios:
        for table in of_part.values():
            values += [*table["value"], *table["low"], *table["high"]]
    end = float(frame["high"].max())
    for one, (title, part), of_part in zip(axes, parts, ratios, strict=True):
        left_out = f"{MOST} of {len(others)} rules" if len(others) > MOST else ""
        one.set_title(", ".join(filter(None, [title, left_out])))
        one.axhline(1, color=style.INK, linewidth=0.8, zorder=0)
        here = found
        for column in common.PANEL_COLUMNS:
            here = here[here[column] == part[column].iloc[0]] if part[column].nunique() == 1 else here
        for rule, table in of_part.items():
            common.rule_line(one, table, data.styles[rule])
            _mark(one, here[here["rule"] == rule], data.styles[rule])
        for row, rule in enumerate(bars):
            _bar(one, here[here["rule"] == rule], data.styles[rule], (row + 0.7) * _ROW, end)
    for one in axes:
        common.distance_axis(one, float(frame["low"].min() + frame["high"].min()) / 2 + 0.5, end)
        common.log_values(one, values)
        _make_room(one, len(bars))
    common.finish(figure, axes, "distance from the context (tokens)", f"influence ÷ {data.whose(against)}")
    common.legend_above(figure, entries)
    return figure


def _table(part: pd.DataFrame, rule: str, against: str, data: PlotData) -> pd.DataFrame:
    """Ratios of one rule to the reference per bin, for `common.rule_line`; without rows where one was not measured."""
    ratios = controls(part[part["selector"].isin([rule, against])], against, **data.inference)
    mine = (ratios["control"] == against) & (ratios["control_selector"] == against) & (ratios["selector"] == rule)
    return common.ratio_table(ratios[mine])


def in_short(rows: pd.DataFrame) -> str:
    """A crossover in a few words: "from 92 (95%: 70 to 119)", "nowhere seen (95%: after 1,439)", "throughout"."""
    if rows.empty or np.isnan(rows["distance"].iloc[0]):
        return "not known"
    at, low, high = (float(rows[c].iloc[0]) for c in ("distance", "low", "high"))
    bounds = bounds_text(low, high)
    nowhere = "nowhere" if np.isinf(low) else "nowhere seen"
    text = nowhere if np.isinf(at) else "throughout" if at == 0 else f"from {tokens(at)}"
    return f"{text} (95%: {bounds})" if bounds else text


def _has_interval(rows: pd.DataFrame) -> bool:
    """Whether some panel has an interval to draw: one with a bound inside the range."""
    return bool((np.isfinite(rows["low"]) & (rows["low"] < rows["high"])).any())


def _mark(axes: Axes, rows: pd.DataFrame, look: style.RuleStyle) -> None:
    """The crossover on the line at 1, where it is within the range."""
    edges: dict[str, Any] = {"markeredgecolor": style.INK, "markeredgewidth": 0.8, "markersize": 6.5, "zorder": 6}
    for distance in rows["distance"]:
        if np.isfinite(distance) and distance > 0:
            axes.plot(distance + 1, 1, marker=look.marker, color=look.colour, **edges)


def _bar(axes: Axes, rows: pd.DataFrame, look: style.RuleStyle, height: float, end: float) -> None:
    """The crossover's interval in a row under the curves, cut off at the range's end."""
    for row in rows.itertuples():
        if not (np.isfinite(row.low) and row.low < row.high):
            continue
        ends: Sequence[float] = (row.low + 1, min(row.high, end) + 1)
        where: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": look.colour, "zorder": 4}
        axes.plot(ends, [height, height], linewidth=2.4, solid_capstyle="butt", **where)
        if np.isfinite(row.distance):
            axes.plot([row.distance + 1], [height], marker=look.marker, markersize=3.2, **where)


def _make_room(axes: Axes, rows: int) -> None:
    """Lower the bottom of a log axis so that so many rows of intervals fit under the curves; it has no ticks there."""
    if not rows:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(high / (high / low) ** (1 / (1 - _ROW * (rows + 0.4))), high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: common.plain_number(v) if v >= low else ""))
