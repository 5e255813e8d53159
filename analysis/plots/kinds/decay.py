"""Mean KL against distance: the measured bins, with the fitted law as a thin line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures import decay
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.matrix import matrix
from forward_influence.influence.noise_floor import FLAG_FACTOR

#: What tells the curves of a picture apart.
_RULE = [*common.PANEL_COLUMNS, "selector"]
_FIT: dict[str, Any] = {"linewidth": 0.7, "linestyle": "-", "alpha": 0.9}


@picture("Mean KL against distance from the context; bands are 95% intervals, thin lines fitted laws.", place=10)
def draw(data: PlotData) -> Figure:
    """One panel per run, budget, mode and effect; log axes; bands are 95% intervals over documents.

    The thin line is the law chosen by AIC, averaged over the bins drawn, where it was fitted. Hollow markers are bins
    under the noise-floor flag. A mean of 0 has no place on a log axis: the curve breaks there.
    """
    frame = data.curves
    fits = decay.fit_decay(data.log_curves, **data.inference).set_index(_RULE)
    fitted = dict(list(data.log_curves.groupby(_RULE, sort=False)))
    parts = common.panels(frame)
    rules = frame["selector"].unique().tolist()
    tables = [
        {
            str(key[-1]): _table(common.per_bin(rows, **data.inference), fits.loc[key], fitted[key])
            for key, rows in part.groupby(_RULE, sort=False)
        }
        for _, part in parts
    ]
    shown = pd.concat([table for of_rule in tables for table in of_rule.values()])
    values = pd.concat([shown["value"], shown["low"], shown["high"]])
    bottom = float(values[values > 0].min()) if (values > 0).any() else 1.0
    floors = [_floor(part) for _, part in parts]
    entries = common.handles(rules, data.styles, labels=data.labels) + _floor_entry(floors, bottom)
    entries += common.flag_entry(bool(shown["flagged"].any()))
    if shown["law"].notna().any():
        entries.append(Line2D([], [], color=style.INK, label="fitted law", **_FIT))
    figure, axes = common.grid(len(parts), 2.05, extra=common.legend_height(entries))
    for one, (title, _), of_rule, floor in zip(axes, parts, tables, floors, strict=True):
        one.set_title(title)
        for rule, table in of_rule.items():
            common.rule_line(one, table, data.styles[rule])
            if table["law"].notna().any():
                one.plot(table["x"], table["law"], color=data.styles[rule].colour, zorder=2, **_FIT)
        if _near(floor, bottom):
            one.axhline(floor, color=style.FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    for one in axes:
        common.distance_axis(one, float(frame["low"].min() + frame["high"].min()) / 2 + 0.5, float(frame["high"].max()))
        common.log_values(one, [*values, bottom, *(f for f in floors if _near(f, bottom))])
    common.finish(figure, axes, "distance from the context (tokens)", "mean KL (nats)")
    common.legend_above(figure, entries)
    return figure


def _table(table: pd.DataFrame, fit: pd.Series, fitted: pd.DataFrame) -> pd.DataFrame:
    """A rule's bins as drawn, with its law: NaN, and no hollow marker, where the mean is not positive."""
    positive = table["value"] > 0
    numbers = {c: table[c].where(positive) for c in ("value", "low", "high")}
    return table.assign(**numbers, flagged=table["flagged"] & positive, law=_law(table, fit, fitted))


def _law(table: pd.DataFrame, fit: pd.Series, fitted: pd.DataFrame) -> np.ndarray:
    """The fitted law per bin drawn (bins,); NaN without one, and where less than half of a bin entered the fit."""
    low, high = table["bin_low"].to_numpy(), table["bin_high"].to_numpy()
    if not np.isfinite(fit["rate"]):
        return np.full(len(table), np.nan)
    curve = matrix(fitted)
    used = ~curve.below_floor & (curve.geometric_mean > 0)
    entered = np.zeros(max(high.max(), curve.high.max()), dtype=bool)
    for start, stop in zip(curve.low[used], curve.high[used], strict=True):
        entered[start:stop] = True
    covered = np.array([entered[a:b].mean() >= 0.5 for a, b in zip(low, high, strict=True)])
    return np.where(covered, decay.predict(fit["model"], fit["rate"], fit["log_level"], low, high), np.nan)


def _floor(part: pd.DataFrame) -> float:
    """The level under which bins are flagged: a multiple of the mean noise floor over documents; NaN without one."""
    return FLAG_FACTOR * float(part["floor"].mean())


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
