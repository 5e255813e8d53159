"""Parts of a text that are removed together: windows of tokens, and sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: A sentence ends with its mark, or with its line; blanks behind a mark belong to the next one, as in tokens.
_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)(?:[ \t]*\n)*|\n\s*")
#: The number of a list's line ends none.
_NUMBER = re.compile(r"\s*(?:\d+|[-*])[.)]?\s*")


def windows(first: int, last: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Windows of `size` tokens, every `stride` tokens, in [first, last); the last one may be shorter."""
    found = []
    for start in range(first, last, stride):
        found.append((start, min(start + size, last)))
        if start + size >= last:
            break
    return found


def sentence_blocks(pieces: Sequence[str], first: int, last: int) -> list[tuple[int, int]]:
    """The sentences of the tokens first <= i < last, as (first, behind the last) token of each; they cover all of them.

    A token that holds the end of one sentence and the beginning of the next belongs to the former.

    Args:
        pieces: the text of each token, from the context's first.
    """
    text = "".join(pieces[first:last])
    ends, begun = [], 0
    for found in _END.finditer(text):
        if not _NUMBER.fullmatch(text[begun : found.end()]):
            ends.append(found.end())
            begun = found.end()
    blocks, start, at = [], first, 0
    for i in range(first, last):
        at += len(pieces[i])
        if ends and at >= ends[0]:
            blocks.append((start, i + 1))
            start = i + 1
            ends = [end for end in ends if end > at]
    return [*blocks, (start, last)] if start < last else blocks
