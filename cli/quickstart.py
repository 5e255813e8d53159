"""`quickstart`: a small measurement with a picture and its result in words, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forward_influence.cli.executing import Effort, Loading
from forward_influence.cli.measure import Result
from forward_influence.cli.options import Only, configured
from forward_influence.data.asked import Asked
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe

#: Small enough for a minute on two processor cores; each rule has a random one of its own grain beside it.
CHOICES = Choices(
    selectors=("attention", "entropy", "random", "random:per=token"), context=256, continuation=512, draws=2
)


@configured
def quickstart_command(
    recipe: Annotated[Recipe, Only("model", "device")],
    documents: Annotated[Asked, Only("documents", "max_documents", max_documents=2)],
    result: Annotated[Result, Only("out", out="runs/quickstart", out_help="Run folder.")],
) -> None:
    """Measure attention and entropy against random tokens on two documents, in a minute once the model is there.

    The default model is fetched first if it is not there (93 MB).
    """
    from forward_influence.analysis.measures.plain_words import plain_sentences
    from forward_influence.analysis.plots import registry
    from forward_influence.analysis.plots.data import PlotData
    from forward_influence.cli.measuring import run_of
    from forward_influence.cli.plot import save_picture
    from forward_influence.cli.pulling import pulled
    from forward_influence.measurement.request import Request
    from forward_influence.models.catalog import catalogue
    from forward_influence.models.store import problem

    named = catalogue().get(recipe.model)
    if named is not None and problem(named, full=False) is not None:
        pulled(named)
    assert result.out is not None
    run = run_of(Request(**vars(CHOICES)), documents, result.out, None, Loading(recipe, None, Effort()))
    picture = Path(result.out, "plots", "decay.png")
    save_picture(registry.draw("decay", PlotData([run])), picture)
    typer.echo("")
    for sentence in plain_sentences(run):
        typer.echo(sentence)
    typer.echo("")
    typer.echo(f"picture: {picture}")
    typer.echo(f"all numbers: forward-influence compare {run.where}")
    typer.echo("your own choice of documents, rules and lengths: forward-influence measure --help")
