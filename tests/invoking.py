"""The command `compare` by itself, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from forward_influence.cli.app import build


def invoke(*arguments: object) -> str:
    """What it prints where it succeeds."""
    result = CliRunner().invoke(build(), ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
