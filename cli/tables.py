"""Tables for people and for programs: a DataFrame as a terminal table, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

ABSENT = "–"
#: How far the column of a rule's name may be squeezed before numbers are broken instead.
NAME_WIDTH = 14


class Format(StrEnum):
    """How to write a table."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


def number(x: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, in plain notation where that is short; "–" for NaN or None."""
    if x is None or math.isnan(x):
        return ABSENT
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    if x != 0 and (abs(x) < 1e-4 or abs(x) >= 1e6):
        return f"{x:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(x))) if x else digits - 1
    return f"{x:,.{max(decimals, 0)}f}"


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """ "value [low, high]", or the value alone where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def p_value(p: float) -> str:
    """A p-value with three decimals, "<0.001" below that."""
    if math.isnan(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def console(error: bool = False) -> Console:
    """A rich console that does not squeeze tables when the output is piped."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, highlight=False)


def rich_table(frame: pd.DataFrame, title: str | None = None, width: int | None = None) -> Table:
    """A terminal table of a frame of strings; text is shown as it is, never read as rich markup.

    Args:
        width: of the terminal; where the table is wider, intervals go on a line of their own under their value.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[str(value) for value in row] for row in [list(frame.columns), *frame.itertuples(index=False)]]
    natural = sum(max(len(row[i]) for row in cells) + 3 for i in range(frame.shape[1]))
    if width is not None and natural > width:
        cells = [[cell.replace(" [", "\n[") for cell in row] for row in cells]
    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    longest = [max(len(line) for row in cells for line in row[i].split("\n")) for i in range(frame.shape[1])]
    numeric = [len(cells) > 1 and all(_is_number(row[i]) for row in cells[1:]) for i in range(frame.shape[1])]
    # where there is room for it, numbers stay whole and the names of rules give way
    least = [size if right else min(size, NAME_WIDTH) for size, right in zip(longest, numeric, strict=True)]
    whole = width is None or sum(least) + 3 * len(least) <= width
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
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Indented JSON text."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(frame: pd.DataFrame, title: str | None = None) -> str:
    """A GitHub-flavoured Markdown table of a frame of strings."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    head = [line(list(frame.columns)), line(["---"] * frame.shape[1])]
    body = [line(row) for row in frame.itertuples(index=False)]
    return "\n".join([*([f"**{title}**", ""] if title else []), *head, *body]) + "\n"


def latex(frame: pd.DataFrame, title: str | None = None) -> str:
    """A LaTeX tabular (booktabs) of a frame of strings, special characters escaped."""
    text = frame.to_latex(index=False, escape=True, column_format="l" * frame.shape[1], caption=title)
    return str(text).replace("∞", r"$\infty$").replace(ABSENT, "--")


def text(frame: pd.DataFrame, form: Format, title: str | None = None) -> str:
    """A frame in any format but `table`; numbers of csv and json are not rounded."""
    if form is Format.csv:
        return csv(frame)
    if form is Format.json:
        return as_json(records(frame))
    return markdown(frame, title) if form is Format.markdown else latex(frame, title)
