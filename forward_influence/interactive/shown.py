"""Things that show themselves: tables with notes, pictures, and text with marks, in a notebook and in a terminal."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class ReadableTable:
    """A table as people read it.

    Attributes:
        title: what it shows, in a line.
        frame: the table as strings, for reading.
        values: the numbers behind it, with bounds and flags.
        notes: what to know before reading it.
    """

    title: str
    frame: pd.DataFrame
    values: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n".join([self.title, self.frame.to_string(index=False), *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = self.frame.to_html(index=False, escape=True, border=0)
        return f"<p><b>{html.escape(self.title)}</b></p>{table}<ul>{notes}</ul>"


@dataclass(frozen=True, repr=False)
class Drawing:
    """A picture with its caption.

    Attributes:
        figure: matplotlib's.
        caption: what it shows.
    """

    figure: Figure
    caption: str

    def save(self, path: str | Path) -> None:
        """Write it: .png, .svg or .pdf.

        Raises:
            OSError: it cannot be written there.
        """
        from forward_influence.analysis.formatting import style

        style.save(self.figure, Path(path))

    def __repr__(self) -> str:
        return f"Drawing({self.caption!r}; .save('picture.png') writes it)"

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.figure.savefig(written, format="png", dpi=150)
        return written.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {"image/png": self._repr_png_(), "text/plain": repr(self)}


@dataclass(frozen=True, repr=False)
class Marked:
    """A text with what a rule selected in it.

    Attributes:
        title: rule and document.
        pieces: the text of each token.
        shares: (tokens,) share of the layers and heads that selected the token, 0 to 1.
    """

    title: str
    pieces: list[str]
    shares: list[float]

    def __repr__(self) -> str:
        marked = [
            f"[{piece}]" if share >= 0.5 else piece for piece, share in zip(self.pieces, self.shares, strict=True)
        ]
        return f"{self.title}\n{''.join(marked)}"

    def _repr_html_(self) -> str:
        spans = "".join(
            f'<span title="token {i}: selected in {share:.0%} of layers and heads" '
            f'style="background:rgb(230 140 40 / {0.7 * share:.2f})">{html.escape(piece)}</span>'
            for i, (piece, share) in enumerate(zip(self.pieces, self.shares, strict=True))
        )
        legend = "the stronger the shade, the more layers and heads select the token"
        return (
            f"<p><b>{html.escape(self.title)}</b>; {legend}</p>"
            f'<div style="white-space:pre-wrap;line-height:1.6">{spans}</div>'
        )
