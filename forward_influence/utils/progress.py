"""How the library tells what it is doing, without printing: a small protocol that a front end implements."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress; the command line draws it, tests count it, the default ignores it."""

    def begin(self, total_tokens: int, what: str) -> None:
        """Work of `total_tokens` forward tokens starts."""

    def advance(self, tokens: int, what: str) -> None:
        """`tokens` more are done; `what` says what is being done now."""

    def message(self, text: str) -> None:
        """Something worth a line: a document skipped, a part redone."""

    def end(self) -> None:
        """The work that `begin` announced is over."""


class Labelled:
    """Passes on, with words in front of what is being done.

    Args:
        progress: where to.
        label: what to put in front, where it is not there already.
    """

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def begin(self, total_tokens: int, what: str) -> None:
        """As is."""
        self._progress.begin(total_tokens, what)

    def advance(self, tokens: int, what: str) -> None:
        """With the label."""
        self._progress.advance(tokens, what if what.startswith(self._label) else f"{self._label}{what}")

    def message(self, text: str) -> None:
        """As is."""
        self._progress.message(text)

    def end(self) -> None:
        """As is."""
        self._progress.end()


class Silent:
    """Ignores everything."""

    def begin(self, total_tokens: int, what: str) -> None: ...

    def advance(self, tokens: int, what: str) -> None: ...

    def message(self, text: str) -> None: ...

    def end(self) -> None: ...
