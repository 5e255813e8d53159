"""What SECURITY.md says, shown."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from test_cli import call
from test_faults import arguments, place  # noqa: F401

from forward_influence.models.loading import load_model
from forward_influence.models.resolving import resolve_spec

ROOT = Path(__file__).parents[2]


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


#: Runs the command line under an audit hook that ends the process where anything is asked of a network.
WATCHED = """
import json, os, sys

def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        if event == "socket.connect" and isinstance(given[1], (str, bytes)):
            return  # a socket of this machine
        os.write(2, f"NETWORK {event} {given!r}".encode())
        os._exit(77)

sys.addaudithook(watch)
from forward_influence.cli.app import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as stopped:
        if stopped.code:
            sys.exit(f"{command}: {stopped.code}")
"""


def watched(*commands: list[object]) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # what must hold without their help
        environment.pop(name, None)
    command = [sys.executable, "-c", WATCHED, json.dumps(commands, default=str)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_local_work_asks_nothing_of_the_network(place, tmp_path):  # noqa: F811
    """By Python's audit events, in a process of its own, online as far as any library knows."""
    run = tmp_path / "run"
    found = watched(
        ["--help"],
        ["measure", "--help"],
        ["selectors"],
        ["models", "show", place / "model"],
        [*arguments(place, run), "--verify", "--save-selections"],
        ["compare", run, "--baseline", "recent"],
    )
    assert found.returncode == 0, found.stderr[-500:]


def test_the_watch_sees_a_connection():
    found = watched(["models", "show", "no-such-organisation/no-such-model"])
    assert found.returncode == 77
    assert "NETWORK socket" in found.stderr


def test_files_that_are_kept_hold_no_pickle(capsys, place, tmp_path, monkeypatch):  # noqa: F811
    """Run folders, caches of traces and evaluations: parquet of plain columns, JSON and safetensors, nothing else."""
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(tmp_path / "cache"))
    code, _, err = call(capsys, *arguments(place, tmp_path / "run", "--save-selections"))
    assert code == 0, err
    kinds = set()
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size):
        data = path.read_bytes()
        kinds.add(path.suffix)
        if path.suffix == ".parquet":
            fields = pq.read_schema(path)
            assert all(pa.types.is_primitive(f.type) or not pa.types.is_binary(f.type) for f in fields)
            assert not any(isinstance(f.type, pa.BaseExtensionType) for f in fields)
            assert b"arrow.py_extension_type" not in data
        elif path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".safetensors":
            load_file(path)
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
        assert b"torch._utils" not in data
    assert {".parquet", ".json", ".safetensors"} <= kinds <= {".parquet", ".json", ".safetensors", ".lock", ""}, kinds


PAYLOADS = ("\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\u202eb", "a\rb")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_documents_and_runs_say_does_not_steer_the_terminal(capsys, place, tmp_path, payload):  # noqa: F811
    """In the text and the name of a document; in a manifest and in a part that others made."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / f"a{payload}.txt").write_text(f"{payload} word " * 100)
    run, given = tmp_path / "run", arguments(place, tmp_path / "run")
    given[given.index("--documents") + 1] = str(texts)
    shown = []
    for command in (
        given,
        ["documents", texts],
        ["inspect", *given[1:5], "--context", "60", "--protect-last", "8", "--selector", "recent"],
        ["compare", run, "--baseline", "recent"],
    ):
        code, out, err = call(capsys, *command)
        assert code == 0, err
        shown.append(out + err)
    assert not [text for text in shown if payload in text]
    manifest = json.loads((run / "manifest.json").read_text())
    for place_of_it in ("command", "skipped", "remarks"):
        changed = {**manifest, place_of_it: payload if place_of_it == "command" else [payload]}
        (run / "manifest.json").write_text(json.dumps(changed))
        code, out, err = call(capsys, "compare", run)
        assert code == 2
        assert "holds the control character" in err
        assert payload not in out + err


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "command", ["measure", "compare", "plot", "report", "inspect", "selectors", "documents", "plan"]
)
def test_arguments_that_steer_the_terminal_are_refused(capsys, command, payload):
    code, out, err = call(capsys, command, payload)
    assert code == 2
    assert "holds the control character" in err
    assert payload not in out + err


@pytest.mark.parametrize(
    "name",
    ["parts", "timings", "selections", ".adding", ".lock", ".adding/run", ".adding/whole", ".adding/whole/parts"],
)
def test_a_run_folder_is_not_written_through_links(capsys, place, tmp_path, name):  # noqa: F811
    given, run, outside = arguments(place, tmp_path / "run"), tmp_path / "run", tmp_path / "outside"
    code, _, err = call(capsys, *given)
    assert code == 0, err
    link = run / name
    if link.is_dir():
        link.rename(outside)
    else:
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        outside.mkdir()
    link.symlink_to(outside)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    for command in (given, ["measure", "--add", run, "--selector", "first"]):
        code, _, err = call(capsys, *command)
        assert code == 2
        assert err.endswith(f"\nerror: {link} is a symbolic link, and runs are not written through one; remove it\n")
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


@pytest.mark.parametrize("hostile", ["{}", "[]", "no json", '{"schema": 0}'])
def test_what_is_no_run_does_not_take_a_runs_place(capsys, place, tmp_path, hostile):  # noqa: F811
    given, run = arguments(place, tmp_path / "run"), tmp_path / "run"
    code, _, err = call(capsys, *given)
    assert code == 0, err
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    whole = run / ".adding" / "whole"
    (whole / "parts").mkdir(parents=True)
    (run / ".adding" / "ready").touch()
    (whole / "manifest.json").write_text(hostile)
    for path in (run / "parts").iterdir():
        (whole / "parts" / path.name).write_bytes(b"not a part")
    code, _, err = call(capsys, *given)
    assert code == 2
    assert err.endswith(f"delete {run / '.adding'}: the run stays as it was\n")
    assert err.count("error: ") == 1
    assert {path: path.read_bytes() for path in before} == before
