"""The command `compare` by itself, run in this process."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from forward_influence.cli.compare import compare_command

COMPARE = typer.Typer()
COMPARE.command()(compare_command)


def invoke(*arguments: object) -> str:
    """What it prints where it succeeds."""
    result = CliRunner().invoke(COMPARE, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
