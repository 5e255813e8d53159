"""The command line: commands by name, one file each, and errors as one line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

import typer

from forward_influence.cli import wording
from forward_influence.cli.output import make_writable
from forward_influence.errors import ForwardInfluenceError, UsageError, one_line, steering
from forward_influence.utils import threads

#: Group -> command -> (module, function or typer app). Adding a command adds a file and a line.
GROUPED = {
    "Begin": {
        "quickstart": ("quickstart", "quickstart_command"),
        "models": ("models", "models_app"),
        "documents": ("documents", "documents_command"),
        "selectors": ("selectors", "selectors_command"),
        "compressors": ("compressors", "compressors_command"),
    },
    "Measure": {
        "plan": ("plan", "plan_command"),
        "measure": ("measure", "measure_command"),
        "screen": ("screen", "screen_command"),
        "influence-map": ("influence_map", "influence_map_command"),
        "inspect": ("inspect", "inspect_command"),
    },
    "Read results": {
        "plot": ("plot", "plot_command"),
        "compare": ("compare", "compare_command"),
        "across-models": ("across_models", "across_models_command"),
        "report": ("report", "report_command"),
    },
    "Compress": {
        "generate": ("generate", "generate_command"),
        "evaluate": ("evaluate", "evaluate_command"),
    },
}
#: Command -> (module, function or typer app).
COMMANDS = {name: where for commands in GROUPED.values() for name, where in commands.items()}

INTERRUPTED = 130
#: What writing to a file or a terminal that takes no more fails with.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_INTERRUPTED = "interrupted; what was measured is kept, the same command continues"


def build() -> typer.Typer:
    """The application with every command."""
    app = typer.Typer(
        help="Measure which tokens of a language model's KV cache matter to the future.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_root)
    for title, commands in GROUPED.items():
        for name, (module, attribute) in commands.items():
            command = getattr(importlib.import_module(f"forward_influence.cli.{module}"), attribute)
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=title)
            else:
                app.command(name, rich_help_panel=title)(command)
    return app


def group() -> Any:
    """The application as click has it: every command with its options."""
    return typer.main.get_command(build())


def _version(wanted: bool) -> None:
    if wanted:
        from forward_influence import __version__

        typer.echo(f"forward-influence {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, show_default=False, help="Show the version."
    ),
) -> None:
    """Measure which tokens of a language model's KV cache matter to the future, and judge rules for choosing them."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0, 1 for failures, 2 for requests that cannot be met, 130 when interrupted.

    `--debug`, anywhere, shows the whole traceback of an error.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed (`>&-`)
            setattr(sys, name, io.StringIO())
    make_writable()
    threads.prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        _refuse_steering(given)
        command = group()
        code = command(given, prog_name="forward-influence", standalone_mode=False)
        if code == INTERRUPTED:  # what newer typers make of Ctrl-C
            _complain(_INTERRUPTED)
        sys.stdout.flush()  # here, where a full disk can still be told, and not at the interpreter's end
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:  # what older ones make of it
        _complain(_INTERRUPTED)
        sys.exit(INTERRUPTED)
    except ForwardInfluenceError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain(_INTERRUPTED)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        _drop_output()
        _complain(_in_words(error))
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own; newer versions carry their click inside
            if message := error.format_message().rstrip("."):
                _complain(f"{message}; `{_help_of(error)}` shows what there is")
            sys.exit(getattr(error, "exit_code", 2))
        if debug:
            raise
        first = one_line((str(error).splitlines() or [""])[0])
        _complain(f"{type(error).__name__}: {first} (unexpected; --debug shows where, please report it)")
        sys.exit(1)


def _refuse_steering(given: list[str]) -> None:
    """Names of rules, files and runs are shown again and again: none may steer the terminal.

    Raises:
        UsageError: an argument holds such a character.
    """
    for argument in given:
        if character := steering(argument):
            raise UsageError(f"{argument[:80]!r} holds the control character {character}; write it without")


def _in_words(error: OSError) -> str:
    """What the file system or the output refused; an error that names no file is met while writing to an open one."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{error.filename}: {reason}; --debug shows where"
    if error.errno in _FULL:
        return f"cannot write the output: {reason}; free some space, or send it elsewhere"
    return f"{reason}; --debug shows where"


def _drop_output() -> None:
    """What is still to be written goes nowhere, so that the interpreter does not try again at its end."""
    with suppress(OSError):  # a stream without a file behind it has nothing to drop
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_of(error: Exception) -> str:
    """The command whose help lists what the error missed."""
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context is not None else 'forward-influence'} --help"


def _complain(text: str) -> None:
    """One line on standard error."""
    with suppress(OSError):  # where even that cannot be written, the exit code says it
        typer.echo(f"error: {one_line(wording.in_options(text))}", err=True)
