"""Input that nobody means well with, and what counts as taking it well: a result, or one line of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from forward_influence.errors import LONGEST_MESSAGE, ForwardInfluenceError
from forward_influence.selectors import parse_selector
from forward_influence.selectors.selection import Budget
from forward_influence.storage.run import open_run, read_part

STRINGS = [
    "", " ", "\x00", "\n", "\r\n", "\t", "../../etc/passwd", "/etc/passwd", "..", ".", "~", "$HOME", "`id`", "$(id)",
    "attention:", ":", "::", "attention::", "attention:=", "attention:window", "attention:window=",
    "attention:window==8",
    "attention:window=8,", "attention:,window=8", "attention:window=8,window=9", "attention:window=-1",
    "attention:window=99999999999999999999", "attention:window=1e9", "attention:window=nan", "attention:per=",
    "position-matched:of=position-matched", "position-matched:of=" + "position-matched:of=" * 50, "a" * 100_000,
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eright to left", "\u200b", "\ufeff", "😀", "é", "e\u0301", "ﷺ",
    "%s%s%s", "{0}", "{}", "\\", "'", '"', "--help", "-1", "1e400", "-0", "0x10", "1_000", "٣", "½", "inf", "nan",
    "0.2.3", "1/3", "os:system", "builtins:eval", "builtins:exec", "sys:exit", "no.such.module:Rule",
    "no/such/file.py:Rule",
    "kvpress:", "kvpress:Nope", "\ud800",
]  # fmt: skip


def taken_well(function: Callable[..., Any], *given: Any) -> bool:
    """Whether a function returns, or raises an error of ours in one line."""
    try:
        function(*given)
    except ForwardInfluenceError as error:
        text = str(error)
        return bool(text) and text.isprintable() and len(text) <= LONGEST_MESSAGE
    return True


def manifest(data: bytes, folder: Path) -> None:
    """Open a run folder with this manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(data)
    open_run(folder).curves()


def part(data: bytes, folder: Path) -> None:
    """Read a part made of these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part.parquet").write_bytes(data)
    read_part(folder / "part.parquet")


def selector(text: str) -> None:
    """Read a rule."""
    parse_selector(text)


def budget(text: str) -> None:
    """Read a budget."""
    Budget.parse(text)
