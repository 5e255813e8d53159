"""`inspect`: a document with what rules select in it, on the terminal, as a page, or as a table of scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import Given, Only, configured
from forward_influence.data.asked import Asked
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, READING, Configuration, described, option

if TYPE_CHECKING:
    from rich.text import Text

    from forward_influence.measurement.inspection import Inspected, View


@described
@dataclass(frozen=True)
class Looking(Configuration):
    """What of a document is shown, and where."""

    layer: int | None = option(None, "Of the model.", READING, shown="shares over all layers")
    head: int | None = option(None, "KV head.", READING, shown="shares over all heads")
    out: Path | None = option(
        None, "Write a page (.html) or per-token scores (.parquet).", BASICS, shown="the terminal"
    )


@configured
def inspect_command(
    recipe: Recipe,
    documents: Annotated[Asked, Only("documents", documents_help="As in `measure`; the first is shown.")],
    choices: Annotated[
        Choices,
        Only(
            "selectors",
            "budgets",
            "context",
            "mode",
            "protect_first",
            "protect_last",
            "seed",
            selectors=("attention",),
            selectors_help="One rule, or two side by side.",
            budgets_help="Fraction of the context, or count of tokens.",
            context=512,
            mode_help="drop: what would be removed; keep: what would stay.",
        ),
    ],
    looking: Looking,
    given: Given,
) -> None:
    """Show a context shaded by a rule's scores, with what it selects underlined; two rules side by side."""
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.measurement.inspection import html_page, inspect_document, scores_table
    from forward_influence.measurement.request import Request

    out, layer, head = looking.out, looking.layer, looking.head
    if len(choices.selectors) > 2:
        raise UsageError(f"{len(choices.selectors)} rules do not fit side by side; give one or two")
    if len(choices.budgets) > 1:
        raise UsageError(f"{len(choices.budgets)} budgets cannot be shown at once; give `budgets` once")
    if out is not None and out.suffix not in (".html", ".parquet"):
        raise UsageError(f"cannot write {out}; `out` must end in .html or .parquet")
    request = Request(**vars(replace(choices, continuation=3, draws=1)))
    resolved = recipe.resolved()
    request.check_positions(resolved.positions, recipe.model)
    prepared = prepare_documents(replace(documents, max_documents=1), request.seed, resolved, request)
    loaded = load_shown(recipe, resolved)
    found = inspect_document(loaded, prepared.documents[0], request)
    if out is None:
        _show(found, layer, head)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".html":
            out.write_text(html_page(found, layer, head), encoding="utf-8")
        else:
            scores_table(found).to_parquet(out, index=False)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {out} ({error.strerror}); choose another `out`") from error
    typer.echo(f"written to {out}")


#: Characters of a line of text where the output is no terminal.
_WIDEST = 160
#: Characters that a frame needs beside its title.
_FRAME = 6


def _show(found: Inspected, layer: int | None, head: int | None) -> None:
    """Print the document, once, or twice side by side where the names of the rules fit."""
    from rich.columns import Columns
    from rich.panel import Panel

    from forward_influence.cli import tables

    out = tables.console()
    views = [found.view(i, layer, head) for i in range(len(found.rules))]
    line = min(out.width, _WIDEST)
    named = max(len(view.rule) for view in views) + _FRAME
    beside = len(views) > 1 and max(20, named) <= (line - 2) // len(views)  # else each below the other
    width = max(20, (line - 2) // (len(views) if beside else 1))
    plain = out.color_system is None  # piped, NO_COLOR: neither shade nor underlining would be seen
    panels = [
        Panel(_marked(found, view) if plain else _shaded(found, view), title=_title(view, width), width=width)
        for view in views
    ]
    if beside:
        out.print(Columns(panels, padding=(0, 0)))
    else:
        for view, panel in zip(views, panels, strict=True):
            if _title(view, width) is None:  # not in a frame that would cut it
                out.print(view.rule, markup=False, soft_wrap=True)
            out.print(panel)
    legend = found.legend(layer, head, "in [brackets]").partition("; ")[2] if plain else found.legend(layer, head)
    out.print(f"{found.name}: {found.caption(layer, head)}\n{legend}", markup=False, highlight=False)


def _title(view: View, width: int) -> Text | None:
    """The rule's name, where the frame has room for it."""
    from rich.text import Text

    return Text(view.rule) if len(view.rule) + _FRAME <= width else None


def _shaded(found: Inspected, view: View) -> Text:
    """The text, each token's background by its rank, bold and underlined where it is selected."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    text = Text()
    for piece, rank, share in zip(found.pieces, view.ranks, view.selected, strict=True):
        light = int(255 - 175 * float(rank))
        dark = light < 150
        style = Style(
            color=Color.from_rgb(255, 255, 255) if dark else Color.from_rgb(0, 0, 0),
            bgcolor=Color.from_rgb(light, int(255 - 90 * float(rank)), 255),
            bold=share >= 0.5,
            underline=share >= 0.5,
        )
        text.append(_printable(piece), style)
    return text


def _marked(found: Inspected, view: View) -> Text:
    """The text without styles, runs of selected tokens in brackets."""
    from rich.text import Text

    text, inside = "", False
    for piece, share in zip(found.pieces, view.selected, strict=True):
        selected, shown = bool(share >= 0.5), _printable(piece)
        if selected != inside:  # brackets stand at the word, not at the space before it
            word = shown.lstrip() or shown
            blank = shown[: len(shown) - len(word)]
            shown = f"{blank}[{word}" if selected else f"]{shown}"
        text, inside = text + shown, selected
    return Text(text + "]" * inside)


def _printable(piece: str) -> str:
    """A token's text without what could control a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in piece)
