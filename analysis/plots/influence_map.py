"""Influence of every token (or block) by itself, against distance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style


def draw_map(frame: pd.DataFrame, title: str = "") -> Figure:
    """A heat map, tokens across and distance upwards, over each token's mean along the whole continuation.

    Args:
        frame: as `forward_influence.measurement.leave_one_out.influence_map` gives it.
    """
    with style.house_style():
        wide = frame.pivot(index="low", columns="first", values="kl")
        edges = np.array([*sorted(frame["low"].unique()), frame["high"].max()])
        tokens = np.array([*wide.columns, frame["last"].max()])
        figure = style.new_figure(2 * style.COLUMN_WIDTH, 3.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
        mean = np.average(wide.to_numpy(), axis=0, weights=np.diff(edges))
        upper.stairs(mean, tokens, color=style.INK, linewidth=0.8)
        upper.set_yscale("log")
        upper.set_ylabel("mean KL, nats")
        upper.set_title(title)
        values = wide.to_numpy()
        positive = values[values > 0]
        low, high = (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)
        low = max(float(low), float(high) / 1e5)
        norm = LogNorm(low, max(float(high), low * 1.01))
        shown = lower.pcolormesh(tokens, edges, np.clip(values, low, None), norm=norm, cmap=style.colour_map("mako_r"))
        lower.set_xlabel("context token removed")
        lower.set_ylabel("distance")
        lower.grid(visible=False)
        figure.colorbar(shown, ax=lower, label="KL, nats")
        figure.canvas.draw()
        return figure
