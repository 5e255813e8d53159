"""Influence of every part of a context by itself, drawn on the text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from forward_influence.analysis.formatting import style

#: Characters in a line, and inches of a character and a line.
_COLUMNS = 96
_WIDTH, _LINE = 0.068, 0.155
_FONT = 7.6


def by_token(frame: pd.DataFrame, tokens: int) -> np.ndarray:
    """Mean KL of each token over the blocks that it is in and all distances (tokens,); NaN where it is in none."""
    sizes = frame["high"] - frame["low"]
    each = (frame["kl"] * sizes).groupby([frame["first"], frame["last"]]).sum() / int(frame["high"].max())
    total, count = np.zeros(tokens), np.zeros(tokens)
    for (first, last), value in each.items():
        total[first:last] += value
        count[first:last] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def draw_text(frame: pd.DataFrame, pieces: Sequence[str], title: str = "") -> Figure:
    """The text of a context, each token on the colour of what removing it did; tokens that stayed have none.

    Args:
        frame: as `forward_influence.measurement.leave_one_out.influence_map` gives it.
        pieces: the text of each token of the context.
    """
    values = by_token(frame, len(pieces))
    known = values[values > 0]
    low, high = (float(known.min()), float(known.max())) if known.size else (1e-6, 1.0)
    norm = LogNorm(max(low, high / 1e4), max(high, low * 1.01))
    placed, lines = _placed(pieces)
    with style.house_style():
        figure = style.new_figure(_COLUMNS * _WIDTH + 0.3, lines * _LINE + 0.95)
        axes = figure.subplots()
        axes.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
        axes.set_title(title)
        axes.axis("off")
        colours = style.colour_map("mako_r")
        for token, line, column, text in placed:
            shade = norm(max(values[token], norm.vmin)) if np.isfinite(values[token]) else None
            if shade is not None:
                box = Rectangle((column, line), len(text), 1, facecolor=colours(float(shade)), linewidth=0)
                axes.add_patch(box)
            ink = "white" if shade is not None and shade > 0.55 else style.INK
            for i, character in enumerate(text):  # one by one, so that every font keeps the columns
                if character.strip():
                    axes.text(
                        column + i + 0.5, line + 0.5, character, family="monospace", fontsize=_FONT, color=ink,
                        ha="center", va="center", parse_math=False,
                    )  # fmt: skip
        scale = ScalarMappable(norm, colours)
        figure.colorbar(scale, ax=axes, orientation="horizontal", shrink=0.5, aspect=40, label="mean KL, nats")
        figure.canvas.draw()
        return figure


def _placed(pieces: Sequence[str]) -> tuple[list[tuple[int, int, int, str]], int]:
    """(token, line, column, text) of every part of a piece that lies on one line; how many lines there are."""
    placed, line, column = [], 0, 0
    for token, piece in enumerate(pieces):
        for number, part in enumerate(piece.replace("\t", "    ").split("\n")):
            if number:
                line, column = line + 1, 0
            shown = part
            while shown:
                if column + len(shown) > _COLUMNS and column:
                    line, column, shown = line + 1, 0, shown.lstrip(" ")
                    continue
                placed.append((token, line, column, shown[:_COLUMNS]))
                column += len(shown[:_COLUMNS])
                shown = shown[_COLUMNS:]
    return placed, line + 1
