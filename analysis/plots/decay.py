"""Mean KL against distance: the measured bins, with the fitted law as a thin line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from forward_influence.analysis import decay, style
from forward_influence.analysis.matrix import FLAG_FACTOR
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData

_FIT: dict[str, Any] = {"linewidth": 0.7, "linestyle": "-", "alpha": 0.9}


def draw(data: PlotData) -> Figure:
    """One panel per run, budget, mode and effect; log axes; bands are 95% intervals over documents.

    The thin line is the law chosen by AIC, averaged over the bins drawn, where one could be fitted. Hollow markers are
    bins under the noise-floor flag.
    """
    frame = data.curves
    fits = decay.fit_decay(data.log_curves, **data.inference).set_index([*common.PANEL_COLUMNS, "selector"])
    parts = common.panels(frame)
    rules = frame["selector"].unique().tolist()
    tables = [
        {r: common.per_bin(part[part["selector"] == r], **data.inference) for r in part["selector"].unique()}
        for _, part in parts
    ]
    shown = pd.concat([table for of_rule in tables for table in of_rule.values()])
    values = pd.concat([shown["low"].fillna(shown["value"]), shown["high"].fillna(shown["value"])])
    bottom = float(values[values > 0].min()) if (values > 0).any() else 1.0
    floors = [_floor(part) for _, part in parts]
    entries = common.handles(rules, data.styles) + _floor_entry(floors, bottom)
    entries += common.flag_entry(bool(shown["flagged"].any()))
    if fits["model"].notna().any():
        entries.append(Line2D([], [], color=style.INK, label="fitted law", **_FIT))
    figure, axes = common.grid(len(parts), 2.05, extra=common.legend_height(entries))
    for one, (title, part), of_rule, floor in zip(axes, parts, tables, floors, strict=True):
        one.set_title(title)
        for rule, table in of_rule.items():
            common.rule_line(one, table, data.styles[rule])
            key = tuple(part[part["selector"] == rule][c].iloc[0] for c in [*common.PANEL_COLUMNS, "selector"])
            _law(one, table, data.styles[rule], fits.loc[key] if key in fits.index else None)
        if _near(floor, bottom):
            one.axhline(floor, color=style.FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    for one in axes:
        common.distance_axis(one, float(frame["low"].min() + frame["high"].min()) / 2 + 0.5, float(frame["high"].max()))
        common.log_values(one, [*values, *(f for f in floors if _near(f, bottom))])
    common.finish(figure, axes, "distance from the context (tokens)", "mean KL (nats)")
    common.legend_above(figure, entries)
    return figure


def _law(axes: Axes, table: pd.DataFrame, look: style.RuleStyle, fit: Any) -> None:
    """The fitted law over the bins drawn, if there is one."""
    if fit is None or not np.isfinite(fit["rate"]):
        return
    low, high = table["bin_low"].to_numpy(), table["bin_high"].to_numpy()
    law = decay.predict(fit["model"], fit["rate"], fit["log_level"], low, high)
    axes.plot(table["x"], law, color=look.colour, zorder=2, **_FIT)


def _floor(part: pd.DataFrame) -> float:
    """The level under which bins are flagged: a multiple of the mean noise floor over documents; NaN without one."""
    return FLAG_FACTOR * float(part.groupby("document")["floor"].first().mean())


def _near(floor: float, bottom: float) -> bool:
    """Whether the floor is close enough to the data to be drawn without squeezing it."""
    return bool(np.isfinite(floor) and floor > bottom / 10)


def _floor_entry(floors: list[float], bottom: float) -> list[Line2D]:
    known = [f for f in floors if np.isfinite(f) and f > 0]
    if not known:
        return []
    drawn = any(_near(f, bottom) for f in known)
    label = f"{FLAG_FACTOR:g}× noise floor" + ("" if drawn else f" ({max(known):.0e}, below)".replace("e-0", "e-"))
    return [Line2D([], [], color=style.FAINT, linestyle=(0, (2, 2)) if drawn else "none", linewidth=0.9, label=label)]
