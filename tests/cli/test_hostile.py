"""Bad input at scale: never a traceback, never a hang, never a file outside the run folder."""

from __future__ import annotations

import json
from pathlib import Path

import hostile
import pytest
import tiny_data
from fault_runner import request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_influence.data.documents import load_documents
from forward_influence.execution.run import measure
from forward_influence.storage.run import SCHEMA_VERSION, part_stem

MANY = settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
SOME = settings(MANY, max_examples=80)
SPECS = st.one_of(
    st.text(max_size=60),
    st.builds(
        "{}:{}={}".format,
        st.sampled_from(["attention", "h2o", "entropy", "infokv", "random", "position-matched", "x"]),
        st.sampled_from(["window", "per", "of", "alpha", "top_k", "kernel", "seed", ""]),
        st.text(max_size=12),
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("text", hostile.STRINGS, ids=range(len(hostile.STRINGS)))
@pytest.mark.parametrize("read", [hostile.selector, hostile.budget])
def test_hostile_strings(read, text):
    assert hostile.taken_well(read, text)


@MANY
@given(SPECS)
def test_any_selector(text):
    assert hostile.taken_well(hostile.selector, text)


@MANY
@given(st.text(max_size=30) | st.floats().map(str) | st.integers().map(str))
def test_any_budget(text):
    assert hostile.taken_well(hostile.budget, text)


@MANY
@given(name=st.text(max_size=80))
def test_names_of_documents_stay_in_the_folder(name):
    stem = part_stem(name, "0" * 64)
    assert (Path("/run/parts") / f"{stem}.parquet").resolve().parent == Path("/run/parts")
    assert len(stem) < 100


@SOME
@given(data=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_manifest(tmp_path_factory, data):
    assert hostile.taken_well(hostile.manifest, data, tmp_path_factory.getbasetemp() / "manifest")


@SOME
@given(key=st.sampled_from(["configuration", "configuration_hash", "documents", "schema", "model"]), value=JSON)
def test_manifests_with_one_thing_wrong(tmp_path_factory, key, value):
    sound = {"schema": SCHEMA_VERSION, "configuration_hash": "x", "configuration": {}, "documents": [], "model": {}}
    data = json.dumps({**sound, key: value}).encode()
    assert hostile.taken_well(hostile.manifest, data, tmp_path_factory.getbasetemp() / "manifest")


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path):
    for part in ("../../etc/passwd", "/etc/passwd", "a/b", "", "\x00", "a\n"):
        documents = [{"name": "d", "part": part}]
        sound = {"schema": SCHEMA_VERSION, "configuration_hash": "x", "configuration": {}, "documents": documents}
        with pytest.raises(Exception, match=r"is no file name|control character"):
            hostile.manifest(json.dumps(sound).encode(), tmp_path)


@SOME
@given(cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=20))
def test_mutated_parts(tmp_path_factory, whole_part, cut, flips):
    data = bytearray(whole_part)
    for at, value in flips:
        data[at % len(data)] = value
    if cut % 3 == 0:
        del data[cut % len(data) :]
    assert hostile.taken_well(hostile.part, bytes(data), tmp_path_factory.getbasetemp() / "part")


@pytest.fixture(scope="module")
def whole_part(tmp_path_factory):
    run = measure(tiny_data.model(), tiny_data.documents(1, 100), request(), tmp_path_factory.mktemp("run") / "r")
    return run.part_path(run.documents[0]["part"]).read_bytes()


@SOME
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_document(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "documents"
    folder.mkdir(exist_ok=True)
    for name in ("d.txt", "d.jsonl"):
        (folder / name).write_bytes(data)
    assert hostile.taken_well(lambda: list(load_documents([str(folder / "d.txt")])))
    assert hostile.taken_well(lambda: list(load_documents([f"{folder / 'd.jsonl'}:text"])))


@pytest.mark.parametrize("text", hostile.STRINGS, ids=range(len(hostile.STRINGS)))
def test_hostile_document_specifications(text, tmp_path, monkeypatch):
    """From an empty folder in an empty home: what is below "..", "~" and $HOME is not the user's."""
    here = tmp_path / "home" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hostile.taken_well(lambda: list(load_documents([text])))
    assert [p.name for p in tmp_path.rglob("*")] == ["home", "here"]


def test_a_line_of_a_hundred_megabytes(tmp_path):
    (tmp_path / "long.txt").write_bytes(b"x" * 100_000_000)
    assert hostile.taken_well(lambda: list(load_documents([str(tmp_path / "long.txt")])))
