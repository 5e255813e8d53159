"""Runs at an address: written there whole, read from there elsewhere, continued from there."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny_data

from forward_influence.errors import StorageError, UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.storage.remote import Mirror, is_address, mirror_of
from forward_influence.storage.run import open_run

fsspec = pytest.importorskip("fsspec")


def contents(run) -> list[dict]:
    return [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in run.rows()]


def asked(*rules: str, **changes) -> Request:
    return Request(
        selectors=rules or ("recent", "random"), context=60, continuation=40, protect_last=8, save_selections=True,
        **changes,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An object store in memory, and a cache folder of this test's own."""
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


def forget_the_mirror(tmp_path) -> None:
    """As on another machine."""
    shutil.rmtree(tmp_path / "cache" / "mirrors")


def test_what_is_an_address():
    assert is_address("s3://bucket/run") and is_address("memory://a") and is_address("gs://b/c")
    assert not is_address("runs/mine") and not is_address("C:\\runs") and not is_address("a:b")


def test_a_run_lies_at_its_address_and_is_read_elsewhere(tmp_path, elsewhere):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked(), "memory://bucket/runs/mine")
    local = measure(model, documents, asked(), tmp_path / "local")
    assert (run.where, run.name) == ("memory://bucket/runs/mine", "mine")
    there = {path.rpartition("runs/mine/")[2].split("/")[0] for path in elsewhere.find("/bucket")}
    assert there == {"manifest.json", "parts", "selections", "timings"}
    forget_the_mirror(tmp_path)
    again = open_run("memory://bucket/runs/mine")
    assert contents(again) == contents(local)
    assert len(again.measured()) == 2


def test_another_machine_continues_it(tmp_path, elsewhere):
    model, documents = tiny_data.model(), tiny_data.documents(3, 100)
    run = measure(model, documents, asked(), "memory://bucket/run")
    stem = run.documents[1]["part"]
    elsewhere.rm(f"/bucket/run/parts/{stem}.parquet")
    forget_the_mirror(tmp_path)
    assert len(open_run("memory://bucket/run").measured()) == 2
    run = measure(model, documents, asked(), "memory://bucket/run")
    assert len(run.measured()) == 3
    assert elsewhere.exists(f"/bucket/run/parts/{stem}.parquet")
    with pytest.raises(UsageError, match="another configuration"):
        measure(model, documents, asked("first"), "memory://bucket/run")


def test_what_changes_there_changes_here(tmp_path, elsewhere):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked(), "memory://bucket/run")
    first, second = (f"/bucket/run/parts/{d['part']}.parquet" for d in run.documents)
    data = bytearray(elsewhere.cat(first))
    data[len(data) // 2] ^= 255
    elsewhere.pipe(first, bytes(data))
    assert [d["name"] for d in open_run("memory://bucket/run").measured()] == ["doc 1/../x"]
    elsewhere.rm(second)
    assert open_run("memory://bucket/run").measured() == []


def test_rules_can_be_added_there(tmp_path, elsewhere):
    from forward_influence.execution.extend import add

    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked("recent"), "memory://bucket/run")
    add(model, run, documents, ["first"])
    forget_the_mirror(tmp_path)
    once = measure(model, documents, asked("recent", "first"), tmp_path / "once")
    assert contents(open_run("memory://bucket/run")) == contents(once)


def test_names_that_lead_out_are_refused(tmp_path, elsewhere):
    elsewhere.pipe("/bucket/run/manifest.json", b"{}")
    _, mirror = mirror_of("memory://bucket/run")
    with pytest.raises(StorageError, match="leads out of the folder"):
        mirror._inside("parts/../../../x")
    assert isinstance(mirror, Mirror)


def test_what_goes_wrong_there_is_one_line(monkeypatch):
    model, documents = tiny_data.model(), tiny_data.documents(1, 100)
    with pytest.raises(UsageError, match="nosuch://bucket/run cannot be used"):
        measure(model, documents, asked(), "nosuch://bucket/run")
    with pytest.raises(UsageError, match="is not a run folder"):
        open_run("memory://bucket/empty")

    def refuses(*arguments, **options):
        raise PermissionError("Access Denied\nsecond line")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuses)
    with pytest.raises(
        StorageError, match="cannot write memory://bucket/run: Access Denied; check the address"
    ) as caught:
        measure(model, documents, asked(), "memory://bucket/run")
    assert "\n" not in str(caught.value)


def test_a_shared_folder_by_its_address(tmp_path):
    run = measure(tiny_data.model(), tiny_data.documents(1, 100), asked(), f"file://{tmp_path}/shared/run")
    assert run.folder == tmp_path / "shared" / "run"
    assert len(open_run(tmp_path / "shared" / "run").measured()) == 1


def failing_once(monkeypatch, matches, left: bytes | None = b"half") -> list[str]:
    """The first file whose name at the address `matches` is not written there, but `left`."""
    from fsspec.implementations.memory import MemoryFileSystem

    honest, failed = MemoryFileSystem.put_file, []

    def put_file(self, local, there, **options):
        if matches(there) and not failed:
            failed.append(there)
            if left is not None:
                self.pipe(there, left)
            raise ConnectionError("the line went dead")
        return honest(self, local, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    return failed


KINDS = ("manifest.json", ".parquet", "timings", "selections")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [None, b"half"])
def test_what_could_not_be_written_there_is_written_by_the_next_start(tmp_path, elsewhere, monkeypatch, kind, left):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    failed = failing_once(monkeypatch, lambda name: kind in name, left)
    with pytest.raises(StorageError, match="the line went dead"):
        measure(model, documents, asked(), "memory://bucket/run")
    assert len(measure(model, documents, asked(), "memory://bucket/run").measured()) == 2
    assert failed and elsewhere.cat(failed[0]) != left
    forget_the_mirror(tmp_path)
    local = measure(model, documents, asked(), tmp_path / "local")
    there = open_run("memory://bucket/run")
    assert contents(there) == contents(local)
    assert len(there.measured()) == 2
    assert all(there.timings_path(d["part"]).exists() for d in there.documents)


@pytest.mark.parametrize("kind", ["manifest.json", ".parquet", "selections"])
@pytest.mark.parametrize("way", ["add", "measure"])
def test_what_was_added_and_could_not_be_written_there_is_too(tmp_path, elsewhere, monkeypatch, kind, way):
    from forward_influence.execution.extend import add

    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    run = measure(model, documents, asked("recent"), "memory://bucket/run")
    failed = failing_once(monkeypatch, lambda name: kind in name)
    with pytest.raises(StorageError, match="the line went dead"):
        add(model, run, documents, ["first"])
    assert failed
    if way == "add":
        with pytest.raises(UsageError, match="has first already"):
            add(model, open_run("memory://bucket/run"), documents, ["first"])
    else:
        measure(model, documents, asked("recent", "first"), "memory://bucket/run")
    forget_the_mirror(tmp_path)
    once = measure(model, documents, asked("recent", "first"), tmp_path / "once")
    assert contents(open_run("memory://bucket/run")) == contents(once)
    assert len(open_run("memory://bucket/run").measured()) == 2


@pytest.mark.parametrize("kept", ["nothing", "manifest.json"])
def test_an_address_that_was_emptied_is_measured_again(tmp_path, kept):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    address, folder = f"local://{tmp_path}/shared/run", tmp_path / "shared" / "run"
    measure(model, documents, asked(), address)
    before = sorted(path.name for path in folder.rglob("*"))
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    if kept == "nothing":
        shutil.rmtree(folder)
        with pytest.raises(UsageError, match="is not a run folder"):
            open_run(address)
    assert len(measure(model, documents, asked(), address).measured()) == 2
    assert sorted(path.name for path in folder.rglob("*")) == before
    shutil.rmtree(folder)
    assert len(measure(model, documents, asked("first"), address).measured()) == 2, "nor is the old one in the way"


def test_an_address_that_does_not_answer_is_not_taken_for_empty(tmp_path, elsewhere, monkeypatch):
    model, documents = tiny_data.model(), tiny_data.documents(1, 100)
    run = measure(model, documents, asked(), "memory://bucket/run")

    def silent(*arguments, **options):
        raise ConnectionError("no route to host")

    with monkeypatch.context() as cut:
        for name in ("ls", "info"):
            cut.setattr(f"fsspec.implementations.memory.MemoryFileSystem.{name}", silent)
        with pytest.raises(StorageError, match="cannot read memory://bucket/run: no route to host"):
            measure(model, documents, asked(), "memory://bucket/run")
    assert (run.folder / "manifest.json").exists()
    assert len(run.measured()) == 1


@pytest.mark.parametrize("text", ["s3://", "s3:///", "://bucket/run", "1s://bucket", "runs/s3://bucket", "a::s3://b"])
def test_what_only_looks_like_an_address_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is not an address; give one like s3://bucket/run, or a folder"):
        measure(tiny_data.model(), tiny_data.documents(1, 100), asked(), text)
    assert list(tmp_path.iterdir()) == []


def test_the_protocol_may_be_written_large(tmp_path):
    assert mirror_of(f"FILE://{tmp_path}/run") == (tmp_path / "run", None)
    assert mirror_of("MEMORY://bucket/Run")[0] == mirror_of("memory://bucket/Run")[0]
    assert mirror_of("memory://bucket/Run")[0] != mirror_of("memory://bucket/run")[0]
