"""Texts as token ids, with what the tokenizer puts before a text apart from it; token ids as pieces of their text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from forward_influence.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: What decoders write for bytes that are no whole character.
_REPLACEMENT = "\ufffd"
#: (tokens before, tokens) that are decoded together to cut pieces from, the next where the one before finds nothing:
#: one token before gives the space that decoders strip from a beginning; in a run of bytes that stand for characters
#: (byte fallback) the text must begin at a whole one, which has up to four.
_ATTEMPTS = ((1, 64), (2, 64), (3, 64), (4, 64), (64, 512))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    plain, dressed = encode(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return dressed[:start]
    return []


def encode_around(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, special: bool = False
) -> tuple[list[int], int, int]:
    """A whole text as token ids, and which of them hold a part of it.

    A text is never tokenised in pieces: tokens that span the join of two pieces would be lost. Where an end of the part
    lies inside a token, that token belongs to the part; blanks at its ends need not.

    Args:
        start, end: characters text[start:end] of the part, not all of them blank.
        special: with the tokenizer's special tokens around the text.

    Returns:
        (ids, first, after): the part lies in ids[first:after]. With a tokenizer that tells where its tokens come from
        (a fast one) they are as few as can be; with another they may begin a little earlier or end a little later.
    """
    part = text[start:end]
    start, end = end - len(part.lstrip()), start + len(part.rstrip())
    if not tokenizer.is_fast:
        return _by_common_ends(tokenizer, text, start, end, special)
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    ids, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    # tokens of no characters (special ones around the text) are in neither
    touching = [i for i, (begin, stop) in enumerate(places) if begin < end and stop > start and stop > begin]
    return (ids, touching[0], touching[-1] + 1) if touching else (ids, 0, len(ids))


def _by_common_ends(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, special: bool
) -> tuple[list[int], int, int]:
    """`encode_around` by what the whole has in common with the text before the part, and with the text after it."""

    def tokens(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=special, verbose=False)["input_ids"])

    ids = tokens(text)
    first = _common(ids, tokens(text[:start]))
    after = len(ids) - _common(ids[first:][::-1], tokens(text[end:])[::-1])
    return ids, first, after


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many tokens, or characters, two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def text_pieces(tokenizer: PreTrainedTokenizerBase | None, tokens: Iterable[int]) -> list[str]:
    """The text of each token in its place: joined, the pieces are the decoded text (special tokens in, no clean-up).

    Tokens decoded one by one are something else: SentencePiece's lose the space before a word, a part of a character
    becomes U+FFFD. Here a character whose bytes lie in several tokens belongs to the first of them, and the others have
    "" (with a decoder that leaves incomplete bytes out, to the last); bytes that become no character stay U+FFFD.

    Args:
        tokenizer: any of transformers; None where there is none: a piece is then the id and a space.
        tokens: (n,) ids.

    Returns:
        n pieces.
    """
    ids = [int(token) for token in tokens]
    if tokenizer is None:
        return [f"{i} " for i in ids]

    def decoded(part: Sequence[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole = decoded(ids)
    pieces: list[str] = []
    at = 0
    while len(pieces) < len(ids):
        start = len(pieces)
        attempts = (*_ATTEMPTS, (start, len(ids)))
        found = (_pieces_from(decoded, ids, start, min(before, start), size, whole, at) for before, size in attempts)
        pieces += next(filter(None, found))  # the last attempt decodes all, which is `whole`
        at += sum(map(len, pieces[start:]))
    return pieces


def _pieces_from(
    decoded: Callable[[Sequence[int]], str], ids: list[int], start: int, before: int, size: int, whole: str, at: int
) -> list[str]:
    """Pieces of `whole[at:]` for tokens from `start` on, at most `size`, up to the last that ends a character.

    Args:
        before: tokens before `start` that are decoded with them.
    """
    base = decoded(ids[start - before : start]) if before < start else whole[:at]
    ends, complete, is_open, longest = [at], 0, False, len(base)
    for stop in range(start + 1, min(start + size, len(ids)) + 1):
        prefix = decoded(ids[start - before : stop])
        wanted = base + whole[at : at + len(prefix)]
        same = len(prefix) if wanted.startswith(prefix) else _common(prefix, wanted)
        end, rest = at + max(0, same - len(base)), prefix[same:]
        if rest and not rest.strip(_REPLACEMENT):  # a character begins here, or goes on; only its bytes are there yet
            end = max(ends[-1] + (not is_open), end + 1)
        is_open = bool(rest)
        ends.append(min(max(ends[-1], end), len(whole)))
        # One that adds no text may be a byte that the decoder leaves out until its character is whole.
        if ends[-1] == len(whole) if stop == len(ids) else not rest and len(prefix) > longest:
            complete, longest = len(ends) - 1, len(prefix)
    return [whole[a:b] for a, b in pairwise(ends[: complete + 1])]


def wants_chat(tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> bool:
    """Whether to use a chat template: as asked, or where there is one.

    Raises:
        UsageError: chat is asked for and there is no template.
    """
    there = bool(getattr(tokenizer, "chat_template", None))
    if chat and not there:
        raise UsageError("this model has no chat template; leave `chat` out, or choose an instruction-tuned model")
    return there if chat is None else chat
