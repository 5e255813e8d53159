"""What SECURITY.md says, shown."""

from __future__ import annotations

import inspect
import re
import socket
from pathlib import Path

import pytest
from test_cli import call
from test_faults import arguments, place  # noqa: F401

from forward_influence.models import load_model, resolve_spec

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_measurement_of_local_files_opens_no_connection(capsys, place, tmp_path):  # noqa: F811
    code, _, err = call(capsys, *arguments(place, tmp_path / "run"))
    assert code == 0, err


def test_no_pickle_in_the_code():
    for path in [
        p for folder in ("forward_influence", "cli", "analysis", "data") for p in (ROOT / folder).rglob("*.py")
    ]:
        code = path.read_text("utf-8")
        assert not re.search(
            r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib)\b|torch\.(load|save)\(", code, re.M
        )
        assert "allow_pickle=True" not in code


def test_code_of_others_is_not_run_unless_asked():
    for function in (load_model, resolve_spec):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False


def test_control_characters_do_not_reach_the_terminal(capsys, place, tmp_path):  # noqa: F811
    for text in ("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\u202eb"):
        code, out, err = call(capsys, *arguments(place, tmp_path / "run", "--selector", text))
        assert code == 2
        assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
