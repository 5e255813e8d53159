"""Accuracy against the share of the cache that is kept, a line per compressor, the full cache as the level to keep."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from forward_influence.analysis.formatting import style
from forward_influence.analysis.formatting.held_words import entries as entries_in_words
from forward_influence.analysis.measures.accuracy import accuracy_table
from forward_influence.analysis.plots import common
from forward_influence.analysis.plots.registry import picture
from forward_influence.analysis.reading.curves import labels
from forward_influence.errors import UsageError
from forward_influence.storage.evaluation import FULL, Evaluation


@picture("Accuracy on tasks against the share of the cache kept.", reads="evaluation", place=90)
def draw(evaluations: Sequence[Evaluation]) -> Figure:
    """One panel per task, length and protocol; bands are 95% intervals over items.

    Raises:
        UsageError: there is nothing beside the full cache.
    """
    names = labels([e.folder for e in evaluations])
    made = [accuracy_table(e.frame()).assign(run=name) for e, name in zip(evaluations, names, strict=True)]
    table = pd.concat(made, ignore_index=True)
    table["kept"] = table["cache_bytes"] / table["full_bytes"]
    shown = table[table["compressor"] != FULL]
    if shown.empty:
        raise UsageError("only the full cache was evaluated; evaluate one of the `compressors` at several `budgets`")
    rules = shown["compressor"].unique().tolist()
    styles = style.rule_styles([FULL, *rules])
    entries = common.handles([FULL, *rules], styles, labels=_labels(shown))
    entries[0].set_marker("")  # the full cache is a level, not points
    parts = common.panels(shown, ["run", "task", "length", "protocol"])
    figure, axes = common.grid(len(parts), 1.75, extra=common.legend_height(entries))
    for one, (title, part) in zip(axes, parts, strict=True):
        one.set_title(title)
        for rule in part["compressor"].unique():
            own = part[part["compressor"] == rule].sort_values("kept")
            line = pd.DataFrame({"x": own["kept"], "value": own["accuracy"], "low": own["low"], "high": own["high"]})
            common.rule_line(one, line, styles[rule])
        first = part.iloc[0]
        same = (table["compressor"] == FULL) & (table["run"] == first["run"]) & (table["task"] == first["task"])
        same &= (table["length"] == first["length"]) & (table["protocol"] == first["protocol"])
        for level in table.loc[same, "accuracy"]:
            one.axhline(level, color=styles[FULL].colour, linestyle=styles[FULL].line, linewidth=1.0, zorder=0)
        one.set_ylim(-0.03, 1.03)
        one.set_xlim(0, min(1.0, float(shown["kept"].max()) * 1.1))
        one.yaxis.set_major_formatter(PercentFormatter(1.0))
        one.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    common.finish(figure, axes, "cache kept", "accuracy")
    common.legend_above(figure, entries)
    return figure


def _labels(table: pd.DataFrame) -> dict[str, str]:
    """What the legend calls each compressor: its name, and how many entries it holds at each budget."""
    held = table.groupby(["compressor", "budget"], sort=False)["held"].mean().round()
    counts: dict[str, list[str]] = {}
    for (compressor, _), count in held.items():
        counts.setdefault(str(compressor), []).append(entries_in_words(count))
    return {rule: f"{rule} (holds {', '.join(dict.fromkeys(each))})" for rule, each in counts.items()}
