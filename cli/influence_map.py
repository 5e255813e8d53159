"""`influence-map`: every token of a short context removed by itself, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.measurement.leave_one_out import MapControls


def influence_map_command(
    model: Annotated[
        str, typer.Option(help="A name from `models`, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    documents: Annotated[list[str] | None, typer.Option(help="As in `measure`; the first is mapped.")] = None,
    context: Annotated[int, typer.Option(help="Context tokens; every one costs a pass over the continuation.")] = 128,
    continuation: Annotated[int, typer.Option(help="Continuation tokens.")] = 256,
    block: Annotated[int, typer.Option(help="Neighbouring tokens removed together.")] = 1,
    effect: Annotated[str, typer.Option(help="total or direct.")] = "total",
    bin_width: Annotated[int, typer.Option(help="Positions whose mean makes one number.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    out: Annotated[Path, typer.Option(help="The map, .parquet; the picture lies beside it as .png.")] = Path(
        "influence-map.parquet"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
) -> None:
    """Measure every token of a short context by itself: leave-one-out, exact. A stopped map goes on where it was."""
    from forward_influence.cli.measuring import prepare_documents
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.data.asked import Asked
    from forward_influence.errors import ForwardInfluenceError, UsageError
    from forward_influence.measurement.leave_one_out import MapRequest, influence_map, read_controls
    from forward_influence.measurement.request import Request
    from forward_influence.models.loading import load_model, resolve_spec

    if out.suffix != ".parquet":
        raise UsageError(f"cannot write {out}; --out must end in .parquet")
    wanted = MapRequest(context, continuation, block, effect, bin_width)
    request = Request(
        selectors=("recent",), budgets=("1",), context=context, continuation=continuation, protect_first=0,
        protect_last=0,
    )  # fmt: skip
    resolved = resolve_spec(model)
    request.check_positions(resolved.positions, model)
    prepared = prepare_documents(Asked(tuple(documents or ["sotu"]), 1), seed, resolved, request)
    document = prepared.documents[0]
    loaded = load_model(resolved, device=device, dtype=dtype)
    name = document.document.name
    frame = influence_map(loaded, document.segments[0], wanted, out, name=name, progress=TerminalProgress())
    from forward_influence.analysis.formatting import style
    from forward_influence.analysis.plots.influence_map import draw_map

    picture = out.with_suffix(".png")
    what = "each token removed by itself" if block == 1 else f"every {block} neighbouring tokens removed by themselves"
    try:
        style.save(draw_map(frame, f"{name}: {what}, {effect} effect"), picture)
    except OSError as error:
        raise ForwardInfluenceError(f"cannot write {picture} ({error.strerror}); choose another --out") from error
    _show(frame, read_controls(out))
    typer.echo(f"map: {out}\npicture: {picture}")


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
