"""What goes wrong around a run, and what is promised then; docs/reliability.md is the table of it."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_runner
import numpy as np
import pytest
import tiny_data
import tiny_files
import torch
from safetensors.torch import load_file
from test_cli import call

from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.execution import executors
from forward_influence.execution.run import measure
from forward_influence.models.loading import wrap_model
from forward_influence.storage import run as runs
from forward_influence.storage.run import SCHEMA_VERSION, held_for_writing, open_run

HERE = Path(__file__).parents[1]


def result_columns(folder: Path) -> list[dict]:
    """Every column of every row, arrays as bytes."""
    return [
        {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in open_run(folder).rows()
    ]


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and three documents."""
    folder = tmp_path_factory.mktemp("place")
    tiny_files.save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(3):
        (folder / "texts" / f"text{i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(400)))
    return folder


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8", "--selector", "recent"]
    spec = ["--model", str(place / "model"), "--documents", str(place / "texts")]
    return ["measure", *spec, *sizes, "--out", str(out), *more]


def killed_run(tmp_path: Path, documents: int, kills: int, seed: int, whole: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [
        sys.executable,
        str(HERE / "fault_runner.py"),
        str(tmp_path / "run"),
        *map(str, (documents, kills, seed)),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= whole
    run = measure(
        tiny_data.model(), tiny_data.documents(documents, 100), fault_runner.request(), tmp_path / "whole", chunk=16
    )
    assert len(run.measured()) == documents
    assert result_columns(tmp_path / "run") == result_columns(tmp_path / "whole")
    for document in run.documents:
        one, other = (load_file(f.selections_path(document["part"])) for f in (open_run(tmp_path / "run"), run))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not [p for p in (tmp_path / "run").rglob("*") if ".writing" in p.name]


@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments_and_continued_equals_an_uninterrupted_run(tmp_path):
    killed_run(tmp_path, documents=24, kills=4, seed=0, whole=3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_at_twenty_random_moments(tmp_path):
    killed_run(tmp_path, documents=120, kills=20, seed=1, whole=20)


@pytest.mark.parametrize("moment", ["before writing", "half written", "before renaming", "after renaming"])
def test_killed_while_a_part_is_written(model, tmp_path, moment):
    """SIGKILL at the worst moments: the part is there whole, or it is not there."""
    documents = tiny_data.documents(2, 100)
    child = os.fork()
    if child == 0:
        _die_at(moment)
        measure(model, documents, fault_runner.request(), tmp_path / "run", chunk=16)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    there = open_run(tmp_path / "run").measured()
    assert len(there) == (1 if moment == "after renaming" else 0)
    measure(model, documents, fault_runner.request(), tmp_path / "run", chunk=16)
    measure(model, documents, fault_runner.request(), tmp_path / "whole", chunk=16)
    assert result_columns(tmp_path / "run") == result_columns(tmp_path / "whole")
    assert not list((tmp_path / "run" / "parts").glob(".writing*"))


def _die_at(moment: str) -> None:
    """Make this process kill itself when the first part is at the given moment."""
    honest = os.replace
    encode = runs.encode_part

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(source, target):
        part = Path(target).suffix == ".parquet"
        if part and moment == "half written":
            os.truncate(source, 100)
        if part and moment in ("half written", "before renaming"):
            die()
        honest(source, target)
        if part:
            die()

    def encoded(rows, configuration, selections=""):
        if moment == "before writing":
            die()
        return encode(rows, configuration, selections)

    os.replace, runs.encode_part = replace, encoded


def test_ctrl_c_is_one_line_exit_code_130_and_continues(capsys, place, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(200):
        (texts / f"text{i}.txt").write_text(" ".join(f"word{(i + 7) * j % 997}" for j in range(100)))
    command = arguments(place, tmp_path / "run")
    command[command.index("--documents") + 1] = str(texts)
    # A shell that starts the tests in the background has them ignore the signal, which a child would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "forward_influence", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    parts = tmp_path / "run" / "parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted; what was measured is kept, the same command continues" in errors
    done = {p: p.stat().st_mtime_ns for p in parts.glob("*.parquet")}
    assert 2 <= len(done) < 200
    code, _, err = call(capsys, *command)
    assert code == 0, err
    assert len(open_run(tmp_path / "run").measured()) == 200
    assert all(p.stat().st_mtime_ns == changed for p, changed in done.items())


def test_a_full_disk_is_one_line_and_what_was_measured_is_kept(model, tmp_path):
    """A limit on the size of files, which the kernel enforces as it does a full disk."""
    documents = tiny_data.documents(3, 100)
    measure(model, documents, fault_runner.request(), tmp_path / "whole")
    size = min(p.stat().st_size for p in (tmp_path / "whole" / "parts").glob("*.parquet"))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))
        try:
            measure(model, documents, fault_runner.request(), tmp_path / "run")
        except StorageError as error:
            text = str(error)
            os._exit(7 if "cannot write" in text and "File too large" in text and "\n" not in text else 8)
        os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert not [p for p in (tmp_path / "run").rglob("*") if ".writing" in p.name]
    measure(model, documents, fault_runner.request(), tmp_path / "run")
    assert result_columns(tmp_path / "run") == result_columns(tmp_path / "whole")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_storage_that_fails_ends_the_run_at_once(model, tmp_path, monkeypatch, code):
    documents = tiny_data.documents(3, 100)
    honest, written = os.fsync, []

    def fails_at_the_second_document(handle):
        written.append(handle)
        if len(written) > 4:  # manifest, then selections, timings, part of the first
            raise OSError(code, os.strerror(code))
        honest(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails_at_the_second_document)
        with pytest.raises(StorageError, match=os.strerror(code)):
            measure(model, documents, fault_runner.request(), tmp_path / "run")
    assert len(open_run(tmp_path / "run").measured()) == 1
    assert len(measure(model, documents, fault_runner.request(), tmp_path / "run").measured()) == 3


@pytest.mark.parametrize("out", ["/proc/forward-influence/run", "/dev/null/run", "{file}/run"])
def test_a_folder_that_cannot_be_written_is_one_line(capsys, place, tmp_path, out):
    (tmp_path / "file").write_text("a file")
    code, _, err = call(capsys, *arguments(place, Path(out.format(file=tmp_path / "file"))))
    assert code == 1
    assert err.splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in err


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "another's", "a folder", "a picture"])
def test_a_damaged_part_is_noticed_never_read_and_measured_again(model, tmp_path, damage):
    documents = tiny_data.documents(2, 100)
    run = measure(model, documents, fault_runner.request(), tmp_path / "run")
    measure(model, documents, fault_runner.request(), tmp_path / "whole")
    stem, other = (d["part"] for d in run.documents)
    path = run.part_path(stem)
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :])
    elif damage == "another's":
        other_run = measure(model, documents, fault_runner.request(), tmp_path / "other", chunk=7)
        content = json.loads((other_run.folder / "manifest.json").read_text())
        path.write_bytes(runs.encode_part(list(runs.read_part(path)), "another configuration"))
        assert content["configuration_hash"] != "another configuration"
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert {row["document"] for row in run.rows()} == {"doc 1/../x"}
    assert [d["part"] for d in run.measured()] == [other]
    if damage == "a folder":
        with pytest.raises(StorageError, match="cannot write"):
            measure(model, documents, fault_runner.request(), tmp_path / "run")
        return
    measure(model, documents, fault_runner.request(), tmp_path / "run")
    assert result_columns(tmp_path / "run") == result_columns(tmp_path / "whole")


def test_every_flipped_bit_of_a_part_is_noticed_or_harmless(model, tmp_path):
    """Each byte of a part in turn (a sample of them): it does not read back, or it reads back unchanged."""
    run = measure(model, tiny_data.documents(1, 100), fault_runner.request(), tmp_path / "run")
    path = run.part_path(run.documents[0]["part"])
    whole, data = result_columns(tmp_path / "run"), path.read_bytes()
    generator = np.random.default_rng(0)
    noticed = 0
    for at in generator.choice(len(data), 300, replace=False):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        found = result_columns(tmp_path / "run")
        noticed += found == []
        assert found in ([], whole), f"byte {at} changed results without a word"
    assert noticed > 150


def test_a_second_process_is_refused_and_never_mixed_in(model, tmp_path):
    documents = tiny_data.documents(40, 100)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with held_for_writing(measure(model, documents[:1], fault_runner.request(), tmp_path / "run").folder):
            os.write(go, b"x")
            time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(ForwardInfluenceError, match="is being written by another process"):
            measure(model, documents[:1], fault_runner.request(), tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # the lock of a killed process is gone with it
    assert len(measure(model, documents[:1], fault_runner.request(), tmp_path / "run").measured()) == 1


class _OutOfMemoryOnce:
    def __init__(self, error: BaseException) -> None:
        self.honest, self.error = executors.measure_document, error

    def __call__(self, model, document, *args, **kwargs):
        if document.document.name.endswith("1"):
            raise self.error
        return self.honest(model, document, *args, **kwargs)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_in_one_document_is_said_and_the_rest_measured(capsys, place, tmp_path, monkeypatch, error):
    with monkeypatch.context() as patched:
        patched.setattr(executors, "measure_document", _OutOfMemoryOnce(error))
        code, out, err = call(capsys, *arguments(place, tmp_path / "run"))
    assert code == 1
    assert "text1 could not be measured: out of memory" in err + out
    assert len(open_run(tmp_path / "run").measured()) == 2
    code, _, _ = call(capsys, *arguments(place, tmp_path / "run"))
    assert code == 0
    assert len(open_run(tmp_path / "run").measured()) == 3


def test_memory_that_is_really_not_there(tmp_path):
    """The allocator's own words, which decide whether a document or the whole run has failed."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert executors.is_expected(caught.value)
    assert not executors.is_expected(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_document_that_makes_logits_nan_is_named_and_never_averaged_in(tmp_path, value, in_context):
    documents = tiny_data.documents(3, 100)
    spoilt, token = copy.deepcopy(tiny_data.model().model), 2  # which no document has
    documents[1].segments[0][20 if in_context else 80] = token
    with torch.no_grad():
        spoilt.get_input_embeddings().weight[token] = value
    messages = []

    class Listener:
        def begin(self, total, text): ...
        def advance(self, count, text): ...
        def message(self, text):
            messages.append(text)

        def end(self): ...

    poisoned = wrap_model(spoilt, spec="tiny-llama")
    run = measure(poisoned, documents, fault_runner.request(), tmp_path / "run", progress=Listener())
    assert any("doc 1/../x could not be measured" in m and "NaN or infinite" in m for m in messages), messages
    assert {row["document"] for row in run.rows()} == {"doc 0/../x", "doc 2/../x"}


def test_a_clock_that_is_set_back_changes_nothing(model, tmp_path, monkeypatch):
    documents = tiny_data.documents(3, 100)
    measure(model, documents[:], fault_runner.request(), tmp_path / "whole")
    run = measure(model, documents, fault_runner.request(), tmp_path / "run")
    run.part_path(run.documents[2]["part"]).unlink()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (4e9, 4e9))  # everything there comes from the future
    measure(model, documents, fault_runner.request(), tmp_path / "run")
    assert result_columns(tmp_path / "run") == result_columns(tmp_path / "whole")


def test_a_run_that_is_moved_or_copied_reads_and_continues(model, tmp_path):
    documents = tiny_data.documents(3, 100)
    run = measure(model, documents, fault_runner.request(), tmp_path / "run")
    whole = result_columns(tmp_path / "run")
    run.part_path(run.documents[1]["part"]).unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "a copy, elsewhere" / "b")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    for folder in (tmp_path / "a copy, elsewhere" / "b", tmp_path / "moved"):
        assert len(open_run(folder).measured()) == 2
        measure(model, documents, fault_runner.request(), folder)
        assert result_columns(folder) == whole


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, str(SCHEMA_VERSION), None])
def test_a_run_of_another_schema_is_refused_in_words(model, tmp_path, version):
    documents = tiny_data.documents(1, 100)
    measure(model, documents, fault_runner.request(), tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema": version}))
    for use in (open_run, lambda p: measure(model, documents, fault_runner.request(), p)):
        with pytest.raises(UsageError, match=f"made with schema {version}, this version reads {SCHEMA_VERSION}"):
            use(tmp_path / "run")


def test_the_same_command_twice_gives_the_same_result_columns(capsys, place, tmp_path):
    for name in ("one", "two"):
        rules = ["--selector", "attention:window=8", "--selector", "random"]
        assert call(capsys, *arguments(place, tmp_path / name, *rules))[0] == 0
    assert result_columns(tmp_path / "one") == result_columns(tmp_path / "two")
    manifest = open_run(tmp_path / "one").manifest
    assert manifest["execution"]["threads"] == torch.get_num_threads()
    assert {"torch", "transformers", "numpy", "python", "forward_influence"} <= set(manifest["versions"])
