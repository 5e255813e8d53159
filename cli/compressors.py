"""`compressors`: which compressors there are, and what each of them keeps."""

from __future__ import annotations

from typing import Annotated

import typer

from forward_influence.cli import tables
from forward_influence.cli.options import Only, configured
from forward_influence.cli.tables import Format, Shown


@configured
def compressors_command(shown: Annotated[Shown, Only(form_help="How to write the list.")]) -> None:
    """List the compressors of `generate` and `evaluate`: which rule each is, and whether the prompt stays whole."""
    import pandas as pd

    from forward_influence.compression.compressor import explained_compressors

    found = explained_compressors()
    if shown.form is not Format.table:
        typer.echo(tables.text(pd.DataFrame(found), shown.form), nl=False)
        return
    rows = [
        {
            "compressor": one["compressor"],
            "what it keeps": one["about"] or tables.ABSENT,
            "rule": one["rule"] if one["rule"] != one["compressor"] else tables.ABSENT,
            "prompt": one["prompt"],
        }
        for one in found
    ]
    tables.show(pd.DataFrame(rows))
    typer.echo("Parameters are the rule's: snapkv:window=32. Any rule of your own is a compressor too: rules.py:Rule.")
    typer.echo("To have a rule explained: forward-influence selectors NAME")
