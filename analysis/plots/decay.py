"""Mean KL against distance: markers are the measured bins, the line is the fitted law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from forward_influence.analysis import decay, style
from forward_influence.analysis.curves import FLAG_FACTOR, matrix
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData


def draw(data: PlotData) -> Figure:
    """One panel per run, budget, mode and effect; log axes; bands are 95% intervals over documents.

    The line is the law chosen by AIC, averaged over the bins drawn; a rule without a fit is drawn through its bins.
    Hollow markers are bins under the noise-floor flag.
    """
    frame = data.curves
    fits = decay.fit_decay(data.log_curves).set_index([*common.PANEL_COLUMNS, "selector"])
    parts = common.panels(frame)
    rules = frame["selector"].unique().tolist()
    entries = common.handles(rules, data.styles)
    floors = [_floor(part) for _, part in parts]
    shown = [common.per_bin(part[part["selector"] == rule]) for _, part in parts for rule in part["selector"].unique()]
    values = pd.concat([t["low"].fillna(t["value"]) for t in shown] + [t["high"].fillna(t["value"]) for t in shown])
    bottom = float(values[values > 0].min()) if (values > 0).any() else 1.0
    entries += _floor_entry(floors, bottom)
    figure, axes = common.grid(len(parts), 2.05, extra=common.legend_height(entries))
    for one, (title, part), floor in zip(axes, parts, floors, strict=True):
        one.set_title(title)
        for rule in part["selector"].unique():
            _rule(one, part[part["selector"] == rule], data.styles[rule], fits)
        if _near(floor, bottom):
            one.axhline(floor, color=style.FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    for one in axes:
        common.distance_axis(one, float(frame["low"].min() + frame["high"].min()) / 2 + 0.5, float(frame["high"].max()))
        common.log_values(one, [*values, *(f for f in floors if _near(f, bottom))])
    common.finish(figure, axes, "distance from the context (tokens)", "mean KL (nats)")
    common.legend_above(figure, entries)
    return figure


def _rule(axes: Axes, part: pd.DataFrame, look: style.RuleStyle, fits: pd.DataFrame) -> None:
    table = common.per_bin(part)
    key = tuple(part[c].iloc[0] for c in [*common.PANEL_COLUMNS, "selector"])
    fit: Any = fits.loc[key] if key in fits.index else None
    fitted = fit is not None and fit["model"] is not None and np.isfinite(fit["rate"])
    common.rule_line(axes, table, look, faint=fitted)
    if fitted:
        low, high = table["bin_low"].to_numpy(), table["bin_high"].to_numpy()
        law = decay.predict(fit["model"], fit["rate"], fit["log_level"], low, high)
        axes.plot(table["x"], law, color=look.colour, linestyle=look.line, linewidth=1.4, zorder=4)
    flagged = table[matrix(part).below_floor]
    if len(flagged):
        hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": look.colour, "linewidths": 0.8}
        axes.scatter(flagged["x"], flagged["value"], marker=look.marker, s=16, zorder=5, **hollow)


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
