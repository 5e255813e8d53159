"""Spans on the command line: a log of conversations is measured, compared, continued; what cannot be is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_files

from forward_influence.cli.app import main
from forward_influence.storage.run import open_run

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BY_SPANS = ["--context-of", "prompt+thought", "--measure-on", "answer", "--candidates-of", "thought"]


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model with a chat template, one without, and conversations of different lengths."""
    folder = tmp_path_factory.mktemp("place")
    tiny_files.save_tiny(folder / "plain")
    tiny_files.save_tiny(folder / "chat")
    (folder / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    lines = []
    for i in range(7):
        reply = f"<think>{' '.join(f'step {j * j}' for j in range(4 + i))}</think>{'So it is ' * (1 + i % 3)}{i}."
        turns = [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": reply}]
        lines.append({"chat": {"messages": turns}, "id": f"p{i}"})
    lines.append({"chat": {"messages": [{"role": "user", "content": "No answer"}]}, "id": "p8"})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def common(place: Path, model: str = "chat") -> list[str]:
    documents = ["--model", str(place / model), "--documents", f"{place / 'log.jsonl'}:chat.messages"]
    small = ["--protect-last", "4", "--selector", "attention:window=4", "--selector", "random", "--draws", "2"]
    return ["measure", *documents, *small]


def test_a_log_is_measured_compared_and_drawn(capsys, place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = call(capsys, *common(place), *BY_SPANS, "--out", run, "--verify")
    assert code == 0, err
    assert "skipped log-8: no span 'answer' (`measure_on`); it has user" in err
    assert "candidates: the tokens of thought, of contexts of" in " ".join(out.split())
    assert "verified: 7 conditions" in out
    assert len(open_run(run).measured()) == 7
    code, out, err = call(capsys, "compare", run, "--show", "spans", "--show", "comparison")
    assert code == 0, err
    assert "Influence on each span" in out
    assert "near is the first eighth of each document's measured positions (answer)" in " ".join(out.split())
    code, out, err = call(capsys, "compare", run)
    assert code == 0, err
    for kind in ("decay", "nearfar", "spans"):
        code, out, err = call(capsys, "plot", run, "--kind", kind, "--out", tmp_path / f"{kind}.svg")
        assert code == 0, err
    code, out, err = call(capsys, "report", run, "--out", tmp_path / "report.html")
    assert code == 0, err
    assert "measured on answer after prompt+thought" in (tmp_path / "report.html").read_text()
    code, _, err = call(capsys, "measure", "--add", run, "--selector", "recent")
    assert code == 0, err
    assert "recent" in open_run(run).configuration["selectors"]
    code, _, err = call(capsys, *common(place), "--measure-on", "answer", "--out", run)
    assert code == 2
    assert "another configuration" in err


def test_the_plan_tells_lengths(capsys, place: Path) -> None:
    code, out, err = call(capsys, *common(place), *BY_SPANS, "--dry-run")
    assert code == 0, err
    assert " measured tokens" in out
    assert "as if every document were as long as the longest" in out
    assert "measure-on: answer" in out or "measure_on: answer" in out


@pytest.mark.parametrize(
    ("arguments", "model", "match"),
    [
        (["--measure-on", "reply"], "chat", "no span 'reply' (`measure_on`); it has user, thought, answer"),
        (BY_SPANS, "plain", "this model has no chat template"),
        ([*BY_SPANS[:4], "--candidates-of", "thoughts"], "chat", "no span 'thoughts'"),
        (["--context-of", "answer", "--measure-on", "answer"], "chat", "overlap in 'answer'"),
        (["--context-of", "thought"], "chat", "--context-of goes with --measure-on"),
        ([*BY_SPANS, "--protect-last", "400"], "chat", "which are protected; lower --protect-last"),
        ([*BY_SPANS, "--budget", "500"], "chat", "budget 500 asks for 500 of"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, place: Path, tmp_path: Path, arguments, model, match: str) -> None:
    code, _, err = call(capsys, *common(place, model), *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert match.replace("`measure_on`", "--measure-on") in err
    assert err.strip().count("\n") == 0


def test_plan_has_no_documents_to_take_lengths_from(capsys, place: Path) -> None:
    code, _, err = call(capsys, "plan", "--model", place / "chat", "--measure-on", "answer")
    assert code == 2
    assert "takes lengths from documents; ask `measure --dry-run`" in err


def test_a_map_of_the_sentences_of_a_thought(capsys, place: Path, tmp_path: Path) -> None:
    documents = ["--model", place / "chat", "--documents", f"{place / 'log.jsonl'}:chat.messages"]
    for more in (["--sentences"], ["--block", "8", "--stride", "4"]):
        out = tmp_path / f"{more[0]}.parquet"
        code, printed, err = call(capsys, "influence-map", *documents, *BY_SPANS, *more, "--out", out)
        assert code == 0, err
        assert out.with_suffix(".png").exists()
        assert (tmp_path / f"{more[0]}-text.png").exists()
        assert "positive control" in printed
