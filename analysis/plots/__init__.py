"""Pictures of runs, one file per kind.

`KINDS` names them; a kind is a module with a function `draw(data: PlotData) -> Figure`. A new kind is one file and one
line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from matplotlib.figure import Figure

from forward_influence.analysis.formatting.style import house_style
from forward_influence.analysis.plots.common import TooManyPanels
from forward_influence.analysis.plots.data import PlotData
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.storage.evaluation import Evaluation

__all__ = ["KINDS", "Kind", "PlotData", "TooManyPanels", "draw", "kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of picture.

    Attributes:
        name: what `--kind` takes.
        summary: what it shows, in a sentence fit for a caption.
        needs_selections: whether the run must have been measured with --save-selections.
        reads: "run", or what else the folder must be.
    """

    name: str
    summary: str
    needs_selections: bool = False
    reads: str = "run"


KINDS: dict[str, Kind] = {
    k.name: k
    for k in (
        Kind("decay", "Mean KL against distance from the context; bands are 95% intervals, thin lines fitted laws."),
        Kind("ratio", "Influence as a multiple of a control, against distance; bands are 95% intervals."),
        Kind("nearfar", "Near against far influence: one point per document, a large one for the geometric mean."),
        Kind(
            "crossover",
            "Where one rule's influence overtakes another's: a large marker where it does so for good, and in the "
            "strip below a bar for the 95% interval wherever that does not rule a crossover out.",
        ),
        Kind(
            "overlap",
            "Share of the budget that each pair of rules has in common, over all layers and layer by layer; the line "
            "without markers is what chance alone would give.",
            True,
        ),
        Kind("layers", "Layer by layer: where in the context each rule selects, or each layer's influence."),
        Kind(
            "positions", "Where in the context a rule selects, against an even spread; bands are 95% intervals.", True
        ),
        Kind("tokens", "What kind of token a rule selects, against the base rate; bars are 95% intervals.", True),
        Kind("retention", "Accuracy on tasks against the share of the cache kept.", reads="evaluation"),
    )
}


def kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        UsageError: there is none (did you mean ...).
    """
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise UsageError(f"unknown kind of picture '{name}'{did_you_mean(name, list(KINDS))}; known: {known}")
    return KINDS[name]


def draw(name: str, data: PlotData | Sequence[Evaluation]) -> Figure:
    """Draw one kind of picture in the house style, from runs, or from evaluations where the kind reads those.

    Raises:
        UsageError: unknown kind, or the run does not hold what the kind needs.
    """
    module = import_module(f"{__name__}.{kind(name).name}")
    with house_style():
        figure: Figure = module.draw(data)
        figure.draw_without_rendering()  # lays the figure out while the house style is in force
        figure.set_layout_engine("none")  # and once: every file of it looks the same
    return figure
