"""What kind of token a token is: classes that need only the decoded pieces and the ids of a context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: English closed-class words: determiners, pronouns, prepositions, conjunctions, auxiliaries, particles.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those each every either neither some any no all both half such another other own same
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves one ones who whom whose which what whoever whatever
    whichever someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
    about above across after against along amid among amongst around as at before behind below beneath beside besides
    between beyond by concerning despite down during except for from in inside into like near of off on onto out
    outside over past per since than through throughout till to toward towards under underneath until unto up upon
    via with within without
    and but or nor so yet if because although though unless whereas while whether when whenever where wherever lest
    be am is are was were been being do does did doing done have has had having can could may might must shall should
    will would ought need dare used
    not never n't there here then thus hence therefore however too also very just only even how why again ever
    """.split()  # noqa: SIM905
)

#: Exclusive classes; every token is in exactly one.
CLASSES = ("function word", "content word", "digits", "punctuation", "newline", "space", "special")
#: Frequency bands: each holds about a quarter of all context tokens.
BANDS = ("rarest quarter", "rarer quarter", "commoner quarter", "commonest quarter")

_SPECIAL = re.compile(r"<\|.*\|>|</?(s|pad|unk|bos|eos|mask)>|\[(PAD|UNK|BOS|EOS|CLS|SEP|MASK)\]", re.IGNORECASE)
_CLITIC = re.compile(r"['’](s|t|re|ve|ll|d|m)$", re.IGNORECASE)


#: Pieces come from a vocabulary: what one looks like is worked out once.
_once = lru_cache(maxsize=200_000)


@_once
def plain(piece: str) -> str:
    """A piece with the markers of byte-level (Ġ, Ċ, ĉ) and SentencePiece (▁) vocabularies written as white space."""
    if piece.startswith(("Ġ", "Ċ", "ĉ")):
        marks = len(piece) - len(piece.lstrip("ĠĊĉ"))
        piece = piece[:marks].translate({ord("Ġ"): " ", ord("Ċ"): "\n", ord("ĉ"): "\t"}) + piece[marks:]
    return piece.replace("▁", " ")


@_once
def _is_of_word(text: str) -> bool:
    """Whether a piece holds a letter and is no special token."""
    return any(c.isalpha() for c in text) and not _SPECIAL.fullmatch(text.strip())


def word_spans(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Words as [start, stop) spans of pieces that hold a letter.

    A word begins at a piece with a letter that starts with white space, or that follows a piece without a letter or one
    that ends in white space; pieces with a letter that continue without white space belong to it. A clitic (the 's of
    it's, the 't of don't) is a word of its own.
    """
    spans: list[tuple[int, int]] = []
    previous = ""
    for i, piece in enumerate(map(plain, pieces)):
        if _is_of_word(piece):
            joins = (
                spans
                and spans[-1][1] == i
                and not piece[0].isspace()
                and not previous[-1:].isspace()
                and not _CLITIC.match(piece)
            )
            if joins:
                spans[-1] = (spans[-1][0], i + 1)
            else:
                spans.append((i, i + 1))
        previous = piece
    return spans


def classes(pieces: Sequence[str]) -> NDArray[np.str_]:
    """The class of each piece, one of `CLASSES`; (n,).

    A word of several pieces gets one class from the whole word, so that "with" + "in" is a function word.
    """
    texts = [plain(p) for p in pieces]
    result = [_wordless_class(text) for text in texts]
    for start, stop in word_spans(pieces):
        word = "".join(texts[start:stop]).strip().lower().replace("’", "'")
        negated = stop < len(texts) and texts[stop].replace("’", "'").lower() == "'t" and word.endswith("n")
        letters = word.strip("'\".,;:!?()[]-—–")
        is_function = letters in FUNCTION_WORDS or _CLITIC.fullmatch(word) is not None or negated
        for i in range(start, stop):
            result[i] = "function word" if is_function else "content word"
    return np.array(result, dtype=np.str_)


@_once
def _wordless_class(text: str) -> str:
    stripped = text.strip()
    if _SPECIAL.fullmatch(stripped):
        return "special"
    if not stripped:
        return "newline" if "\n" in text or "\r" in text else "space"
    return "digits" if any(c.isdigit() for c in stripped) else "punctuation"


def word_parts(pieces: Sequence[str]) -> NDArray[np.str_]:
    """ "word start", "word continuation" or "" (no word) for each piece; (n,)."""
    result = [""] * len(pieces)
    for start, stop in word_spans(pieces):
        result[start] = "word start"
        for i in range(start + 1, stop):
            result[i] = "word continuation"
    return np.array(result, dtype=np.str_)


def repetition(tokens: NDArray[np.int64]) -> NDArray[np.str_]:
    """ "first occurrence" or "repeated" for each token of a context, by its id; (n,)."""
    _, first = np.unique(tokens, return_index=True)
    result = np.full(len(tokens), "repeated", dtype="<U16")
    result[first] = "first occurrence"
    return result


def frequency_bands(counts: dict[int, int]) -> dict[int, str]:
    """The band of `BANDS` of each token id, from how often it occurs in all contexts of a run.

    Ids in order of frequency are cut into four parts of equal total count; ids of equal frequency share a band, the one
    that the middle of their total count lies in.
    """
    if not counts:
        return {}
    frequencies = np.array(list(counts.values()))
    values, how_many = np.unique(frequencies, return_counts=True)
    mass = values * how_many
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    band_of = {int(v): BANDS[min(3, int(4 * m))] for v, m in zip(values, middle, strict=True)}
    return {token: band_of[count] for token, count in counts.items()}
