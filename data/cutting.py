"""Documents cut to context + continuation tokens.

Special tokens: what the tokenizer puts before a text (a begin-of-sequence token, mostly, or nothing) begins every
segment, the first and the later ones alike, and counts as context, so that segments differ in their text only. What it
would put after a text is left out, for the text goes on. Special tokens written out inside a text are read as the
tokenizer reads them by default. Conversations are what the model's chat template makes of them, and token ids are taken
as they are: nothing is put before either.

Where spans decide (`SpanChoice`), a document is one segment as long as its spans are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forward_influence.data.chat import rendered
from forward_influence.data.document import Document
from forward_influence.data.spans import Layout, Span, SpanChoice, lay_out
from forward_influence.errors import UsageError
from forward_influence.utils.display import Displayed
from forward_influence.utils.tokenization import encode, encode_around, leading_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cut(Displayed):
    """A document, its segments (token ids, int64, shape (context + continuation,)), and its length in tokens.

    Where spans decide what is measured, `layout` says how.
    """

    document: Document
    segments: tuple[Tensor, ...]
    length: int
    layout: Layout | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(segment)) for segment in self.segments)
        return f"Cut({self.document.name!r}: segments of {sizes} of its {self.length:,} tokens)"


@dataclass(frozen=True)
class Skipped:
    """A document that is not measured, and why.

    Attributes:
        length: its tokens, where it is too short and could be measured with less context and continuation.
    """

    name: str
    reason: str
    length: int | None = None


@dataclass(frozen=True)
class Prepared:
    """The documents to measure, those skipped on the way, and how many were never looked at."""

    documents: tuple[Cut, ...]
    skipped: tuple[Skipped, ...]
    unseen: int


@dataclass(frozen=True)
class Encoded:
    """A document as token ids, those that begin each of its segments, and its spans in tokens (ascending, apart)."""

    leading: list[int]
    tokens: list[int]
    spans: tuple[Span, ...]


def encoded(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """A document as a model reads it; spans count from its first token, behind those that lead.

    Raises:
        UsageError: it is a conversation, and the model has no chat template or one that refuses it.
    """
    if document.tokens:
        return Encoded([], list(document.tokens), ())
    text, spans, leading = document.text, list(document.spans), []
    if document.messages:
        text, spans = rendered(tokenizer, document.messages)
    else:
        leading = leading_tokens(tokenizer)
    placed: list[Span] = []
    for span in spans:
        _, first, after = encode_around(tokenizer, text, span.start, span.end)
        first = max(first, placed[-1].end if placed else 0)  # a token on both sides of an end belongs to the first
        if first < after:
            placed.append(Span(span.name, first, after))
    return Encoded(leading, encode(tokenizer, text), tuple(placed))


def cut(
    document: Document, tokenizer: PreTrainedTokenizerBase, context: int, continuation: int, segments: int = 1
) -> Cut | Skipped:
    """Cut a document into `segments` pieces of context + continuation tokens, or say why it is skipped.

    Pieces do not overlap; the first begins the document, the last of several ends it, the others lie evenly between.
    """
    import torch

    made = encoded(document, tokenizer)
    leading, tokens = made.leading, made.tokens
    body = context + continuation - len(leading)
    if body < 1 or continuation < 1 or segments < 1:
        raise UsageError(
            f"context {context} + continuation {continuation} in {segments} segments leaves no text to cut"
        )
    needed = segments * body
    if len(tokens) < needed:
        pieces = f" in {segments} segments" if segments > 1 else ""
        return Skipped(document.name, f"{len(tokens)} tokens, {needed} needed{pieces}", len(tokens))
    spare = len(tokens) - body
    starts = [0] if segments == 1 else [spare * i // (segments - 1) for i in range(segments)]
    pieces_ids = [leading + tokens[start : start + body] for start in starts]
    return Cut(document, tuple(torch.tensor(ids, dtype=torch.int64) for ids in pieces_ids), len(tokens))


def cut_by_spans(
    document: Document, tokenizer: PreTrainedTokenizerBase, choice: SpanChoice, longest: int | None = None
) -> Cut | Skipped:
    """One segment up to the end of what is measured, with its layout, or why the document is skipped.

    Args:
        longest: positions that the model was made for.
    """
    import torch

    made = encoded(document, tokenizer)
    ahead = len(made.leading)
    layout = lay_out([Span(s.name, s.start + ahead, s.end + ahead) for s in made.spans], choice)
    if isinstance(layout, str):
        return Skipped(document.name, layout)
    whole = layout.context + layout.continuation
    if longest is not None and whole > longest:
        return Skipped(document.name, f"{whole} tokens, but the model was made for {longest} positions")
    ids = torch.tensor((made.leading + made.tokens)[:whole], dtype=torch.int64)
    return Cut(document, (ids,), len(made.tokens), layout)


def prepare(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    context: int = 0,
    continuation: int = 0,
    segments: int = 1,
    max_documents: int | None = None,
    *,
    spans: SpanChoice | None = None,
    longest: int | None = None,
) -> Prepared:
    """Cut documents in the order given until `max_documents` are long enough; the rest is not even tokenised.

    A document whose text was already taken under another name is skipped: it would count twice.

    Args:
        spans: they decide instead of `context`, `continuation` and `segments`.
        longest: as of `cut_by_spans`.

    Raises:
        UsageError: none is long enough, or has the spans.
    """
    if max_documents is not None and max_documents < 1:
        raise UsageError(f"`max_documents` {max_documents}: at least one document is needed")
    taken: list[Cut] = []
    skipped: list[Skipped] = []
    first: dict[str, str] = {}
    waiting = list(documents)
    seen = 0
    for document in waiting:
        if max_documents is not None and len(taken) >= max_documents:
            break
        seen += 1
        if document.fingerprint in first:
            skipped.append(Skipped(document.name, f"the same text as {first[document.fingerprint]}"))
            continue
        first[document.fingerprint] = document.name
        if spans is None:
            piece = cut(document, tokenizer, context, continuation, segments)
        else:
            piece = cut_by_spans(document, tokenizer, spans, longest)
        if isinstance(piece, Skipped):
            skipped.append(piece)
        else:
            taken.append(piece)
    if not taken:
        raise UsageError(
            _none_left(skipped, context, continuation, segments) if spans is None else _none_by_spans(skipped)
        )
    return Prepared(tuple(taken), tuple(skipped), len(waiting) - seen)


def _none_by_spans(skipped: list[Skipped]) -> str:
    if not skipped:
        return "there are no documents"
    example = f"{skipped[0].name}: {skipped[0].reason}"
    return (
        f"none of {len(skipped)} documents can be measured by spans ({example}); conversations (file.jsonl:messages) "
        "and fields put together (file.jsonl:prompt+response) have spans"
    )


def _none_left(skipped: list[Skipped], context: int, continuation: int, segments: int) -> str:
    if not skipped:
        return "there are no documents"
    example = f"{skipped[0].name}: {skipped[0].reason}"
    times = f", {segments} times" if segments > 1 else ""
    return (
        f"none of {len(skipped)} documents is long enough for context {context} + continuation {continuation}{times} "
        f"({example}); ask for less, or take longer documents"
    )
