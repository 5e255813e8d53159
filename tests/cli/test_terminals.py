"""Every command in every encoding that terminals and pipes have: it prints, exits as always, and writes UTF-8 files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_files

from forward_influence.cli.output import make_writable, shown, standard_input
from forward_influence.errors import UsageError

HERE = Path(__file__).parents[1]
#: Names that no narrow encoding has, letters that some have, marks that a few have.
NAME = "Überfluß 中文 – “ж…”"
ENCODINGS = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    # a POSIX locale, with Python's own rescue turned off: file names are ASCII, too
    "posix": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_files.save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(6):
        words = " ".join(f"wörd{(i + 7) * j % 97} 中" for j in range(200))
        (folder / "texts" / f"{NAME} {i}.txt").write_text(words, "utf-8")
    (folder / "texts" / f"{NAME} short.txt").write_text("zu kurz", "utf-8")
    (folder / "rules.py").write_text(
        'def Größe(trace):\n    """Größe – „wie groß“ … 中文."""\n    return trace.tokens\n', "utf-8"
    )
    return folder


def commands(place: Path, here: Path) -> list[tuple[int, list[str]]]:
    """(exit code, arguments) of every command and every table of `compare`."""
    model, texts = ["--model", str(place / "model")], ["--documents", str(place / "texts")]
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8"]
    rules = ["--selector", "attention:window=8", "--selector", "random", "--selector", f"{place}/rules.py:Größe"]
    run, evaluation = str(here / "run"), str(here / "evaluation")
    tables = ("comparison", "decay", "crossovers", "controls", "effects", "overlap", "overlap-layers", "tokens")
    shows = [word for name in tables for word in ("--show", name)]
    control = ["--selector", "position-matched:of=recent"]
    made = [
        (0, ["measure", *model, *texts, *sizes, *rules, *control, "--effect", "both", "--draws", "1", "--verify",
             "--save-selections", "--out", run]),
        (0, ["measure", *model, *texts, *sizes, "--compressor", "h2o", "--budget", "0.9", "--mode", "keep",
             "--out", str(here / "kept")]),
        (0, ["compare", run, *shows, "--crossover", "attention:window=8,random"]),
        *((0, ["compare", run, "--format", form]) for form in ("csv", "json", "markdown", "latex")),
        (0, ["report", run, "--out", str(here / "bericht.html"), "--title", NAME]),
        *((0, ["plot", run, "--kind", kind, "--out", str(here / f"{kind}.svg")]) for kind in ("decay", "tokens")),
        (0, ["inspect", *model, *texts, *rules[:4], *sizes[:2], *sizes[4:]]),
        (0, ["screen", *model, *texts, *sizes, *rules]),
        (0, ["influence-map", *model, *texts, "--context", "20", "--continuation", "8", "--bin-width", "4",
             "--out", str(here / "map.parquet")]),
        (0, ["generate", "wörter – 中文", *model, "--max-new-tokens", "40", "--temperature", "9", "--no-chat"]),
        (0, ["evaluate", *model, "--items", "1", "--length", "256", "--task", "needle", "--compressor", "recent",
             "--budget", "0.5", "--protocol", "seen", "--out", evaluation]),
        (0, ["plot", evaluation, "--kind", "retention", "--out", str(here / "retention.png")]),
        (0, ["compressors"]), (0, ["compressors", "--format", "json"]),
        (0, ["selectors"]), (0, ["selectors", "mix"]), (0, ["selectors", f"{place}/rules.py:Größe"]),
        *((0, ["selectors", "--format", form]) for form in ("csv", "json", "markdown", "latex")),
        (0, ["documents"]), (0, ["documents", str(place / "texts"), *model]),
        (0, ["documents", str(place / "texts"), "--format", "json"]),
        (0, ["plan", *model, "--tflops", "1", "--context", "200", "--continuation", "40"]),
        (0, ["models"]), (0, ["models", "--format", "json"]), (0, ["models", "show", str(place / "model")]),
        (0, ["--help"]), *((0, [name, "--help"]) for name in ("measure", "evaluate", "models")),
        (2, ["compare", str(here / NAME)]), (2, ["selectors", NAME]), (2, ["documents", str(here / NAME)]),
        (2, ["measure", "--model", NAME]),
    ]  # fmt: skip
    return made


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command(encoding, place, tmp_path):
    cases = commands(place, tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps([arguments for _, arguments in cases]), "utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON", "COLUMNS"))}
    environment = {**kept, **ENCODINGS[encoding], "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "terminal_runner.py"), "cases.json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=600)
    found = json.loads((tmp_path / "found.json").read_text("utf-8")) if (tmp_path / "found.json").exists() else []
    said = done.stderr.decode("utf-8", "replace")
    complaints = [part.partition("\n")[2] for part in said.split("\n#### ")[1:]]
    wrong = [
        (arguments, ended, complaint)
        for (code, arguments), ended, complaint in zip(cases, found, complaints, strict=False)
        if ended != [code, ""]
    ]
    assert not wrong, "\n".join(f"{ended} {complaint}" for _, ended, complaint in wrong)
    assert len(found) == len(cases), said[-3000:]
    assert "unexpected" not in said
    charset = {"posix": "ascii"}.get(encoding, encoding)
    printed, complained = done.stdout.decode(charset), done.stderr.decode(charset)
    parts = dict(zip(map(str, range(len(cases))), printed.split("\n#### ")[1:], strict=True))
    for number, (code, arguments) in enumerate(cases):
        body = parts[str(number)].partition("\n")[2]
        if code == 0:
            assert body.strip(), arguments
        if code == 0 and "json" in arguments:
            json.loads(body)
    if charset == "utf-8":
        assert NAME in printed and NAME in complained and "─" in printed
    if charset == "ascii":
        assert "\\xdcberflu\\xdf \\u4e2d\\u6587 -" in printed
    names = [
        document["name"] for document in json.loads((tmp_path / "run" / "manifest.json").read_bytes())["documents"]
    ]
    assert sorted(names) == [f"{NAME} {i}" for i in range(6)]
    for file in ("bericht.html", "decay.svg", "run/manifest.json"):
        (tmp_path / file).read_bytes().decode("utf-8")
    assert NAME in (tmp_path / "bericht.html").read_text("utf-8") or encoding == "posix"  # its title was typed as bytes


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16", "cp932"])
def test_whatever_is_written_is_written(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    make_writable()
    text = "".join(map(chr, range(32, 0x3000))) + "中文😀\udce9\ud800"
    for stream in streams:
        stream.write(text)
        stream.flush()
    assert streams[0].buffer.getvalue().decode(encoding) == shown(text)
    if encoding == "ascii":
        assert shown("–…×÷∞→│─┌é中😀") == "-...x/inf->|-+\\xe9\\u4e2d\\U0001f600"
    assert shown("a\udce9b") == "a\\xe9b"
    assert shown("plain") == "plain"


def test_a_library_that_takes_ascii_for_a_mistake_writes_ascii_all_the_same(monkeypatch):
    """click opens such a stream anew and writes UTF-8."""
    import typer

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    make_writable()
    typer.echo("größer – ∞")
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfer - inf\n"


@pytest.mark.parametrize(
    ("data", "encoding", "wanted"),
    [
        ("wörter 中\r\n", "utf-8", "wörter 中\n"),
        ("wörter 中", "ascii", "wörter 中"),
        ("\ufeffwörter", "cp1252", "wörter"),
        ("wörter".encode("latin-1"), "latin-1", "wörter"),
    ],
)
def test_prompts_from_standard_input(data, encoding, wanted, monkeypatch):
    data = data if isinstance(data, bytes) else data.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
    assert standard_input() == wanted


def test_a_prompt_that_is_no_text_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    with pytest.raises(UsageError, match="standard input is not UTF-8: byte 2 is 0xff"):
        standard_input()
