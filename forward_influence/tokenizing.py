"""Texts as token ids, with what the tokenizer puts before a text apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
