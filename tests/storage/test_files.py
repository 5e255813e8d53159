"""Files that are there whole or not at all, tables that carry their digests, and digests that stay what they were."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.measurement.leave_one_out import read_controls
from forward_influence.storage import manifest, tables
from forward_influence.tracing.store import Tensors, TraceStore
from forward_influence.utils.files import (
    WRITING,
    file_sha256,
    json_sha256,
    remove_unfinished,
    sha256,
    write_whole,
    writing_whole,
)
from forward_influence.utils.numerics import raw_bytes


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("naïve".encode())
    assert sha256("naïve") == sha256("naïve".encode()) == file_sha256(tmp_path / "x")
    assert sha256("naïve") == hashlib.sha256("naïve".encode()).hexdigest()
    assert json_sha256({"b": 1, "a": [None, 1.5]}) == sha256('{"a": [null, 1.5], "b": 1}')
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert bytes(raw_bytes(tensor.T)) == tensor.numpy().T.tobytes()
    assert bytes(raw_bytes(torch.tensor(1.5))) == b"\0\0\xc0\x3f"
    assert bytes(raw_bytes(tensor[:0])) == b""


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x"
    write_whole(path, b"before")
    assert path.stat().st_mode & 0o777 == 0o644

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*No space left"):
        write_whole(path, b"after")
    assert [p.name for p in path.parent.iterdir()] == ["x"]
    assert path.read_bytes() == b"before"
    with writing_whole(path, lasting=False) as temporary:  # what can be made again is not waited for
        temporary.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"


def test_whoever_fails_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with writing_whole(tmp_path / "x") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{WRITING}a").touch()
    (tmp_path / "part").touch()
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["part"]


def test_half_written_traces_of_killed_processes_go_with_the_next_one(tmp_path: Path) -> None:
    """They would count for nothing and stay for ever."""
    store = TraceStore(tmp_path, limit=10**6)
    (tmp_path / f"{WRITING}left").write_bytes(b"x" * 10_000)
    store.put("key", Tensors({"a": torch.arange(3)}, {"n": 3}))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == ["key.safetensors"]
    found = store.get("key", torch.device("cpu"))
    assert found is not None and found.tensors["a"].tolist() == [0, 1, 2] and found.values == {"n": 3}


def test_a_table_reads_back_with_what_it_says_of_itself(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, None], "b": ["x", "ü", ""], "c": [[1.5], [], None]})
    path = tmp_path / "t.parquet"
    path.write_bytes(tables.encode_table(table, {"digest": tables.values_sha256(table)}))
    read, said = tables.read_table(path)
    assert read.to_pylist() == table.to_pylist()
    assert said == {"digest": sha256(json.dumps(table.to_pylist(), sort_keys=True))}
    for data in (b"", path.read_bytes()[:-30], b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(ForwardInfluenceError, match=r"t\.parquet does not read back"):
            tables.read_table(path)
    with pytest.raises(ForwardInfluenceError, match="does not read back"):
        tables.read_table(tmp_path / "none")


def test_a_map_as_earlier_versions_wrote_it_is_read(tmp_path: Path) -> None:
    """Without checksums of pages and without a digest."""
    metadata = {
        "influence_map": json.dumps({"format": 5}),
        "controls": json.dumps({"noise_floor": 1.0, "positive": 2.0}),
    }
    table = pa.table({"block": [0, 1], "kl": [0.5, None]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "map.parquet", compression="zstd")
    assert pd.read_parquet(tmp_path / "map.parquet")["block"].tolist() == [0, 1]
    assert read_controls(tmp_path / "map.parquet").positive == 2.0


ASKED = {"configuration": {"a": 1}, "versions": {}}


def test_a_request_continues_what_it_began_and_nothing_else(tmp_path: Path) -> None:
    def to_continue(there: dict | None, asked: dict, begun: bool, kind: str | None = None) -> dict | None:
        return manifest.to_continue(tmp_path, there, asked, schema=7, kind=kind, begun=begun)

    first = to_continue(None, ASKED, begun=False)
    assert first == {"schema": 7, "configuration_hash": manifest.configuration_hash({"a": 1}), **ASKED}
    assert to_continue(None, ASKED, False, "evaluation") == {"kind": "evaluation", **first}
    assert to_continue(first, ASKED, begun=True) is None
    other = {"configuration": {"a": 2}, "versions": {}}
    assert to_continue(first, other, begun=False) == {**first, **other, "configuration_hash": json_sha256({"a": 2})}
    with pytest.raises(UsageError, match=r"holds a run of another configuration \(a: 1 there, 2 now\)"):
        to_continue(first, other, begun=True)
    with pytest.raises(UsageError, match="holds an evaluation of another configuration"):
        to_continue(first, other, True, "evaluation")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"kind": "evaluation"}, "is no run but an evaluation"),
        ({"kind": "picture"}, "its kind is unknown"),
        ({"schema": 6}, "was made with schema 6, this version reads 7; .* or mend it"),
        ({"configuration": {"a": 2}}, "its configuration was changed"),
        ({"configuration": 3}, "no configuration"),
        ({"command": "\x1b[2J"}, "control character"),
    ],
)
def test_manifests_are_looked_through_in_one_place(tmp_path: Path, change: dict, words: str) -> None:
    sound = manifest.to_continue(tmp_path, None, ASKED, schema=7, kind=None, begun=False) or {}
    (tmp_path / manifest.MANIFEST).write_bytes(manifest.encode_manifest({**sound, **change}))
    if not words:
        assert manifest.read_manifest(tmp_path, 7, remedy="mend it") == sound
        return
    with pytest.raises(UsageError, match=words):
        manifest.read_manifest(tmp_path, 7, remedy="mend it")


def test_a_manifest_says_with_what_it_was_made() -> None:
    said = manifest.circumstances({"threads": 2}, "forward-influence measure")
    assert list(said) == ["versions", "execution", "command", "created"]
    assert said["execution"] == {"threads": 2} and said["command"] == "forward-influence measure"
    assert said["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("name", ["someone.txt", ".lock", f"{WRITING}x"])
def test_only_a_folder_of_ones_own_is_written_into(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    if name == "someone.txt":
        with pytest.raises(UsageError, match="exists and is no evaluation"):
            manifest.refuse_foreign(tmp_path, "no evaluation", (".lock",))
        with pytest.raises(UsageError, match="exists and is no evaluation"):
            manifest.refuse_foreign(tmp_path / name, "no evaluation", (".lock",))
    else:
        manifest.refuse_foreign(tmp_path, "no evaluation", (".lock",))
    manifest.refuse_foreign(tmp_path / "new", "no evaluation", ())
