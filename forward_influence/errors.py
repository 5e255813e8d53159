"""Errors meant for people: one line each, naming the cause and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Characters of a message: it repeats what was typed, and that can be a file by mistake.
LONGEST_MESSAGE = 600
_ELIDED = " [...] "


class ForwardInfluenceError(Exception):
    """Something failed while working; the command line exits with 1."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class StorageError(ForwardInfluenceError):
    """A folder cannot be written: no document of a run can be kept, so that the run ends at once."""


class UsageError(ForwardInfluenceError):
    """The request itself cannot be met as written; the command line exits with 2."""

    exit_code = 2


#: Characters that steer a terminal or turn a line around; tabs and line breaks do no harm.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def steering(text: str) -> str | None:
    """The first character of a name that could steer a terminal which shows it, written out; None where none does."""
    found = _STEERING.search(text)
    return None if found is None else repr(found.group())[1:-1]


def printable(text: str) -> str:
    """A text with what could steer a terminal written out."""
    return _STEERING.sub(lambda found: repr(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """A text as one line of at most `LONGEST_MESSAGE` characters, control characters made visible.

    What is too long loses its middle: the cause stands at the beginning of a message and the remedy at its end.
    """
    line = " ".join(str(text).split())
    if len(line) > LONGEST_MESSAGE:  # before it is escaped, which takes time in proportion
        half = (LONGEST_MESSAGE - len(_ELIDED)) // 2
        line = line[:half] + _ELIDED + line[-half:]
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return shown if len(shown) <= LONGEST_MESSAGE else one_line(shown)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word[:200], list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def alternatives(known: Sequence[str]) -> str:
    """What there is to choose from, in words: "a, b or c"."""
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"
