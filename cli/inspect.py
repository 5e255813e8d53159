"""`inspect`: a document with what rules select in it, on the terminal, as a page, or as a table of scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from forward_influence.measurement.inspection import Inspected, View


def inspect_command(
    selector: Annotated[
        list[str] | None, typer.Option(help="One rule, or two side by side.", show_default=False)
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name from `models`, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    documents: Annotated[list[str] | None, typer.Option(help="As in `measure`; the first is shown.")] = None,
    budget: Annotated[str, typer.Option(help="Fraction of the context, or count of tokens.")] = "0.2",
    context: Annotated[int, typer.Option(help="Context tokens.")] = 512,
    mode: Annotated[str, typer.Option(help="drop: what would be removed; keep: what would stay.")] = "drop",
    layer: Annotated[int | None, typer.Option(help="Of the model; shares over all layers otherwise.")] = None,
    head: Annotated[int | None, typer.Option(help="KV head; shares over all heads otherwise.")] = None,
    protect_first: Annotated[int, typer.Option(help="First tokens that no rule selects.")] = 4,
    protect_last: Annotated[int, typer.Option(help="Last tokens that no rule selects.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the order of documents and of random rules.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write a page (.html) or per-token scores (.parquet).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
) -> None:
    """Show a context shaded by a rule's scores, with what it selects underlined; two rules side by side."""
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.data.asked import Asked
    from forward_influence.errors import ForwardInfluenceError, UsageError
    from forward_influence.measurement.inspection import html_page, inspect_document, scores_table
    from forward_influence.measurement.request import Request
    from forward_influence.models.loading import load_model, resolve_spec

    rules = tuple(selector or ["attention"])
    if len(rules) > 2:
        raise UsageError(f"{len(rules)} rules do not fit side by side; give one or two")
    if out is not None and out.suffix not in (".html", ".parquet"):
        raise UsageError(f"cannot write {out}; --out must end in .html or .parquet")
    request = Request(
        selectors=rules, budgets=(budget,), context=context, continuation=3, mode=mode, protect_first=protect_first,
        protect_last=protect_last, draws=1, seed=seed,
    )  # fmt: skip
    resolved = resolve_spec(model)
    request.check_positions(resolved.positions, model)
    prepared = prepare_documents(Asked(tuple(documents or ["sotu"]), 1), seed, resolved, request)
    loaded = load_model(resolved, device=device, dtype=dtype)
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
        raise ForwardInfluenceError(f"cannot write {out} ({error.strerror}); choose another --out") from error
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
