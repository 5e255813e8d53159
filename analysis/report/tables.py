"""The tables of a report: their columns, their rows, and what each column sorts by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from forward_influence.analysis.formatting.wording import varying_columns
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.measures.selected import Selections
from forward_influence.analysis.tables.cells import Cell, held_heading, number, words
from forward_influence.analysis.tables.measure import Measure
from forward_influence.analysis.tables.registry import measures

MOST_ROWS = 600


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are compared as numbers."""

    label: str
    kind: Literal["text", "number"]


@dataclass(frozen=True)
class Table:
    """One sortable table; `name` is its id in the page."""

    name: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""

    def of(self, what: str, key: str) -> Table:
        """The same, said to be about `what`; `key` keeps its id apart from others'."""
        return replace(self, name=f"{self.name}-{key}", title=f"{self.title}: {what}")


def table(name: str, title: str, frame: pd.DataFrame, maker: Callable[[Any], dict[str, Cell]], note: str = "") -> Table:
    """Make a table of a frame; columns that tell conditions apart (budget, mode ...) appear only where they vary."""
    varied = varying_columns(frame)
    if len(frame) > MOST_ROWS:
        note = f"{note} Only the first {MOST_ROWS} of {len(frame)} rows are shown; `compare` writes all.".strip()
        frame = frame.head(MOST_ROWS)
    rows, columns = [], []
    holds = "held" in frame and frame["held"].notna().any()
    for row in frame.to_dict("records"):
        cells = maker(row)
        first = next(iter(cells))
        held = _held(row) if holds else {}
        cells = {first: cells.pop(first), **{c: words(row[c]) for c in varied}, **held, **cells}
        columns = [Column(label, cell.kind) for label, cell in cells.items()]
        rows.append(list(cells.values()))
    return Table(name, title, columns, rows, note)


def _held(row: Any) -> dict[str, Cell]:
    """What a compressor holds; of two that are set against one another, what both do."""
    heading, text = held_heading(row)
    return {heading: number(row["held"], text)}


def comparison_tables(found: Comparison) -> list[Table]:
    """The tables of a comparison that have rows, each with what has to be said of it; the first with the rest too."""
    made = [(one, one.frame(found)) for one in measures().values() if not one.selections]
    return [
        _made(one, frame, [*one.notes(found, only=True), *frame.attrs.get("notes", ())])
        for one, frame in made
        if len(frame)
    ]


def selection_tables(found: Comparison, selected: Selections, rules: int) -> list[Table]:
    """The tables of selections that have rows.

    Args:
        found: a comparison of the same runs.
        rules: how many there are.
    """
    wanted = [one for one in measures().values() if one.selections and one.rules <= rules]
    made = [(one, one.of_selections(selected)) for one in wanted]
    return [_made(one, frame, one.notes(found)) for one, frame in made if len(frame)]


def _made(one: Measure, frame: pd.DataFrame, notes: list[str]) -> Table:
    note = "; ".join(notes) + "." if notes else ""
    # apart from the ids of sections: a measure may be called as one of them is
    return table(f"table-{one.name}", one.heading or one.title, frame, one.page_cells, note)
