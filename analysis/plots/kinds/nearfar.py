"""Near against far influence, document by document."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture

_SMALL: dict[str, Any] = {"s": 13, "alpha": 0.55, "linewidths": 0, "zorder": 2}
_LARGE: dict[str, Any] = {"s": 62, "zorder": 4, "linewidths": 0.9}


@picture("Near against far influence: one point per document, a large one for the geometric mean.", place=30)
def draw(data: PlotData) -> Figure:
    """One small point per document and rule, a large one for the geometric mean; on the diagonal far equals near.

    A large point is hollow where the near or the far mean is under the noise-floor flag.
    """
    frame = data.zones
    rules = frame["selector"].unique().tolist()
    parts = common.panels(frame)
    means = [
        {r: common.per_bin(part[part["selector"] == r], **data.inference) for r in part["selector"].unique()}
        for _, part in parts
    ]
    flagged = any(table["flagged"].iloc[[0, -1]].any() for of_rule in means for table in of_rule.values())
    entries = common.handles(rules, data.styles, line=False, labels=data.labels) + common.flag_entry(bool(flagged))
    figure, axes = common.grid(len(parts), 2.6, extra=common.legend_height(entries))
    shown: list[float] = []
    others: list[float] = []
    for one, (title, part), of_rule in zip(axes, parts, means, strict=True):
        one.set_title(title)
        for rule, table in of_rule.items():
            mine = part[part["selector"] == rule]
            wide = mine.pivot(index="document", columns="zone", values="kl")[["near", "far"]].dropna()
            if wide.empty:
                continue
            look = data.styles[rule]
            one.scatter(wide["near"], wide["far"], marker=look.marker, color=look.colour, **_SMALL)
            near, far = table.iloc[0], table.iloc[-1]
            hollow = bool(near["flagged"] or far["flagged"])
            inside: Any = {"facecolors": "white" if hollow else look.colour}
            edge: Any = {"edgecolors": look.colour if hollow else style.INK}
            one.scatter(near["value"], far["value"], marker=look.marker, **inside, **edge, **_LARGE)
            shown += wide["near"].tolist()
            others += wide["far"].tolist()
        one.axline((1e-3, 1e-3), (1e-2, 1e-2), color=style.FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    for one in axes:
        common.log_values(one, others)
        common.log_values(one, shown, axis="x")
    common.finish(figure, axes, "near: mean KL (nats)", "far: mean KL (nats)")
    common.legend_above(figure, entries)
    return figure
