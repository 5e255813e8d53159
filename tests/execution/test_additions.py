"""Rules added to a run, and the traces that make it cheap: the result is that of a run measured at once."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import load_file
from tiny_files import save_tiny

from forward_influence.cli.app import main
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution import extend as additions
from forward_influence.execution.extend import add
from forward_influence.execution.run import measure
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.measurement.request import Request
from forward_influence.storage.run import held_for_writing, open_run

SIZES = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2", "0.4")}
FIRST = ("attention:window=8", "random")
MORE = ("entropy", "random:per=token", "infokv:window=8")


def asked(*selectors: str, **changes) -> Request:
    return Request(selectors=selectors, **{**SIZES, "save_selections": True, **changes})


def contents(run) -> list[dict]:
    return [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in run.rows()]


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return tmp_path / "cache"


CASES = [
    {},
    {"segments": 2},
    {"effect": "both", "positions_per_bin": 4, "bin_width": 10},
    {"mode": "keep", "budgets": ("0.8",)},
    {"per_layer": True},
    {"continuation_from": "generate"},
]


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("kept", [0, 10**9])
def test_a_grown_run_equals_one_measured_at_once(model, tmp_path, changes, kept):
    documents = tiny_data.documents(2, 100, changes.get("segments", 1))
    run = measure(model, documents, asked(*FIRST, **changes), tmp_path / "run", chunk=16, trace_cache=kept)
    grown = add(model, run, documents, MORE, trace_cache=kept)
    once = measure(model, documents, asked(*FIRST, *MORE, **changes), tmp_path / "once", chunk=16)
    assert grown.folder == run.folder
    assert grown.configuration == once.configuration
    assert grown.manifest["configuration_hash"] == once.manifest["configuration_hash"]
    assert contents(grown) == contents(once)
    assert len(grown.measured()) == 2
    for document in once.documents:
        one, two = (load_file(r.selections_path(document["part"])) for r in (grown, once))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (run.folder / ".adding").exists()
    # and the same command goes on from there
    again = measure(model, documents, asked(*FIRST, *MORE, **changes), tmp_path / "run", chunk=16)
    assert contents(again) == contents(once)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "gpt_oss"])
def test_traces_come_back_as_they_were(tmp_path, family):
    """Sliding layers, sinks, every signal: results from a kept trace equal those from a fresh one, bit for bit."""
    model = tiny_data.model(family)
    documents = tiny_data.documents(1, 100)
    rules = ("attention:window=8", "h2o", "surprisal", "expected-attention", "infokv:window=8", "knorm")
    request = asked(*rules, effect="both")
    fresh = measure(model, documents, request, tmp_path / "fresh", chunk=16)
    measure(model, documents, request, tmp_path / "first", chunk=16, trace_cache=10**9)
    calls = counted(lambda: measure(model, documents, request, tmp_path / "second", chunk=16, trace_cache=10**9))
    assert calls["record"] == 0 and calls["full"] == 0
    for name in ("first", "second"):
        assert contents(open_run(tmp_path / name)) == contents(fresh)


def counted(call) -> dict[str, int]:
    """How often contexts were recorded and full caches run while `call` ran."""
    from forward_influence.measurement import document

    calls = {"record": 0, "full": 0}
    record, full = document.record, document.run_in_full

    def counting(name, function):
        def wrapper(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return wrapper

    document.record, document.run_in_full = counting("record", record), counting("full", full)
    try:
        call()
    finally:
        document.record, document.run_in_full = record, full
    return calls


def test_one_rule_more_costs_one_pass_over_the_continuation(model, tmp_path, monkeypatch):
    documents = tiny_data.documents(3, 100)
    request = asked("attention:window=8", "entropy", budgets=("0.2",))
    run = measure(model, documents, request, tmp_path / "run", chunk=16, trace_cache=10**9)
    ran: list[int] = []

    def counting(model, tokens, *args, **kwargs):
        ran.append(len(tokens))
        return continuation_hidden(model, tokens, *args, **kwargs)

    monkeypatch.setattr("forward_influence.influence.effects.total.continuation_hidden", counting)
    calls = counted(lambda: add(model, run, documents, ["low-entropy"], trace_cache=10**9))
    assert calls == {"record": 0, "full": 0}
    assert ran == [40, 40, 40]


def test_a_signal_that_was_not_kept_costs_the_context_again(model, tmp_path):
    documents = tiny_data.documents(1, 100)
    run = measure(model, documents, asked("attention:window=8"), tmp_path / "run", chunk=16, trace_cache=10**9)
    assert counted(lambda: add(model, run, documents, ["h2o"], trace_cache=10**9)) == {"record": 1, "full": 0}
    once = measure(model, documents, asked("attention:window=8", "h2o"), tmp_path / "once", chunk=16)
    assert contents(open_run(run.folder)) == contents(once)


def test_entries_that_are_damaged_are_no_entries(model, tmp_path, cache):
    documents = tiny_data.documents(1, 100)
    request = asked("attention:window=8")
    fresh = measure(model, documents, request, tmp_path / "0", chunk=16, trace_cache=10**9)
    entries = sorted((cache / "traces").glob("*.safetensors"))
    assert len(entries) == 2
    for path in entries:
        data = bytearray(path.read_bytes())
        data[-9] ^= 16
        path.write_bytes(bytes(data))
    calls = counted(lambda: measure(model, documents, request, tmp_path / "1", chunk=16, trace_cache=10**9))
    assert calls == {"record": 1, "full": 1}
    assert contents(open_run(tmp_path / "1")) == contents(fresh)


@pytest.mark.parametrize("change", [{"chunk": 7}, {"other": True}, {"threads": 2}])
def test_an_entry_belongs_to_what_decides_its_bits(model, tmp_path, change):
    documents = tiny_data.documents(1, 100)
    measure(model, documents, asked("attention:window=8"), tmp_path / "0", chunk=16, trace_cache=10**9)
    if "other" in change:
        model = tiny_data.model(dtype=torch.float64)
    settings = {"chunk": change.get("chunk", 16), "threads": change.get("threads")}

    def again() -> None:
        measure(model, documents, asked("attention:window=8"), tmp_path / "1", trace_cache=10**9, **settings)

    assert counted(again) == {"record": 1, "full": 1}


def test_the_folder_of_traces_stays_below_its_limit(model, tmp_path, cache):
    documents = tiny_data.documents(4, 100)
    measure(model, documents[:1], asked("recent"), tmp_path / "0", chunk=16, trace_cache=10**9)
    one = sum(p.stat().st_size for p in (cache / "traces").glob("*.safetensors"))
    limit = int(2.5 * one)
    for i in range(1, 4):
        measure(model, documents[i : i + 1], asked("recent"), tmp_path / str(i), chunk=16, trace_cache=limit)
        assert sum(p.stat().st_size for p in (cache / "traces").glob("*.safetensors")) <= limit
    calls = counted(
        lambda: measure(model, documents[3:], asked("first"), tmp_path / "last", chunk=16, trace_cache=limit)
    )
    assert calls == {"record": 0, "full": 0}, "the latest are kept"
    calls = counted(
        lambda: measure(model, documents[:1], asked("first"), tmp_path / "oldest", chunk=16, trace_cache=limit)
    )
    assert calls == {"record": 1, "full": 1}, "the oldest went"


def test_a_rule_that_fails_leaves_the_run_as_it_was(model, tmp_path):
    documents = tiny_data.documents(2, 100)
    run = measure(model, documents, asked(*FIRST), tmp_path / "run", chunk=16)
    before = {p: p.read_bytes() for p in run.folder.rglob("*.parquet")}
    (tmp_path / "rules.py").write_text("def bad(trace):\n    return 1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        add(model, run, documents, [f"{tmp_path / 'rules.py'}:bad"])
    assert {p: p.read_bytes() for p in before} == before
    assert len(open_run(run.folder).measured()) == 2
    assert contents(add(model, run, documents, ["entropy"])) != []


@pytest.mark.parametrize("swaps", range(7))
def test_killed_while_it_takes_its_place_it_is_finished_by_the_next(model, tmp_path, swaps):
    """SIGKILL after each of the renames by which the grown run takes the old one's place."""
    documents = tiny_data.documents(2, 100)
    run = measure(model, documents, asked(*FIRST), tmp_path / "run", chunk=16)
    child = os.fork()
    if child == 0:
        _die_after(swaps)
        add(model, run, documents, ["entropy"])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (swaps < 5), "two documents, each with selections and a part, and the manifest"
    with held_for_writing(tmp_path / "run"):
        pass
    if swaps == 0:
        add(model, open_run(tmp_path / "run"), documents, ["entropy"])
    once = measure(model, documents, asked(*FIRST, "entropy"), tmp_path / "once", chunk=16)
    assert contents(open_run(tmp_path / "run")) == contents(once)


def _die_after(swaps: int) -> None:
    from forward_influence.storage import run as runs

    honest, finish, done = os.replace, runs.finish_adding, []

    def replace(source, target):
        if len(done) == swaps:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        honest(source, target)

    def counting(folder):
        if not (folder / ".adding" / "ready").exists():
            return finish(folder)
        os.replace = replace
        if swaps == 0:
            (folder / ".adding" / "ready").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(folder)

    additions.finish_adding = counting


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["entropy:top_k=256"], "has entropy already"),
        (["attention:window=12"], "observes from 12"),
        ([], "nothing to add"),
    ],
)
def test_what_cannot_be_added_is_one_line(model, tmp_path, rules, words):
    documents = tiny_data.documents(1, 100)
    run = measure(model, documents, asked("entropy", "attention:window=8"), tmp_path / "run", chunk=16)
    with pytest.raises(UsageError, match=words):
        add(model, run, documents, rules)
    with pytest.raises(UsageError, match="are not what they were"):
        add(model, run, tiny_data.documents(2, 100)[1:], ["recent"])
    run.part_path(run.documents[0]["part"]).unlink()
    with pytest.raises(ForwardInfluenceError, match="is not finished"):
        add(model, run, documents, ["recent"])


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_from_the_command_line(capsys, tmp_path, cache):
    save_tiny(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for i in range(3):
        text = " ".join(f"word{(i + 7) * j % 97}" for j in range(400))
        (tmp_path / "texts" / f"long {i}.txt").write_text(text)
    run = tmp_path / "run"
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8"]
    given = ["measure", "--model", tmp_path / "model", "--documents", tmp_path / "texts", *sizes]
    assert call(capsys, *given, "--selector", "recent", "--out", run)[0] == 0
    assert list((cache / "traces").glob("*.safetensors")), "kept without being asked for"
    code, out, err = call(capsys, "measure", "--add", run, "--selector", "entropy", "--compressor", "h2o")
    assert code == 0, err
    assert "entropy" in out and "recent" in out and "h2o" in out
    rows = list(open_run(run).rows())
    assert {r["selector"] for r in rows if r["kind"] == "condition"} == {"recent", "entropy", "h2o"}
    configuration = json.loads((run / "manifest.json").read_text())["configuration"]
    assert configuration["selectors"] == ["recent", "entropy"]
    code, _, err = call(capsys, "measure", "--add", run, "--selector", "first", "--context", "70")
    assert (code, err) == (2, "error: --context is the run's own; leave it out beside --add\n")
    code, _, err = call(capsys, "measure", "--add", tmp_path / "texts", "--selector", "first")
    assert code == 2 and "is not a run folder" in err
    code, _, err = call(capsys, *given, "--selector", "first", "--trace-cache", "lots", "--out", tmp_path / "x")
    assert code == 2 and "--trace-cache lots is no amount" in err
