"""Help: commands and options in groups, every default shown, and completion in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from forward_influence.cli import app
from forward_influence.cli.app import main
from forward_influence.utils.configuration import GROUPS


def commands() -> Iterator[tuple[str, object]]:
    """Every command by its whole name."""

    def walk(command, name):
        if name:
            yield name, command
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {child}".strip())

    yield from walk(typer.main.get_command(app.build()), "")


COMMANDS = dict(commands())
#: What commands have beside their configurations.
UNGROUPED = ("--config", "--dry-run", "--json")


def help_of(capsys, monkeypatch, name: str, width: int) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_shows_its_default_and_stands_in_a_group(name):
    for option in COMMANDS[name].params:
        if option.param_type_name != "option" or option.hidden or option.name == "help":
            continue
        assert option.show_default, f"{name} {option.opts[0]} shows no default"
        if option.show_default is True:
            assert option.default not in (None, (), []), f"{name} {option.opts[0]} has no default to show"
        assert option.help and option.help.endswith("."), f"{name} {option.opts[0]} says nothing"
        group = option.rich_help_panel
        assert group in GROUPS or option.opts[0] in UNGROUPED, f"{name} {option.opts[0]} stands in no group"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_help_breaks_no_name_of_an_option(capsys, monkeypatch, width):
    for name, command in COMMANDS.items():
        text = help_of(capsys, monkeypatch, name, width)
        words = text.replace("│", " ").replace(",", " ").split()
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert option.opts[0] in words, f"{name} {option.opts[0]} at {width} columns:\n{text}"
        assert max(map(len, text.splitlines())) <= width


def test_commands_stand_in_groups(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "", 80)
    for title, group in app.GROUPED.items():
        assert f"─ {title} ─" in text
        for name in group:
            assert text.index(f"─ {title} ─") < text.index(f"│ {name} ")
    assert "--install-completion" in text


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [("mea", {"measure"}), ("measure --cont", {"--continuation", "--continuation-from"})],
)
def test_a_shell_completes_commands_and_options(typed, wanted):
    words = f"forward-influence {typed}"
    asked = {
        "_FORWARD_INFLUENCE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "forward_influence"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    found = set(done.stdout.split())
    assert wanted <= found and all(word.startswith(typed.split()[-1]) for word in found), done
