"""Errors meant for people: one line each, naming the cause and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class ForwardInfluenceError(Exception):
    """Something failed while working; the command line exits with 1."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))  # one line, whatever was typed that it repeats


class StorageError(ForwardInfluenceError):
    """A folder cannot be written: no document of a run can be kept, so that the run ends at once."""


class UsageError(ForwardInfluenceError):
    """The request itself cannot be met as written; the command line exits with 2."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
