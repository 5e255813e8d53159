"""Where in the context a rule selects."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.tokens import DIVISIONS
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture


@picture(
    "Where in the context a rule selects, against an even spread; bands are 95% intervals.",
    needs_selections=True,
    place=70,
)
def draw(data: PlotData) -> Figure:
    """Selected per tenth of the candidates, as a multiple of an even spread; bands are 95% intervals over documents."""
    profile = data.profile
    profile = profile[profile["division"] == "position"]
    rules = profile["selector"].unique().tolist()
    entries = common.handles(rules, data.styles, labels=data.labels)
    parts = common.panels(profile)
    figure, axes = common.grid(len(parts), 1.9, extra=common.legend_height(entries))
    middle = 10 * np.arange(len(DIVISIONS["position"])) + 5
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        for rule in part["selector"].unique():
            mine = part[part["selector"] == rule].set_index("group").reindex(DIVISIONS["position"])
            table = mine.rename(columns={"lift": "value"}).assign(x=middle)
            common.rule_line(one, table, data.styles[rule])
        one.axhline(1, color=style.INK, linewidth=0.8, zorder=0)
    for one in axes:
        one.set_xlim(0, 100)
        one.set_xticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
        one.set_ylim(bottom=0)
    common.finish(figure, axes, "position among the candidates", "selected, × an even spread")
    common.legend_above(figure, entries)
    return figure
