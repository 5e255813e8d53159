"""`influence-map`: every token of a short context removed by itself, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import Given, Only, configured
from forward_influence.data.asked import Asked
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.measurement.choices import MapChoices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, Configuration, described, option

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.measurement.leave_one_out import MapControls


@described
@dataclass(frozen=True)
class Map(Configuration):
    """Which document is mapped, and where to."""

    out: Path = option(Path("influence-map.parquet"), "The map, .parquet; the picture lies beside it as .png.", BASICS)
    seed: int = option(0, "Of the order of documents.", BASICS)


@configured
def influence_map_command(
    recipe: Recipe,
    documents: Annotated[Asked, Only("documents", documents_help="As in `measure`; the first is mapped.")],
    choices: MapChoices,
    result: Map,
    given: Given,
) -> None:
    """Measure every token of a short context by itself: leave-one-out, exact. A stopped map goes on where it was."""
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.measurement.leave_one_out import MapRequest, influence_map, read_controls
    from forward_influence.measurement.request import Request
    from forward_influence.models.holding import holding

    out, block = result.out, choices.block
    if out.suffix != ".parquet":
        raise UsageError(f"cannot write {out}; `out` must end in .parquet")
    wanted = MapRequest(**vars(choices))
    spans = {name: getattr(choices, name) for name in ("measure_on", "context_of", "candidates_of")}
    request = Request(
        selectors=("recent",), budgets=("1",), context=wanted.context, continuation=wanted.continuation,
        protect_first=0, protect_last=0, **spans,
    )  # fmt: skip
    resolved = recipe.resolved()
    if request.spans is None:
        request.check_positions(resolved.positions, recipe.model)
    prepared = prepare_documents(replace(documents, max_documents=1), result.seed, resolved, request)
    document = prepared.documents[0]
    layout = document.layout
    if layout is not None:
        wanted = replace(wanted, context=layout.context, continuation=layout.continuation, layout=layout)
    loaded = load_shown(recipe, resolved)
    name = document.document.name
    frame = influence_map(loaded, document.segments[0], wanted, out, name=name, progress=TerminalProgress())
    from forward_influence.analysis.formatting import style
    from forward_influence.analysis.plots.influence_map import draw_map
    from forward_influence.analysis.plots.influence_text import draw_text
    from forward_influence.utils.tokenization import text_pieces

    picture = out.with_suffix(".png")
    what = "each token removed by itself" if block == 1 else f"every {block} neighbouring tokens removed by themselves"
    what = "each sentence removed by itself" if wanted.sentences else what
    on_text = out.with_name(f"{out.stem}-text.png")
    try:
        style.save(draw_map(frame, f"{name}: {what}, {wanted.effect} effect"), picture)
        pieces = text_pieces(loaded.tokenizer, document.segments[0][: wanted.context].tolist())
        style.save(draw_text(frame, pieces, f"{name}: {what}, {wanted.effect} effect"), on_text)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {picture} ({error.strerror}); choose another `out`") from error
    _show(frame, read_controls(out))
    for line in filter(
        None, [holding(loaded.anatomy.kinds), f"map: {out}", f"picture: {picture}", f"on the text: {on_text}"]
    ):
        typer.echo(line)


def _show(frame: pd.DataFrame, controls: MapControls) -> None:
    """The ten strongest tokens, and what to read them against."""
    import pandas as pd

    from forward_influence.cli import tables
    from forward_influence.influence.noise_floor import FLAG_FACTOR

    weighted = frame.assign(total=frame["kl"] * (frame["high"] - frame["low"]))
    each = weighted.groupby(["first", "last", "text"], sort=False)["total"].sum() / frame["high"].max()
    top = each.sort_values(ascending=False).head(10).reset_index()
    shown = pd.DataFrame(
        {
            "token": [str(i) if j == i + 1 else f"{i}-{j - 1}" for i, j in zip(top["first"], top["last"], strict=True)],
            "text": [repr(text)[1:-1] for text in top["text"]],
            "mean KL": [tables.number(v) for v in top["total"]],
        }
    )
    tables.show(shown, "the strongest tokens, mean KL in nats over the continuation")
    weak = int((each < FLAG_FACTOR * controls.noise_floor).sum())
    typer.echo(
        f"noise floor: {controls.noise_floor:.1e} nats, taken off every mean; {weak} of {len(each)} lie below "
        f"{FLAG_FACTOR} times that\n"
        f"positive control: {tables.number(controls.positive)} nats with all tokens but the first removed"
    )
