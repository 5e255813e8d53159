"""Influence of every rule as a multiple of its controls, against distance."""

from __future__ import annotations

from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.controls import controls
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.pairing import variants
from forward_influence.errors import UsageError, did_you_mean


@picture("Influence as a multiple of a control, against distance; bands are 95% intervals.", place=20)
def draw(data: PlotData) -> Figure:
    """Geometric mean over documents of rule over control, per bin, with 95% intervals; the control is the line at 1.

    Where rules have position-matched controls too, these have panels of their own. Hollow markers are bins in which
    the rule or the control is under the noise-floor flag.

    Raises:
        UsageError: the control was not measured, or nothing beside it.
    """
    measured = data.rules
    if not variants(measured, data.baseline):
        raise UsageError(
            f"control '{data.baseline}' was not measured{did_you_mean(data.baseline, measured)}; "
            f"choose one of {', '.join(measured)} with `baseline`"
        )
    asked = data.curves["selector"].unique().tolist()
    ratios = controls(data.everything, data.baseline, **data.inference)
    ratios = ratios[ratios["selector"].isin(asked)]
    if ratios.empty:
        raise UsageError(f"there is no rule beside the control '{data.baseline}'; choose another with `baseline`")
    rules = [r for r in asked if r in set(ratios["selector"])]
    entries = common.handles(rules, data.styles, labels=data.labels) + common.flag_entry(bool(ratios["flagged"].any()))
    several = ratios["control"].nunique() > 1
    named = ratios.assign(control="÷ " + ratios["control"])
    parts = common.panels(named, [*common.PANEL_COLUMNS, "control"])
    figure, axes = common.grid(len(parts), 2.05, extra=common.legend_height(entries))
    shown: list[float] = [1.0]
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        for rule in part["selector"].unique():
            table = common.ratio_table(part[part["selector"] == rule])
            common.rule_line(one, table, data.styles[rule])
            shown += [*table["value"], *table["low"], *table["high"]]
        one.axhline(1, color=style.INK, linewidth=0.8, zorder=0)
    first = float(ratios["low"].min() + ratios["high"].min()) / 2 + 0.5
    for one in axes:
        common.distance_axis(one, first, float(ratios["high"].max()))
        common.log_values(one, shown)
    control = "the control's" if several else data.whose(str(ratios["control"].iloc[0]))
    common.finish(figure, axes, "distance from the context (tokens)", f"influence ÷ {control}")
    common.legend_above(figure, entries)
    return figure
