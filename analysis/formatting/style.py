"""The house style of every picture: one look, and the same colour, marker and line for a rule wherever it appears."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Width of a column of a two-column paper, in inches; fonts are set for it.
COLUMN_WIDTH = 3.4
#: The ink of text and axes; in a report it becomes the page's own text colour.
INK = "#1b1b1b"
#: Lines that should recede: grids, noise floors.
FAINT = "#9a9a9a"
#: File endings that can be written.
FORMATS = ("png", "svg", "pdf")

# Okabe and Ito's colour-blind safe colours, without yellow (invisible on white); black gives way to the page's ink.
_BLUE, _VERMILLION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_ORANGE, _SKY, _GREY = "#E69F00", "#56B4E9", "#7a7a7a"
_COLOURS = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1, 1.1)), (0, (7, 2, 1, 2, 1, 2)))
_SOLID, _DASHED, _DASHDOT, _DOTTED, _LONG = _LINES


@dataclass(frozen=True)
class RuleStyle:
    """How a rule is drawn: colour (hex), marker and line style (matplotlib's)."""

    colour: str
    marker: str
    line: Any


#: Every rule of this package and every compressor by a name of its own; relatives share a colour.
_KNOWN: dict[str, RuleStyle] = {
    "attention": RuleStyle(_BLUE, "o", _SOLID),
    "snapkv": RuleStyle(_BLUE, "h", _DASHDOT),
    "adakv": RuleStyle(_BLUE, "P", _DOTTED),
    "pyramid": RuleStyle(_BLUE, "^", _LONG),
    "pyramidkv": RuleStyle(_BLUE, "v", _DASHED),
    "entropy": RuleStyle(_VERMILLION, "s", _DASHED),
    "low-entropy": RuleStyle(_VERMILLION, "D", _LONG),
    "rpc": RuleStyle(_VERMILLION, "v", _DOTTED),
    "rkv": RuleStyle(_VERMILLION, "P", _DASHDOT),
    "infokv": RuleStyle(_GREEN, "^", _DASHDOT),
    "keydiff": RuleStyle(_GREEN, "D", _DASHED),
    "streaming": RuleStyle(_GREEN, "<", _DOTTED),
    "streamingllm": RuleStyle(_GREEN, ">", _SOLID),
    "surprisal": RuleStyle(_PURPLE, "D", _LONG),
    "tova": RuleStyle(_PURPLE, "v", _DOTTED),
    "mix": RuleStyle(_PURPLE, "o", _SOLID),
    "product": RuleStyle(_PURPLE, "s", _DASHDOT),
    "h2o": RuleStyle(_ORANGE, "v", _SOLID),
    "observed-attention": RuleStyle(_ORANGE, "P", _DASHED),
    "knorm": RuleStyle(_ORANGE, "h", _DASHDOT),
    "expected-attention": RuleStyle(_SKY, "D", _SOLID),
    "recent": RuleStyle(_SKY, "<", _DASHDOT),
    "first": RuleStyle(_SKY, ">", _DOTTED),
    "caote": RuleStyle(_BLUE, "<", _DASHED),
    "criticalkv": RuleStyle(_BLUE, ">", _LONG),
    "chunkkv": RuleStyle(_BLUE, "X", _DOTTED),
    "kvzip": RuleStyle(_VERMILLION, "o", _SOLID),
    "kvzip-plus": RuleStyle(_VERMILLION, "^", _DASHED),
    "lazy-eviction": RuleStyle(_VERMILLION, "<", _SOLID),
    "triattention": RuleStyle(_SKY, "^", _DASHED),
    "expected-attention-adakv": RuleStyle(_SKY, "s", _LONG),
    "q-filter": RuleStyle(_GREEN, "o", _LONG),
    "lagkv": RuleStyle(_GREEN, "s", _DASHDOT),
    "cur": RuleStyle(_ORANGE, "^", _LONG),
    "capkv": RuleStyle(_ORANGE, "s", _DOTTED),
    "compactor": RuleStyle(_PURPLE, "^", _DASHED),
    "vase": RuleStyle(_PURPLE, "X", _LONG),
    "prompt-recent": RuleStyle(_GREY, "<", _SOLID),
    "random": RuleStyle(_GREY, "X", _DOTTED),
    "random-protected": RuleStyle(_GREY, "D", _DASHDOT),
    "position-matched": RuleStyle(_GREY, "P", _DASHED),
    "oracle": RuleStyle(INK, "s", _SOLID),
    "full": RuleStyle(INK, "o", _DASHED),
}

_RC: Any = {  # matplotlib 3.11 types its keys one by one, 3.8 does not
    "figure.constrained_layout.use": True,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.28,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "forward-influence",
}


def rule_style(selector: str) -> RuleStyle:
    """The style of a rule, from its name alone.

    A well-known rule has its own; `name:parameters` keeps the colour of `name` and takes marker and line from the
    whole text; a rule of one's own takes all three from its text.
    """
    if selector in _KNOWN:
        return _KNOWN[selector]
    digest = hashlib.sha256(selector.encode()).digest()
    name = selector.split(":")[0]
    colour = _KNOWN[name].colour if name in _KNOWN else _COLOURS[digest[0] % len(_COLOURS)]
    return RuleStyle(colour, _MARKERS[digest[1] % len(_MARKERS)], _LINES[digest[2] % len(_LINES)])


def rule_styles(selectors: Sequence[str]) -> dict[str, RuleStyle]:
    """Styles for all rules of a run, no two alike.

    Give every rule of the run, drawn or not, so that a rule looks the same in all of the run's pictures. A rule whose
    own style is taken (by an earlier name in alphabetical order, well-known names first) gets the next marker and line.
    """
    styles: dict[str, RuleStyle] = {}
    taken: set[tuple[str, str]] = set()
    for selector in sorted(set(selectors), key=lambda s: (s not in _KNOWN, s)):
        style = rule_style(selector)
        marker, line = _MARKERS.index(style.marker), _LINES.index(style.line)
        for step in range(len(_MARKERS)):
            candidate = _MARKERS[(marker + step) % len(_MARKERS)]
            if (style.colour, candidate) not in taken:
                style = RuleStyle(style.colour, candidate, _LINES[(line + step) % len(_LINES)])
                break
        taken.add((style.colour, style.marker))
        styles[selector] = style
    return styles


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style inside the block; matplotlib's settings are as before after it."""
    with mpl.rc_context(), sns.axes_style("ticks"):
        mpl.rcParams.update(_RC)
        yield


def colour_map(name: str) -> Any:
    """A colour map of seaborn's that runs evenly from light to dark, such as "mako" or "mako_r"."""
    return sns.color_palette(name, as_cmap=True)


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.5) -> Figure:
    """An empty figure (inches) that belongs to no window and to no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as png, svg or pdf, by the ending of `path`; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower().lstrip(".")
    metadata: Mapping[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending]
    with mpl.rc_context(_RC):
        figure.savefig(path, format=ending, metadata=dict(metadata), facecolor="white")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an <svg> element for a page.

    Text stays text and takes the page's colour; every id starts with `name`, so that several pictures fit in one page.

    Args:
        name: unique in the page; letters, digits and hyphens.
        description: what a screen reader says; must be escaped for an attribute already.
    """
    buffer = io.StringIO()
    settings: Any = {**_RC, "svg.fonttype": "none"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\bid=\"", f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"(xlink:href|href)=\"#", f'\\1="#{name}-', svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
