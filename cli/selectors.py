"""`selectors`: which rules there are, and what one of them does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.options import Only, configured
from forward_influence.cli.tables import Format, Shown

if TYPE_CHECKING:
    from forward_influence.selectors.explain import Explained


@configured
def selectors_command(
    shown: Annotated[Shown, Only(form_help="How to write the list.")],
    name: Annotated[
        str | None, typer.Argument(help="Explain this rule: a name, or a specification as --selector takes it.")
    ] = None,
) -> None:
    """List the rules with parameters, defaults, needs and source, or explain one."""
    from forward_influence.selectors import discover, explained
    from forward_influence.selectors.registry import installed

    form = shown.form
    if name is not None:
        _explain(name, form)
        return
    import pandas as pd

    found = [explained(cls) for cls in discover().values()]
    if form is not Format.table:
        typer.echo(tables.text(pd.DataFrame([_record(e) for e in found]), form), nl=False)
        return
    shared = {"per", "heads"}
    rows = [
        {
            "rule": e.name,
            "what it ranks by": e.summary or tables.ABSENT,
            "parameters": ", ".join(f"{p.name}={p.default}" for p in e.parameters if p.name not in shared),
            "needs": _needs(e),
            "source": e.source,
        }
        for e in found
    ]
    tables.show(pd.DataFrame(rows))
    typer.echo("Every rule also has per=entry|layer|token and heads=equal|adaptive.")
    if others := installed():
        typer.echo(f"From other packages: {', '.join(sorted(others))}")
    typer.echo("One of your own: path/to/rules.py:Rule or package.module:Rule. A press: kvpress:SnapKVPress.")
    typer.echo("To have one explained: forward-influence selectors NAME")


def _needs(e: Explained) -> str:
    if e.needs is None:
        return "what its terms need"
    return ", ".join(e.needs) or tables.ABSENT


def _record(e: Explained) -> dict[str, Any]:
    return {
        "name": e.name,
        "summary": e.summary,
        "parameters": {p.name: p.default for p in e.parameters},
        "needs": None if e.needs is None else list(e.needs),
        "window": e.window,
        "reads_again": e.again,
        "stochastic": e.stochastic,
        "source": e.source,
    }


def _explain(text: str, form: Format) -> None:
    import pandas as pd

    from forward_influence.selectors import explained
    from forward_influence.selectors.registry import find_rule, typed_name

    cls = find_rule(text)
    e = explained(cls)
    if form is not Format.table:
        columns = ("parameter", "type", "default", "meaning")
        rows = [dict(zip(columns, (p.name, p.kind, p.default, p.meaning), strict=True)) for p in e.parameters]
        typer.echo(tables.text(pd.DataFrame(rows, columns=list(columns)), form), nl=False)
        return
    typer.echo(f"{e.name}: {e.summary or 'it has no docstring that says what it ranks by'}")
    if e.details:
        typer.echo(f"\n{e.details}")
    typer.echo(f"\nsource     {e.source or tables.ABSENT}")
    typer.echo(f"needs      {_needs(e)}")
    if e.window:
        typer.echo(f"window     the last {e.window} tokens, protected for every rule that it is compared with")
    if e.again:
        typer.echo("costs      a second reading of the context by the model, at up to twice its length")
    if e.stochastic:
        typer.echo("draws      at random: a run averages several draws within each document")
    rows = [{"parameter": p.name, "type": p.kind, "default": p.default, "meaning": p.meaning} for p in e.parameters]
    typer.echo("")
    tables.show(pd.DataFrame(rows))
    # by the name that was typed: one that a file gave its rule is unknown until the file is loaded
    typer.echo(f"forward-influence measure --selector '{typed_name(text)}{e.example.removeprefix(e.name)}'")
