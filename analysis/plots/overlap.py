"""How much of the budget rules share, as a heat map."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from forward_influence.analysis import style
from forward_influence.analysis.overlap import overlap_matrix
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.errors import UsageError


def draw(data: PlotData) -> Figure:
    """Lower triangle: percent of the budget in common, mean over layers and documents; the title has what chance gives.

    Raises:
        UsageError: no selections, or fewer than two rules.
    """
    frame = data.overlap
    parts = common.panels(frame, ["budget", "mode"])
    rules = list(dict.fromkeys([*frame["rule_a"], *frame["rule_b"]]))
    if len(rules) < 2:
        raise UsageError("overlap needs two rules with saved selections; leave --selector out or give two")
    shown = [common.shortened(rule, 24) for rule in rules]
    margin = 0.3 + 0.056 * max(map(len, shown[1:]))
    cell = min(0.5, (style.COLUMN_WIDTH - margin) / (len(rules) - 1))
    height = cell * (len(rules) - 1) + 0.75 + 0.035 * max(map(len, shown[:-1]))
    figure, axes = common.grid(len(parts), height)
    for one, (title, part) in zip(axes, parts, strict=True):
        matrix = overlap_matrix(part, "shared", rules).iloc[1:, :-1] * 100
        above = np.triu(np.ones(matrix.shape, dtype=bool), 1)
        number = {"fontsize": 7 if cell > 0.25 else 5.5}
        sns.heatmap(
            matrix, mask=above, annot=True, fmt=".0f", cmap="mako_r", vmin=0, vmax=100, ax=one, linewidths=0.6,
            cbar=False, annot_kws=number, square=True, xticklabels=shown[:-1], yticklabels=shown[1:],
        )  # fmt: skip
        one.grid(False)
        one.spines[:].set_visible(False)
        chance = part["chance"].mean() * 100
        one.set_title(f"{title + ', ' if title else ''}by chance {chance:.0f}%", fontsize=7.5)
        one.set_xticks(one.get_xticks(), shown[:-1], rotation=40, ha="right", rotation_mode="anchor")
        one.set_yticks(one.get_yticks(), shown[1:], rotation=0)
        one.tick_params(length=0, labelbottom=True, labelleft=True)
    figure.supxlabel("% of the budget that two rules share", fontsize=8)
    return figure
