"""What a table is: a measure of runs, with the words that its rows are read in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from forward_influence.analysis.formatting.wording import varying_columns
from forward_influence.analysis.tables.cells import Cell, held_heading, words

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.analysis.measures.compare import Comparison
    from forward_influence.analysis.measures.selected import Selections

#: Where tables stand that do not say where.
LAST = 1000


class Measure:
    """One table. Subclasses say what is computed (`frame`, or `of_selections`) and how a row reads (`cells`).

    Attributes:
        name: what `show` takes: that of its file.
        title: over it on the terminal.
        heading: over it in a report; the title where there is none.
        missing: why it can be empty.
        note: a line for under it, beside those that the comparison has about it; may be empty.
        place: where it stands in a report, smaller numbers first, those of one number by name.
        by_default: whether `compare` shows it unasked.
        optional: whether it is left out of what is shown unasked where it has no rows.
        selections: whether it is made from saved selections; then `of_selections` is called, not `frame`.
        rules: how many rules it takes at least.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    heading: ClassVar[str] = ""
    missing: ClassVar[str] = "no rule was measured that it can be made of"
    note: ClassVar[str] = ""
    place: ClassVar[int] = LAST
    by_default: ClassVar[bool] = False
    optional: ClassVar[bool] = False
    selections: ClassVar[bool] = False
    rules: ClassVar[int] = 1

    @property
    def about(self) -> str:
        """What a comparison's notes call it."""
        return self.name

    def frame(self, found: Comparison) -> pd.DataFrame:
        """What it computes of a comparison, a row each; columns that are `RULE` tell rows apart."""
        raise NotImplementedError

    def of_selections(self, selected: Selections) -> pd.DataFrame:
        """What it computes of saved selections."""
        raise NotImplementedError

    def cells(self, row: dict[str, Any], digits: int) -> dict[str, str]:
        """A row on the terminal, the rule first.

        Args:
            digits: significant digits of values; shares and correlations have two.
        """
        raise NotImplementedError

    def page_cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """A row in a report, the rule first; as on the terminal where nothing else is said."""
        return {name: words(text) for name, text in self.cells(row, 3).items()}

    def finished(self, table: pd.DataFrame) -> pd.DataFrame:
        """The terminal's table with what all of its rows decide together."""
        return table

    def notes(self, found: Comparison, *, only: bool = False) -> list[str]:
        """The lines for under it.

        Args:
            only: leave out those that concern all tables of a comparison.
        """
        own = [self.note] if self.note else []
        return own if self.selections else found.notes_about([self.about], only=only) + own


def readable(frame: pd.DataFrame, measure: Measure, digits: int) -> pd.DataFrame:
    """A table as strings, values with their intervals; columns that tell conditions apart only where they vary.

    Args:
        digits: significant digits of values.
    """
    import pandas as pd

    varying = varying_columns(frame)
    holds = "held" in frame and frame["held"].notna().any()
    rows = []
    for row in frame.to_dict("records"):
        cells = measure.cells(row, digits)
        first = next(iter(cells))
        held = dict([held_heading(row)]) if holds else {}
        rows.append({first: cells.pop(first), **{name: row[name] for name in varying}, **held, **cells})
    return measure.finished(pd.DataFrame(rows))
