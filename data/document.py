"""A text with a name and a fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forward_influence.data.spans import Span
from forward_influence.errors import UsageError
from forward_influence.utils.display import Displayed
from forward_influence.utils.files import sha256

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Document(Displayed):
    """A text with a name for people; the name is data and never a path.

    Attributes:
        text: of a conversation, its contents alone, for people; of token ids, nothing.
        fingerprint: SHA-256 of the text, of the conversation, or of the token ids.
        spans: named parts of the text, in characters.
        messages: of a conversation, which a model's chat template makes a text of; each has `role` and `content`.
        tokens: ready token ids.
    """

    name: str
    text: str
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in it but blanks."""
        return not self.tokens and not self.text.strip()

    def __repr__(self) -> str:
        return f"Document({self.name!r}: {len(self.text):,} characters)"


def make_document(
    name: str, text: str, metadata: Mapping[str, Any] | None = None, *, identity: str | None = None
) -> Document:
    """A document; Windows line ends become plain ones, control characters in the name become '?'.

    Args:
        identity: what its fingerprint is of, where that is not the text.

    Raises:
        UsageError: the text holds lone surrogates, which no encoding can write.
    """
    text = text.replace("\r\n", "\n")
    try:
        fingerprint = sha256(text)
    except UnicodeEncodeError as error:
        raise UsageError(f"{safe(name)}: character {error.start} is half of a surrogate pair, not text") from error
    return Document(safe(name), text, fingerprint if identity is None else sha256(identity), dict(metadata or {}))


def safe(name: str) -> str:
    """A name that a terminal, a table and a page can show: printable, at most 120 characters, never empty."""
    shown = "".join(character if character.isprintable() else "?" for character in name).strip()
    return (shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…") or "document"
