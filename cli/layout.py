"""Where the cells of a table go on a terminal of some width: what is one word is never broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.cells import cell_len

from forward_influence.analysis.formatting.wording import ABSENT
from forward_influence.cli.output import shown

#: Characters between columns.
WIDE_GAP, NARROW_GAP = 3, 2
#: Text is not squeezed into less than this, if the columns can be divided instead.
_TEXT = 20

Cells = list[list[str]]


@dataclass(frozen=True)
class Grid:
    """A table: headings and rows, where cells are aligned, and the width of each column."""

    cells: Cells
    right: list[bool]
    widths: list[int]
    gap: int


def laid_out(cells: Cells, width: int) -> list[Grid | str]:
    """A table's headings and rows as one or several grids, or as text, none wider than `width` if words allow it."""
    right = [len(cells) > 1 and all(_is_number(row[i]) for row in cells[1:]) for i in range(len(cells[0]))]
    sizes = longest_lines(cells)
    if across(sizes, WIDE_GAP) <= width:
        return [Grid(cells, right, sizes, WIDE_GAP)]
    narrowed = [_narrowed(cells, halves) for halves in (False, True)]
    for narrow in narrowed:
        if across(_least(narrow, right), NARROW_GAP) <= width:
            return [_grid(narrow, right, width)]
    for narrow in narrowed:
        if grids := _divided(narrow, right, width):
            return grids
    return [_listed(cells, width)]


def across(sizes: Sequence[int], gap: int) -> int:
    """Characters that columns of these sizes take, with a blank at either side."""
    return sum(sizes) + gap * (len(sizes) - 1) + 2


def longest_lines(cells: Cells) -> list[int]:
    """The longest line of each column."""
    return [max(cell_len(line) for row in cells for line in row[i].split("\n")) for i in range(len(cells[0]))]


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in f"-<∞{ABSENT}" or cell == shown("∞")


def _narrowed(cells: Cells, halves: bool) -> Cells:
    """Intervals on lines of their own, and their halves too if asked for; headings broken between words to match."""
    body = [[cell.replace(" [", "\n[") for cell in row] for row in cells[1:]]
    if halves:
        body = [[cell.replace(", ", ",\n ") if "[" in cell else cell for cell in row] for row in body]
    longest = longest_lines(body) if body else [0] * len(cells[0])
    least = [max([size, *map(cell_len, name.split())]) for size, name in zip(longest, cells[0], strict=True)]
    names = [
        "\n".join(wrap(name, size, break_on_hyphens=False)) or name for name, size in zip(cells[0], least, strict=True)
    ]
    return [names, *body]


def _words(cells: Cells) -> list[int]:
    """The longest word of each column."""
    return [max(map(cell_len, " ".join(row[i] for row in cells).split()), default=0) for i in range(len(cells[0]))]


def _least(cells: Cells, right: list[bool]) -> list[int]:
    """The least width of each column: numbers stay on their line, text is broken between words, if it has many."""
    lines = longest_lines(cells)
    return [
        line if number else max(word, min(line, _TEXT))
        for line, word, number in zip(lines, _words(cells), right, strict=True)
    ]


def _grid(cells: Cells, right: list[bool], width: int) -> Grid:
    """A grid whose text takes what room there is."""
    wanted, sizes = longest_lines(cells), _least(cells, right)
    room = width - across(sizes, NARROW_GAP)
    while room > 0 and (short := [i for i, size in enumerate(sizes) if size < wanted[i]]):
        for i in short[:room]:
            sizes[i] += 1
        room -= len(short)
    return Grid(cells, right, sizes, NARROW_GAP)


def _divided(cells: Cells, right: list[bool], width: int) -> list[Grid | str]:
    """The columns divided among several grids that fit, each with the first ones, which tell the rows apart.

    Nothing where not even one column fits beside those.
    """
    keys, least = _telling(cells), _least(cells, right)
    groups: list[list[int]] = []
    for column in range(keys, len(least)):
        if groups and _across_columns([*range(keys), *groups[-1], column], least) <= width:
            groups[-1].append(column)
        elif _across_columns([*range(keys), column], least) <= width:
            groups.append([column])
        else:
            return []
    grids: list[Grid | str] = []
    for group in groups:
        columns = [*range(keys), *group]
        some = [[row[i] for i in columns] for row in cells]
        grids.append(_grid(some, [right[i] for i in columns], width))
    return grids


def _across_columns(columns: list[int], sizes: list[int]) -> int:
    return across([sizes[i] for i in columns], NARROW_GAP)


def _telling(cells: Cells) -> int:
    """How many of the first columns tell all rows apart; one where all together do not."""
    for count in range(1, len(cells[0]) + 1):
        if len({tuple(row[:count]) for row in cells[1:]}) == len(cells) - 1:
            return count
    return 1


def _listed(cells: Cells, width: int) -> str:
    """Every row as a list of its cells under each other; of two columns, the second beside or below the first."""
    pairs = len(cells[0]) == 2
    each = [list(zip(cells[0], row, strict=True)) for row in cells[1:]]
    rows = [[(row[0], row[1]) for row in cells]] if pairs else each
    size = max(cell_len(name) for row in rows for name, _ in row)
    return "\n\n".join("\n".join(_item(name, value, size, width) for name, value in row) for row in rows) + "\n"


def _item(name: str, value: str, size: int, width: int) -> str:
    blanks = " " * (size - cell_len(name) + 2)
    if size + 2 + cell_len(value) <= width:
        return f"{name}{blanks}{value}".rstrip()
    return "\n".join([name, *(f"  {line}" for line in wrapped(value, width - 2).split("\n"))])


def wrapped(text: str, width: int) -> str:
    """A text on lines that are broken between words alone."""
    return "\n".join(wrap(text, max(width, 1), break_on_hyphens=False, break_long_words=False))
