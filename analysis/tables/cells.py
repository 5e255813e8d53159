"""Cells of tables: what they show, and what their columns sort by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from forward_influence.analysis.formatting.held_words import HEADING, held_cell, held_pair
from forward_influence.analysis.formatting.wording import ABSENT, interval
from forward_influence.analysis.formatting.wording import number as written

#: What values bear that are under the noise-floor flag.
FLAG = "*"


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what its column sorts by (empty: always last)."""

    text: str
    value: str
    kind: Literal["text", "number"]


def words(text: Any) -> Cell:
    """A cell of text."""
    return Cell(str(text) if str(text) else ABSENT, str(text), "text")


def number(value: float, text: str | None = None, digits: int = 3) -> Cell:
    """A cell that sorts as a number."""
    known = value is not None and not math.isnan(value)
    shown = written(value, digits) if text is None or not known else text
    return Cell(shown, repr(float(value)) if known else "", "number")


def whole(value: float) -> Cell:
    """A count."""
    return number(value, f"{int(value):,}")


def spread(row: Any, name: str, digits: int = 3, flagged: bool = False) -> Cell:
    """A value with its interval; sorts by the value."""
    return number(row[name], with_interval(row, name, digits, flagged), digits)


def with_interval(row: Any, name: str, digits: int, flagged: bool = False) -> str:
    """A value with its interval, as text."""
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits, FLAG if flagged else "")


def held_heading(row: Any) -> tuple[str, str]:
    """Heading and text of what a compressor holds; of two that are set against one another, of what both do."""
    if "over" in row or "control_selector" in row:
        return "held", held_pair(row["held"], row["other_held"]) or ABSENT
    return HEADING, held_cell(row) or ABSENT
