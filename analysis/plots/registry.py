"""Kinds of pictures by name: the files of `kinds`, each of which registers what it draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from forward_influence.analysis.plots import kinds as folder
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.utils.discovery import load_modules, module_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from forward_influence.analysis.plots.data import PlotData
    from forward_influence.storage.evaluation import Evaluation

_kinds: dict[str, Kind] = {}
#: Where pictures stand that do not say where.
_LAST = 1000


@dataclass(frozen=True)
class Kind:
    """One kind of picture.

    Attributes:
        name: what `kind` takes: that of its file.
        summary: what it shows, in a sentence fit for a caption.
        draw: makes the figure, of what it reads.
        needs_selections: whether the run must have been measured with `save_selections`.
        reads: "run", or what else the folder must be: "evaluation".
        place: where it stands in a report, smaller numbers first, those of one number by name.
        needs_spans: whether the run must have been measured by spans.
    """

    name: str
    summary: str
    draw: Callable[[Any], Figure]
    needs_selections: bool = False
    reads: str = "run"
    place: int = _LAST
    needs_spans: bool = False


def picture(
    summary: str,
    *,
    needs_selections: bool = False,
    needs_spans: bool = False,
    reads: str = "run",
    place: int = _LAST,
) -> Callable[[Callable[[Any], Figure]], Callable[[Any], Figure]]:
    """Register a function `PlotData -> Figure` (`Sequence[Evaluation] -> Figure`) as the picture of its file's name.

    Args:
        summary, needs_selections, needs_spans, reads, place: as of `Kind`.
    """

    def register(draw: Callable[[Any], Figure]) -> Callable[[Any], Figure]:
        name = _name(draw.__module__.rpartition(".")[2])
        _kinds[name] = Kind(name, summary, draw, needs_selections, reads, place, needs_spans)
        return draw

    return register


def _name(module: str) -> str:
    return module.replace("_", "-")


def kind_names() -> tuple[str, ...]:
    """What there is, by name; no picture's file is loaded."""
    return tuple(_name(module) for module in module_names(folder))


@cache
def kinds() -> dict[str, Kind]:
    """Every kind by name, in the order of a report."""
    load_modules(folder)
    return {kind.name: kind for kind in sorted(_kinds.values(), key=lambda kind: (kind.place, kind.name))}


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        UsageError: there is none (did you mean ...).
    """
    if name not in kind_names():
        known = ", ".join(kind_names())
        raise UsageError(f"unknown kind of picture '{name}'{did_you_mean(name, list(kind_names()))}; known: {known}")
    return kinds()[name]


def draw(name: str, data: PlotData | Sequence[Evaluation]) -> Figure:
    """Draw one kind of picture in the house style, from runs, or from evaluations where the kind reads those.

    Raises:
        UsageError: unknown kind, or the run does not hold what the kind needs.
    """
    from forward_influence.analysis.formatting.style import house_style

    with house_style():
        figure = kind_of(name).draw(data)
        figure.draw_without_rendering()  # lays the figure out while the house style is in force
        figure.set_layout_engine("none")  # and once: every file of it looks the same
    return figure
