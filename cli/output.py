"""Output that any terminal can show: what its encoding lacks is written in ASCII, and nothing fails for it."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

#: What stands for characters that we and rich write. Letters of a text have no stand-in: they are escaped (\\xe9).
_STANDS_FOR = {
    **dict.fromkeys("–—‒−‐‑", "-"),
    **dict.fromkeys("‘’‚", "'"),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("─━╌╍┄┅┈┉═╴╶╸╺", "-"),
    **dict.fromkeys("│┃┆┇┊┋║╎╏", "|"),
    "…": "...",
    "×": "x",
    "÷": "/",
    "±": "+-",
    "·": ".",
    "•": "*",
    "∞": "inf",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
    "\u00a0": " ",
}
_HANDLER = "forward_influence_stand_ins"
_ASCII = "forward_influence_ascii"


def _stand_in(character: str) -> str:
    if character in _STANDS_FOR:
        return _STANDS_FOR[character]
    if "\u2500" <= character <= "\u257f":  # corners and crossings of boxes
        return "+"
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


class _AsciiEncoder(codecs.IncrementalEncoder):
    def encode(self, text: str, final: bool = False) -> bytes:
        return text.encode("ascii", self.errors)


def _ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII under another name: libraries take the usual one for a mistake, and write UTF-8 instead."""
    if name != _ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(plain.encode, plain.decode, incrementalencoder=_AsciiEncoder, name=_ASCII,
                            incrementaldecoder=plain.incrementaldecoder)  # fmt: skip


codecs.register_error(_HANDLER, _replace)
codecs.register(_ascii)


def make_writable() -> None:
    """From here on, whatever is written to standard output and standard error can be."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if ascii_only else None, errors=_HANDLER)


def fits_encoding(text: str) -> bool:
    """Whether standard output can show a text as it is."""
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """A text as standard output will show it: what is laid out by width must have its stand-ins before."""
    return text if text.isascii() else text.encode(_encoding(), _HANDLER).decode(_encoding())


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def standard_input() -> str:
    """All of standard input, which is UTF-8, or what the terminal's encoding is.

    Raises:
        UsageError: it is neither.
    """
    from forward_influence.errors import UsageError

    binary: Any = getattr(sys.stdin, "buffer", None)
    if binary is None:  # something that stands in for it
        return sys.stdin.read()
    data = binary.read()
    for encoding in ("utf-8-sig", sys.stdin.encoding):
        try:
            return str(data.decode(encoding)).replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            where = error.start
    raise UsageError(
        f"standard input is not UTF-8: byte {where} is 0x{data[where]:02x}; write the prompt as UTF-8 text"
    )
