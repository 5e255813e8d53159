"""Tables for people and for programs: a DataFrame as a terminal table, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from forward_influence.analysis.wording import ABSENT, interval, number, p_value
from forward_influence.errors import printable

__all__ = ["ABSENT", "Format", "interval", "number", "p_value"]

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

#: How far the column of a rule's name may be squeezed before numbers are broken instead.
NAME_WIDTH = 14


class Format(StrEnum):
    """How to write a table."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


def console(error: bool = False) -> Console:
    """A rich console that does not squeeze tables when the output is piped."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, highlight=False)


def fits(frame: pd.DataFrame, width: int) -> bool:
    """Whether a table of a frame of strings is at most `width` characters wide with every cell on one line."""
    return _across(_longest(_cells(frame)), 3) <= width


def _across(sizes: list[int], gap: int) -> int:
    """Characters that columns of these sizes take, with a blank at either side."""
    return sum(sizes) + gap * (len(sizes) - 1) + 2


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    """The headings and the rows of a frame of strings."""
    return [[printable(str(value)) for value in row] for row in [list(frame.columns), *frame.itertuples(index=False)]]


def _longest(cells: list[list[str]]) -> list[int]:
    """The longest line of each column."""
    return [max(len(line) for row in cells for line in row[i].split("\n")) for i in range(len(cells[0]))]


def _narrowed(cells: list[list[str]], halves: bool) -> list[list[str]]:
    """Intervals on lines of their own, and their halves too if asked for; headings broken between words to match."""
    body = [[cell.replace(" [", "\n[") for cell in row] for row in cells[1:]]
    if halves:
        body = [[cell.replace(", ", ",\n ") if "[" in cell else cell for cell in row] for row in body]
    longest = _longest(body) if body else [0] * len(cells[0])
    least = [max([size, *map(len, name.split())]) for size, name in zip(longest, cells[0], strict=True)]
    names = [
        "\n".join(wrap(name, size, break_on_hyphens=False)) or name for name, size in zip(cells[0], least, strict=True)
    ]
    return [names, *body]


def rich_table(frame: pd.DataFrame, title: str | None = None, width: int | None = None) -> Table:
    """A terminal table of a frame of strings; text is shown as it is, never read as rich markup.

    Args:
        width: of the terminal. Where the table is wider, intervals go on a line of their own under their value, then
            the halves of intervals; numbers are never broken, the names of rules give way where there is room for it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = _cells(frame)
    numeric = [len(cells) > 1 and all(_is_number(row[i]) for row in cells[1:]) for i in range(frame.shape[1])]
    narrow = width is not None and not fits(frame, width)

    def sizes(cells: list[list[str]]) -> list[int]:
        return [s if right else min(s, NAME_WIDTH) for s, right in zip(_longest(cells), numeric, strict=True)]

    gap = 2 if narrow else 3
    if narrow and width is not None:
        tried = [_narrowed(cells, halves) for halves in (False, True)]
        cells = next((some for some in tried if _across(sizes(some), gap) <= width), tried[-1])
    least = sizes(cells)
    whole = width is None or _across(least, gap) <= width
    padding = (0, 1, 0, 0) if narrow else (0, 1)
    heading = Text(title) if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for name, right, size in zip(cells[0], numeric, least, strict=True):
        keep: dict[str, Any] = {"min_width": size, "no_wrap": right} if whole else {}
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold", **keep)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in f"-<∞{ABSENT}"


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated values with a header; NaN is empty."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries fit for JSON: NaN and infinities, which JSON does not have, become null and "inf"."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if type(value).__name__ == "NAType":  # pandas' own missing value, of columns of whole numbers
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Indented JSON text."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(frame: pd.DataFrame, title: str | None = None) -> str:
    """A GitHub-flavoured Markdown table of a frame of strings."""

    def line(cells: Sequence[Any]) -> str:
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("*", "\\*").replace("\n", " ") for c in cells) + " |"
        )

    head = [line(list(frame.columns)), line(["---"] * frame.shape[1])]
    body = [line(row) for row in frame.itertuples(index=False)]
    return "\n".join([*([f"**{title}**", ""] if title else []), *head, *body]) + "\n"


def latex(frame: pd.DataFrame, title: str | None = None) -> str:
    """A LaTeX tabular (booktabs) of a frame of strings, special characters escaped."""
    text = frame.to_latex(index=False, escape=True, column_format="l" * frame.shape[1], caption=title)
    symbols = {"∞": r"$\infty$", ABSENT: "--", "<": "$<$", ">": "$>$"}  # < is an inverted ! in text
    return "".join(symbols.get(character, character) for character in str(text))


def text(frame: pd.DataFrame, form: Format, title: str | None = None) -> str:
    """A frame in any format but `table`; numbers of csv and json are not rounded."""
    if form is Format.csv:
        return csv(frame)
    if form is Format.json:
        return as_json(records(frame))
    return markdown(frame, title) if form is Format.markdown else latex(frame, title)
