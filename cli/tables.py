"""Tables for people and for programs: a DataFrame as a terminal table, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from forward_influence.analysis.formatting.wording import ABSENT, interval, number, p_value
from forward_influence.cli import layout
from forward_influence.cli.output import fits_encoding, shown
from forward_influence.cli.wording import in_options
from forward_influence.errors import printable
from forward_influence.utils.configuration import READING, Configuration, described, option

__all__ = ["ABSENT", "Format", "interval", "number", "p_value"]

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType
    from rich.table import Table

#: Characters of a line where nobody looks: a table is as wide as it needs to be.
PIPED = 10_000


class Format(StrEnum):
    """How to write a table."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


@described
@dataclass(frozen=True)
class Shown(Configuration):
    """How results are shown."""

    form: Format = option(Format.table, "How to write the table.", READING, typed="format")


def console(error: bool = False) -> Console:
    """A rich console as wide as the terminal, and without bounds where the output is piped."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED, highlight=False)


def show(frame: pd.DataFrame, title: str | None = None, out: Console | None = None) -> None:
    """Print a frame of strings as a table that fits the terminal, on standard output if no console is given."""
    out = out or console()
    out.print(rich_table(frame, title, out.width), crop=False)  # a word longer than a line is the terminal's to wrap


def fits(frame: pd.DataFrame, width: int) -> bool:
    """Whether a table of a frame of strings is at most `width` characters wide with every cell on one line."""
    return layout.across(layout.longest_lines(_cells(frame)), layout.WIDE_GAP) <= width


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    """The headings and the rows of a frame of strings, as the output shows them."""
    rows = [list(frame.columns), *frame.itertuples(index=False)]
    return [[shown(printable(in_options(str(value)))) for value in row] for row in rows]


def rich_table(frame: pd.DataFrame, title: str | None = None, width: int = PIPED) -> RenderableType:
    """A terminal table of a frame of strings; text is shown as it is, never read as rich markup.

    Numbers, names and whatever else is one word are never broken. Where the table is wider than the terminal,
    intervals go on a line of their own under their value, then the halves of intervals, and text is broken between
    words; where that is not enough the columns are divided among several tables, each of which begins with those that
    tell the rows apart; and where even that is too wide every row becomes a list of its cells.

    Args:
        width: of the terminal.
    """
    from rich.console import Group
    from rich.text import Text

    def lines(text: str, style: str = "") -> Text:
        return Text(text, style, no_wrap=True, overflow="ignore")

    parts: list[RenderableType] = [lines(layout.wrapped(shown(title), width), "italic")] if title else []
    for block in layout.laid_out(_cells(frame), width):
        parts.append(_drawn(block) if isinstance(block, layout.Grid) else lines(block))
    return Group(*parts)


def _drawn(grid: layout.Grid) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # rich would put frames around tables in other encodings than UTF-8
    rule = box.SIMPLE_HEAD if fits_encoding("─") else box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
    padding = (0, 1, 0, 0) if grid.gap == layout.NARROW_GAP else (0, 1)
    table = Table(box=rule, pad_edge=False, padding=padding, safe_box=False)
    for name, right, size in zip(grid.cells[0], grid.right, grid.widths, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold", width=size)
    for row in grid.cells[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated values with a header; NaN is empty."""
    return str(_in_options(frame).to_csv(index=False, lineterminator="\n"))


def _in_options(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose remarks name options the way they are typed; columns of numbers stay as they are."""
    texts = [name for name in frame.columns if frame[name].dtype.kind not in "biufcmM"]
    return frame.assign(**{name: frame[name].map(_worded) for name in texts})


def _worded(value: Any) -> Any:
    """A cell that holds a remark names options the way they are typed; any other stays what it is."""
    return in_options(value) if isinstance(value, str) else value


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries fit for JSON: NaN and infinities, which JSON does not have, become null and "inf"."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    value = _worded(value.item() if hasattr(value, "item") else value)
    if type(value).__name__ == "NAType":  # pandas' own missing value, of columns of whole numbers
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Indented JSON text; letters that the output's encoding lacks are escaped."""
    plain = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return plain if fits_encoding(plain) else json.dumps(value, indent=1, allow_nan=False) + "\n"


def markdown(frame: pd.DataFrame, title: str | None = None) -> str:
    """A GitHub-flavoured Markdown table of a frame of strings."""

    def line(cells: Sequence[Any]) -> str:
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("*", "\\*").replace("\n", " ") for c in cells) + " |"
        )

    head = [line(list(frame.columns)), line(["---"] * frame.shape[1])]
    body = [line(row) for row in _in_options(frame).itertuples(index=False)]
    return "\n".join([*([f"**{title}**", ""] if title else []), *head, *body]) + "\n"


def latex(frame: pd.DataFrame, title: str | None = None) -> str:
    """A LaTeX tabular (booktabs) of a frame of strings, special characters escaped."""
    text = _in_options(frame).to_latex(index=False, escape=True, column_format="l" * frame.shape[1], caption=title)
    symbols = {"∞": r"$\infty$", ABSENT: "--", "<": "$<$", ">": "$>$"}  # < is an inverted ! in text
    return "".join(symbols.get(character, character) for character in str(text))


def text(frame: pd.DataFrame, form: Format, title: str | None = None) -> str:
    """A frame in any format but `table`; numbers of csv and json are not rounded."""
    if form is Format.csv:
        return csv(frame)
    if form is Format.json:
        return as_json(records(frame))
    return markdown(frame, title) if form is Format.markdown else latex(frame, title)
