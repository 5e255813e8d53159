"""Shared by several kinds of pictures: panels, legends, estimates per bin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from forward_influence.analysis.formatting import style
from forward_influence.analysis.reading.matrix import matrix
from forward_influence.analysis.statistics.inference import STUDENT, Method, estimate
from forward_influence.errors import UsageError
from forward_influence.influence.noise_floor import FLAG_FACTOR

PANEL_COLUMNS = ["run", "budget", "mode", "effect"]
MAX_PANELS = 12


class TooManyPanels(UsageError):
    """What was asked for does not fit into one picture."""


def panels(frame: pd.DataFrame, columns: Sequence[str] = PANEL_COLUMNS) -> list[tuple[str, pd.DataFrame]]:
    """Parts of a frame that belong into a panel each, with a title that says only what differs between them.

    Columns that the frame does not have tell nothing apart.

    Raises:
        TooManyPanels: there are more than fit.
    """
    columns = [c for c in columns if c in frame.columns]
    varied = [c for c in columns if frame[c].nunique() > 1]
    if not varied:
        return [("", frame)]
    parts = [
        (", ".join(f"budget {v}" if c == "budget" else str(v) for c, v in zip(varied, values, strict=True)), part)
        for values, part in frame.groupby(varied, sort=False)
    ]
    if len(parts) > MAX_PANELS:
        raise TooManyPanels(
            f"{len(parts)} panels do not fit into a picture; choose one of the `budgets`, or fewer runs"
        )
    return parts


def grid(count: int, height: float, *, columns: int | None = None, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `height` inches that share their axes.

    Args:
        columns: each as wide as a column of text; by default one for up to three panels, then two.
        extra: inches kept for the legend above.
    """
    columns = (1 if count <= 3 else 2) if columns is None else columns
    rows = math.ceil(count / columns)
    figure = style.new_figure(style.COLUMN_WIDTH * columns, rows * height + extra)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    hide_unused(axes, count, columns)
    return figure, axes[:count]


def hide_unused(axes: Sequence[Axes], count: int, columns: int) -> None:
    """Hide the panels of a grid behind the first `count`; those above them get the tick labels of the x axis."""
    for place in range(count, len(axes)):
        axes[place].set_visible(False)
        axes[place - columns].tick_params(labelbottom=True)


def per_bin(frame: pd.DataFrame, *, clustered: bool = False, method: Method = STUDENT) -> pd.DataFrame:
    """Mean KL over documents of each bin of one rule, with its interval.

    Returns:
        Columns bin_low, bin_high, x (the bin's middle counted from 1, so that it exists on a log axis), value, low,
        high, flagged (under the noise-floor flag).
    """
    curve = matrix(frame)
    groups = curve.clusters if clustered else None
    rows = []
    for k, edges in enumerate(zip(curve.low, curve.high, strict=True)):
        made = estimate(curve.kl[:, k], groups, method=method)
        rows.append((*edges, sum(edges) / 2 + 0.5, made.value, made.low, made.high, curve.below_floor[k]))
    return pd.DataFrame(rows, columns=["bin_low", "bin_high", "x", "value", "low", "high", "flagged"])


def ratio_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `controls.controls` of one rule as a table for `rule_line`: columns x, value, low, high, flagged."""
    x = (rows["low"] + rows["high"]) / 2 + 0.5
    values = {"value": rows["ratio"], "low": rows["ratio_low"], "high": rows["ratio_high"], "flagged": rows["flagged"]}
    return pd.DataFrame({"x": x, **values}).sort_values("x")


def rule_line(axes: Axes, table: pd.DataFrame, look: style.RuleStyle) -> None:
    """Draw a rule's values against x with an interval band.

    Markers are thinned out where bins crowd; those of flagged bins are hollow, every one of them.

    Args:
        table: columns x, value, low, high, and flagged where bins can be.
    """
    # A float spaces markers evenly along the line as drawn, whatever the axis.
    every = 0.08 if len(table) > 14 else 1
    axes.plot(
        table["x"],
        table["value"],
        color=look.colour,
        marker=look.marker,
        markevery=every,
        linestyle=look.line,
        linewidth=1.3,
        markeredgecolor="white",
        markeredgewidth=0.4,
        zorder=3,
    )
    if table["low"].notna().any():
        axes.fill_between(table["x"], table["low"], table["high"], color=look.colour, alpha=0.17, linewidth=0, zorder=1)
    if "flagged" in table and table["flagged"].any():
        flagged = table[table["flagged"]]
        axes.plot(flagged["x"], flagged["value"], color=look.colour, marker=look.marker, **HOLLOW)


#: How a marker is drawn whose value is under the noise-floor flag.
HOLLOW: dict[str, Any] = {
    "linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 0.8, "markersize": 4, "zorder": 5
}  # fmt: skip


def flag_entry(flagged: bool) -> list[Line2D]:
    """The legend entry that says what hollow markers are, where there are any."""
    label = f"hollow: under {FLAG_FACTOR:g}× the noise floor"
    return [Line2D([], [], color=style.INK, marker="o", label=label, **HOLLOW)] if flagged else []


def handles(
    rules: Iterable[str],
    styles: Mapping[str, style.RuleStyle],
    *,
    line: bool = True,
    labels: Mapping[str, str] | None = None,
) -> list[Line2D]:
    """Legend entries of rules.

    Args:
        labels: what each is called in the legend; its name without.
    """
    return [
        Line2D(
            [],
            [],
            color=styles[rule].colour,
            marker=styles[rule].marker,
            linestyle=styles[rule].line if line else "none",
            markeredgecolor="white",
            markeredgewidth=0.4,
            markersize=5,
            label=rule if labels is None else labels.get(rule, rule),
        )
        for rule in rules
    ]


def _columns(entries: Sequence[Line2D], width: float) -> int:
    """How many legend columns fit into `width` inches; a column is as wide as its longest label."""
    widths = np.array([0.46 + 0.053 * len(str(e.get_label())) for e in entries])
    fitting = [
        n for n in range(1, min(len(entries), 4) + 1) if sum(p.max() for p in np.array_split(widths, n)) <= width
    ]
    return max(fitting, default=1)


def legend_height(entries: Sequence[Line2D], width: float = style.COLUMN_WIDTH) -> float:
    """Inches that the legend needs above the panels."""
    return 0.1 + 0.145 * math.ceil(len(entries) / _columns(entries, width))


def legend_above(figure: Figure, entries: Sequence[Line2D]) -> None:
    """A legend over the panels, off the data."""
    figure.legend(
        handles=list(entries),
        loc="outside upper left",
        ncols=_columns(entries, figure.get_figwidth()),
        handlelength=2.6,
        columnspacing=1.0,
        borderaxespad=0.2,
        borderpad=0.1,
        labelspacing=0.3,
    )


def plain_number(value: float, _: Any = None) -> str:
    """A tick label without exponents where it is short: 0.01, 1, 128, 2k, 14k; 1e-5 below 0.001."""
    if value <= 0:
        return "0" if value == 0 else f"{value:g}"
    if value >= 10_000 or (value >= 1000 and value % 1000 == 0):
        return f"{value / 1000:g}k"
    if value < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}"


def shortened(texts: Sequence[str], most: int) -> list[str]:
    """Texts of at most `most` characters, the middle left out of longer ones; longer where two would look the same."""

    def short(text: str, most: int) -> str:
        keep = most - 1
        return text if len(text) <= most else f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"

    while len({short(text, most) for text in texts}) < len(set(texts)):
        most += 1
    return [short(text, most) for text in texts]


def distance_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis of distance, ticks at powers of two that are few enough to read."""
    axes.set_xscale("log", base=2)
    span = math.log2(max(high / max(low, 1), 2))
    step = 1 if span <= 6 else 2
    axes.xaxis.set_major_locator(LogLocator(base=2.0**step, numticks=12))
    axes.xaxis.set_minor_locator(LogLocator(base=2.0, numticks=24))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low / 1.12, high * 1.12)


def log_values(axes: Axes, values: Iterable[float], axis: Literal["x", "y"] = "y") -> None:
    """A log axis around the positive values given, with readable ticks even within one decade."""
    positive = np.array([v for v in values if np.isfinite(v) and v > 0])
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    if not len(positive):
        return
    low, high = float(positive.min() / 1.25), float(positive.max() * 1.25)
    (axes.set_xlim if axis == "x" else axes.set_ylim)(low, high)
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_locator(LogLocator(base=10, subs=subs, numticks=15))
    which.set_major_formatter(FuncFormatter(plain_number))
    which.set_minor_formatter(NullFormatter())


def finish(figure: Figure, axes: Sequence[Axes], x: str, y: str) -> None:
    """Axis labels once per figure."""
    if len(axes) == 1:  # a label of the figure would be centred on the legend too
        axes[0].set_xlabel(x)
        axes[0].set_ylabel(y)
        return
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
