"""What kind of token a token is: classes that need only the text pieces and the ids of a context.

Words are looked for in the text that the pieces make together, so that a token's class does not depend on where a
vocabulary cuts: "does" + "n't", "doesn" + "'t" and "doesn" + "'" + "t" are function words alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

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

_SPECIAL = re.compile(
    r"<[|｜].*[|｜]>|</?(s|pad|unk|bos|eos|mask)>|<(start|end)_of_\w+>|\[(PAD|UNK|BOS|EOS|CLS|SEP|MASK|/?INST)\]",
    re.IGNORECASE,
)
#: A word in a text's outline (l a letter, m a mark on one): letters, or a clitic with its apostrophe (the 's of it's).
_WORD = re.compile(r"l[lm]*")
_CLITIC = re.compile(r"(?<=\S)['’](?:s|t|re|ve|ll|d|m)(?![^\W\d_])", re.IGNORECASE)


class Word(NamedTuple):
    """A word of a text: its characters are start <= i < stop."""

    start: int
    stop: int
    is_function: bool


class _Outline(dict[int, str]):
    """For `str.translate`: l for a letter, m for a mark on one, a space for everything else."""

    def __missing__(self, code: int) -> str:
        self[code] = {"L": "l", "M": "m"}.get(unicodedata.category(chr(code))[0], " ")
        return self[code]


_OUTLINE = _Outline()


@lru_cache(maxsize=200_000)  # pieces come from a vocabulary: what one looks like is worked out once
def _wordless_class(piece: str) -> str:
    stripped = piece.strip()
    if _SPECIAL.fullmatch(stripped):
        return "special"
    if not stripped:
        return "newline" if "\n" in piece or "\r" in piece else "space"
    return "digits" if any(c.isdigit() for c in stripped) else "punctuation"


def words(text: str) -> list[Word]:
    """The words of a text in order: runs of letters, and clitics, which are words of their own.

    English closed-class words and clitics are function words, and so is what "n't" negates (the "don" of "don't").
    """
    clitics = {m.start(): m.end() for m in _CLITIC.finditer(text)}
    found: list[Word] = []
    taken = 0
    for match in _WORD.finditer(text.translate(_OUTLINE)):
        start, stop = match.span()
        if start < taken:  # the letters of a clitic
            continue
        word = text[start:stop].lower()
        clitic = clitics.get(stop)
        negated = clitic is not None and word.endswith("n") and text[stop + 1 : clitic].lower() == "t"
        found.append(Word(start, stop, negated or word in FUNCTION_WORDS))
        if clitic is not None:
            found.append(Word(stop, clitic, True))
            taken = clitic
    return found


def _placed(pieces: Sequence[str]) -> list[tuple[Word | None, bool]]:
    """For each piece the first word that it holds something of, and whether it holds its beginning.

    An empty piece, the rest of a character that began in the piece before, lies where that one lies.
    """
    special = [_wordless_class(piece) == "special" for piece in pieces]
    text = "".join(" " * len(p) if out else p for p, out in zip(pieces, special, strict=True))
    stops = list(accumulate(map(len, pieces)))
    waiting = iter(words(text))
    word = next(waiting, None)
    placed: list[tuple[Word | None, bool]] = []
    for piece, stop in zip(pieces, stops, strict=True):
        if not piece and placed:
            placed.append((placed[-1][0], False))
            continue
        start = stop - len(piece)
        while word is not None and word.stop <= start:
            word = next(waiting, None)
        inside = word if word is not None and word.start < stop else None
        placed.append((inside, inside is not None and inside.start >= start))
    return placed


def classes(pieces: Sequence[str]) -> NDArray[np.str_]:
    """The class of each piece of a text, one of `CLASSES`; (n,).

    A word of several pieces gives all of them its class, so that "with" + "in" is a function word.

    Args:
        pieces: joined, they are the text, as `tokenizing.text_pieces` gives them.
    """
    result: list[str] = []
    for piece, (word, _) in zip(pieces, _placed(pieces), strict=True):
        if word is not None:
            result.append("function word" if word.is_function else "content word")
        else:
            result.append(_wordless_class(piece) if piece or not result else result[-1])
    return np.array(result, dtype=np.str_)


def word_parts(pieces: Sequence[str]) -> NDArray[np.str_]:
    """ "word start", "word continuation" or "" (no word) for each piece of a text; (n,)."""
    return np.array(
        ["" if word is None else "word start" if begins else "word continuation" for word, begins in _placed(pieces)],
        dtype=np.str_,
    )


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
