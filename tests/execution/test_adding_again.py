"""Rules added to a run after something went otherwise: stopped half-way, other weights, too little memory, an end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from tiny_files import save_tiny

from forward_influence.cli.app import main
from forward_influence.errors import UsageError
from forward_influence.execution.executors import LocalExecutor
from forward_influence.execution.extend import add
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.storage.run import Run

SIZES = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2",)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model and documents long enough for it."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(11):
        (folder / "texts" / f"long {i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(400)))
    return folder


def asked(*selectors: str) -> Request:
    return Request(selectors=selectors, **SIZES)


def contents(run: Run) -> list[dict]:
    return [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in run.rows()]


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def given(place: Path, *more: object) -> list[object]:
    sizes = ["--context", 60, "--continuation", 40, "--protect-last", 8]
    return ["measure", "--model", place / "model", "--documents", place / "texts", *sizes, *more]


class Interrupted(LocalExecutor):
    """Ctrl-C after the first document."""

    def run(self, run, documents, task, progress):
        for done in super().run(run, documents, task, progress):
            yield done
            raise KeyboardInterrupt


class Counting(LocalExecutor):
    """Notes how many documents it was to measure."""

    asked_for = 0

    def run(self, run, documents, task, progress):
        self.asked_for += len(documents)
        yield from super().run(run, documents, task, progress)


@pytest.mark.parametrize(("second", "left"), [("entropy", 3), ("low-entropy", 2)])
def test_an_addition_that_was_stopped_continues_or_gives_way(tmp_path, second, left):
    model, documents = tiny_data.model(), tiny_data.documents(3, 100)
    run = measure(model, documents, asked("recent"), tmp_path / "run", chunk=16)
    with pytest.raises(KeyboardInterrupt):
        add(model, run, documents, ["low-entropy"], executor=Interrupted(model))
    executor = Counting(model)
    grown = add(model, run, documents, [second], executor=executor)
    assert executor.asked_for == left
    assert contents(grown) == contents(measure(model, documents, asked("recent", second), tmp_path / "once", chunk=16))
    assert not (tmp_path / "run" / ".adding").exists()


@pytest.mark.parametrize("text", ["{", None])
def test_an_addition_whose_manifest_is_damaged_or_lost_gives_way(tmp_path, text):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked("recent"), tmp_path / "run", chunk=16)
    with pytest.raises(KeyboardInterrupt):
        add(model, run, documents, ["entropy"], executor=Interrupted(model))
    manifest = tmp_path / "run" / ".adding" / "run" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    grown = add(model, run, documents, ["entropy"])
    assert grown.configuration["selectors"] == ["recent", "entropy"]


def test_other_weights_are_refused_before_anything_is_measured(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked("recent"), tmp_path / "run", chunk=16)
    other = tiny_data.model(dtype=torch.float64)
    executor = Counting(other)
    for given_model in (other, None):
        wanted = r'another tiny-llama \(model_weights: "\w+\.\.\." there, "\w+\.\.\." now\); nothing is added'
        with pytest.raises(UsageError, match=wanted):
            add(given_model, run, documents, ["entropy"], executor=executor)
    assert executor.asked_for == 0
    assert not (tmp_path / "run" / ".adding").exists()


def test_memory_limit_holds_beside_add(capsys, place, tmp_path):
    run = tmp_path / "run"
    command = given(place, "--selector", "recent", "--chunk", 64, "--max-documents", 2, "--out", run)
    assert call(capsys, *command)[0] == 0
    code, _, err = call(capsys, "measure", "--add", run, "--selector", "entropy", "--memory-limit", "1KB")
    assert code == 2
    assert "was begun with a chunk of 64 tokens, which it keeps: this needs" in err and "raise --memory-limit" in err
    assert not (run / ".adding").exists()
    assert call(capsys, "measure", "--add", run, "--selector", "entropy", "--memory-limit", "1GB")[0] == 0


def test_memory_limit_holds_for_the_chunk_that_a_continued_run_keeps(capsys, place, tmp_path):
    from forward_influence.measurement.memory import peak_of_request
    from forward_influence.models.info import Card
    from forward_influence.models.loading import load_model

    run = tmp_path / "run"
    rules = ["--selector", "recent", "--selector", "entropy"]
    longer = ["--context", 250, "--continuation", 250]
    command = given(place, *rules, *longer, "--max-documents", 2, "--out", run)
    assert call(capsys, *command, "--chunk", 512)[0] == 0
    sizes = Card.of(load_model(str(place / "model"))).sizes
    request = Request(selectors=("recent", "entropy"), **{**SIZES, "context": 250, "continuation": 250})
    small, large = (int(peak_of_request(sizes, request, chunk).total) for chunk in (16, 512))
    assert small < large
    limit = (small + large) // 2
    assert call(capsys, *command, "--chunk", 16, "--memory-limit", limit)[0] == 0, "nothing is left to measure"
    next((run / "parts").iterdir()).unlink()
    code, _, err = call(capsys, *command, "--chunk", 16, "--memory-limit", limit)
    assert code == 2 and "was begun with a chunk of 512 tokens, which it keeps" in err
    assert call(capsys, *command, "--chunk", 16, "--memory-limit", large)[0] == 0


def test_a_rule_added_to_a_run_that_ended_is_not_said_to_be_narrow(capsys, place, tmp_path):
    run = tmp_path / "run"
    code, out, err = call(capsys, *given(place, "--selector", "random", "--until", 50, "--out", run))
    assert code == 0, err
    assert "until: 10 documents are enough; the widest far interval is +-" in out
    stopped = json.loads((run / "stopped.json").read_text())
    # as if it had ended at a width that only its own rule is within
    (run / "stopped.json").write_text(json.dumps({**stopped, "until": max(stopped["half_widths"].values())}))
    rule = tmp_path / "rules.py"
    rule.write_text("def wild(trace):\n    return trace.tokens.float() * (-1) ** int(trace.tokens[0])\n")
    code, out, err = call(capsys, "measure", "--add", run, "--selector", f"{rule}:wild", "--selector", "entropy")
    assert code == 0, err
    assert "documents are enough" not in out
    [line] = [line for line in out.splitlines() if line.startswith("until: ")]
    assert "10 documents were enough for the rules that the run was ended with; not within +-" in line
    assert "entropy 0.2 drop total" in line and "random 0.2" not in line


def test_options_beside_add(capsys, place, tmp_path):
    run = tmp_path / "run"
    assert call(capsys, *given(place, "--selector", "recent", "--max-documents", 1, "--out", run))[0] == 0
    code, _, err = call(capsys, "measure", "--add", run, "--selector", "entropy", "--compile")
    assert (code, err) == (2, "error: --compile is the run's own; leave it out beside --add\n")
    assert call(capsys, "measure", "--add", run, "--selector", "entropy", "--trace-cache", 0)[0] == 0
    other = call(capsys, "measure", "--add", run, "--selector", "first", "--revision", "v1")
    assert other[0] == 2 and "is not on the hub: a revision says nothing about it" in other[2], "it is looked at"
