"""Tables by name: the files of `kinds`, each of which registers its measure."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from forward_influence.analysis.tables import kinds
from forward_influence.analysis.tables.measure import Measure
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.utils.discovery import load_modules, module_names

M = TypeVar("M", bound=type[Measure])
_measures: dict[str, Measure] = {}


def tabled(cls: M) -> M:
    """Class decorator: register a measure under the name of its file."""
    cls.name = _name(cls.__module__.rpartition(".")[2])
    _measures[cls.name] = cls()
    return cls


def _name(module: str) -> str:
    return module.replace("_", "-")


def table_names() -> tuple[str, ...]:
    """What there is, by name; no measure's file is loaded."""
    return tuple(_name(module) for module in module_names(kinds))


@cache
def measures() -> dict[str, Measure]:
    """Every measure by name, in the order of a report."""
    load_modules(kinds)
    return {one.name: one for one in sorted(_measures.values(), key=lambda one: (one.place, one.name))}


def measure_of(name: str) -> Measure:
    """The measure of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in table_names():
        raise UsageError(
            f"there is no table {name!r}{did_you_mean(name, list(table_names()))}; there are {', '.join(table_names())}"
        )
    return measures()[name]
