"""Near against far influence, document by document."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from forward_influence.analysis import style
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.statistics import estimate


def draw(data: PlotData) -> Figure:
    """One small point per document and rule, a large one for the geometric mean; on the diagonal far equals near."""
    frame = data.zones
    rules = frame["selector"].unique().tolist()
    entries = common.handles(rules, data.styles, line=False)
    parts = common.panels(frame)
    figure, axes = common.grid(len(parts), 2.6, extra=common.legend_height(entries))
    shown: list[float] = []
    others: list[float] = []
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        for rule in rules:
            mine = part[part["selector"] == rule]
            wide = mine.pivot_table(index=["run", "document"], columns="zone", values="kl")[["near", "far"]].dropna()
            if wide.empty:
                continue
            look = data.styles[rule]
            small: dict[str, Any] = {"marker": look.marker, "color": look.colour, "linewidths": 0}
            one.scatter(wide["near"], wide["far"], s=13, alpha=0.55, zorder=2, **small)
            centre = [estimate(wide[zone].to_numpy()).value for zone in ("near", "far")]
            large: dict[str, Any] = {
                "marker": look.marker,
                "color": look.colour,
                "edgecolors": style.INK,
                "linewidths": 0.9,
            }
            one.scatter(centre[0], centre[1], s=62, zorder=4, **large)
            shown += wide["near"].tolist()
            others += wide["far"].tolist()
        one.axline((1e-3, 1e-3), (1e-2, 1e-2), color=style.FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    for one in axes:
        common.log_values(one, others)
        common.log_values(one, shown, axis="x")
    common.finish(figure, axes, "near: mean KL (nats)", "far: mean KL (nats)")
    common.legend_above(figure, entries)
    return figure
