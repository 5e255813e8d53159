"""Every table of every command at the widths of terminals and in a pipe: no name, number or column is cut or lost."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from test_terminals import HERE, commands, place  # noqa: F401 (a fixture)

from forward_influence.cli import layout, tables

WIDTHS = (60, 80, 100, 120, tables.PIPED)


def drawn(frame: pd.DataFrame, width: int, title: str | None = None) -> str:
    stream = io.StringIO()
    tables.show(frame, title, Console(file=stream, width=width))
    return stream.getvalue()


def check(frame: pd.DataFrame, text: str, width: int) -> None:
    """Every word of every cell and heading is there, whole, as often as it must be; only words make lines longer."""
    words = text.split()
    for value in [*frame.columns, *frame.to_numpy().ravel()]:
        for word in str(value).split():
            assert word in words, f"{word} is cut at {width} columns:\n{text}"
    longest = max(len(word) for word in words)
    for line in text.splitlines():
        assert len(line.rstrip()) <= max(width, longest + 2), line
    for i, row in enumerate(frame.itertuples(index=False)):
        first = str(row[0]).split()
        assert not first or first[0] in words, f"row {i} is lost"


@pytest.fixture(scope="module")
def shown_tables(place, tmp_path_factory) -> dict[str, list[tuple[pd.DataFrame, str | None]]]:  # noqa: F811
    """Command -> the frames and titles that it shows as tables, in a narrow terminal and in a wide one."""
    here = tmp_path_factory.mktemp("here")
    found: dict[str, list[tuple[pd.DataFrame, str | None]]] = {}
    plain, show = tables.console, tables.show
    try:
        for width in (60, 10_000):
            tables.console = lambda error=False, width=width: Console(file=io.StringIO(), width=width)
            for code, arguments in commands(place, here):
                seen = found.setdefault(" ".join(arguments[:2]) if arguments[0] == "models" else arguments[0], [])
                tables.show = lambda frame, title=None, out=None, seen=seen: seen.append((frame, title))
                if code == 0 and arguments[0] not in ("plot", "report", "plan", "generate", "--help"):
                    from forward_influence.cli.app import main

                    with pytest.raises(SystemExit) as ended:
                        main(arguments)
                    assert ended.value.code == 0, arguments
    finally:
        tables.console, tables.show = plain, show
    return {name: seen for name, seen in found.items() if seen}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_of_every_command(width, shown_tables):
    assert set(shown_tables) == {
        "measure", "compare", "screen", "influence-map", "evaluate", "selectors", "compressors", "documents",
        "models", "models show",
    }  # fmt: skip
    for seen in shown_tables.values():
        for frame, title in seen:
            text = drawn(frame, width, title)
            check(frame, text.replace(title or "\0", ""), width)
            if width == tables.PIPED:  # a row a line: for grep
                lines = [line for line in text.splitlines() if line.strip()]
                assert len(lines) == len(frame) + 2 + bool(title)


def long_names() -> pd.DataFrame:
    rows = [
        {
            "task": task,
            "compressor": name,
            "budget": "0.25",
            "accuracy [95%]": "0.33 [0.25, 0.41]",
            "minus full [95%]": "-0.33 [-0.41, -0.25]",
            "p": "<0.001",
            "better/worse": "12/45",
            "cache": "25%",
        }
        for task in ("needle-multivalue:needles=4", "variables")
        for name in ("position-matched:of=attention,stratum=16", "packages/rules.py:Rule:per=token", "h2o")
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_long_names_are_kept_whole(width):
    frame = long_names()
    text = drawn(frame, width, "Accuracy: model, question seen")
    check(frame, text, width)
    assert text.count("position-matched:of=attention,stratum=16") >= 2
    assert "0.33" in text


def test_what_tells_rows_apart_stands_in_every_part_of_a_divided_table():
    frame = long_names()
    parts = layout.laid_out([list(frame.columns), *frame.to_numpy().tolist()], 100)
    assert len(parts) > 1
    heads = [[heading.replace("\n", " ") for heading in part.cells[0]] for part in parts]
    assert all(head[:2] == ["task", "compressor"] for head in heads)
    assert [name for head in heads for name in head[2:]] == list(frame.columns[2:])
    assert all(layout.across(part.widths, part.gap) <= 100 for part in parts)


def test_numbers_under_each_other_are_aligned_and_wide_letters_are_counted():
    frame = pd.DataFrame({"name": ["中文字", "ab"], "n": ["1", "1,000"]})
    lines = [line.rstrip() for line in drawn(frame, 80).splitlines() if line.strip()]
    assert lines[2] == " 中文字       1"
    assert lines[3] == " ab       1,000"


def test_a_table_of_two_columns_becomes_a_list():
    frame = pd.DataFrame({"": ["class", "fingerprint"], "model": ["LlamaForCausalLM", "0123456789abcdef" * 4]})
    text = drawn(frame, 70)
    assert [line.rstrip() for line in text.strip("\n").splitlines()] == [
        "             model",
        "class        LlamaForCausalLM",
        "fingerprint",
        "  " + "0123456789abcdef" * 4,
    ]
    check(frame, drawn(frame, 40), 40)


def in_terminal(cases: list[list[str]], where: Path, width: int, **environment: str) -> tuple[list, bytes]:
    """Run commands on a terminal of that width; how they ended and all that it was sent."""
    (where / "cases.json").write_text(json.dumps(cases), "utf-8")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON", "COLUMNS", "LINES"))}
    settings = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "TERM": "xterm", "NO_COLOR": "1", **environment}
    command = [sys.executable, str(HERE / "terminal_runner.py"), "cases.json", "found.json"]
    process = subprocess.Popen(
        command, cwd=where, env={**kept, **settings}, stdin=slave, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    sent = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        sent += part
    process.wait(60)
    os.close(master)
    return json.loads((where / "found.json").read_text("utf-8")), sent


@pytest.mark.parametrize(("encoding", "width"), [("utf-8", 80), ("latin-1", 100), ("ascii", 60)])
def test_on_a_real_terminal_with_its_progress_bar(encoding, width, place, tmp_path):  # noqa: F811
    wanted = {"measure", "evaluate", "compare", "selectors"}
    cases = [arguments for code, arguments in commands(place, tmp_path) if arguments[0] in wanted and code == 0]
    cases = [a for a in cases if "--format" not in a and "--help" not in a]
    found, sent = in_terminal(cases, tmp_path, width, PYTHONIOENCODING=encoding)
    text = sent.decode(encoding)
    assert found == [[0, ""]] * len(cases), text[-2000:]
    assert "tokens/s" in text, "a progress bar was drawn"
    assert ("━" in text) == (encoding == "utf-8")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    words = plain.split()
    for word in ("recent", "attention:window=8", "arXiv:2404.14469", "position-matched:of=recent", "needle"):
        assert word in words or f"{word}," in words, word
