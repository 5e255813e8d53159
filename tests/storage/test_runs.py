"""The run folder under what may happen to it: two starts at once, changed manifests, lost selections, poison."""

from __future__ import annotations

import json
import os
import signal
import tempfile

import fault_runner
import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import load_file

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.storage import run as runs
from forward_influence.storage.run import open_run
from forward_influence.storage.shards import encode_part, load_part


def contents(run) -> list[dict]:
    return [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in run.rows()]


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


def test_a_start_that_was_killed_while_it_wrote_its_manifest_is_no_obstacle(model, tmp_path):
    """Also when it is the very first thing that is written: only half a file is there then."""
    documents = tiny_data.documents(1, 100)
    child = os.fork()
    if child == 0:
        os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        measure(model, documents, fault_runner.request(), tmp_path / "run")
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [p.name[:9] for p in (tmp_path / "run").iterdir() if p.name != ".lock"] == [".writing-"]
    assert len(measure(model, documents, fault_runner.request(), tmp_path / "run").measured()) == 1


def test_two_starts_at_once_on_a_new_folder_never_mix(model, tmp_path):
    """Of two configurations begun together one has the folder, and what it measured can be read."""
    documents = tiny_data.documents(1, 100)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        children = []
        for protect in (8, 9):
            child = os.fork()
            if child == 0:
                request = Request(
                    selectors=("recent",), budgets=("0.2",), context=60, continuation=40, protect_last=protect
                )
                try:
                    measure(model, documents, request, folder)
                except ForwardInfluenceError:
                    os._exit(7)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert 0 in codes
        assert set(codes) <= {0, 7}
        assert codes.count(0) == 1, "two configurations cannot both have been measured"
        run = open_run(folder)
        assert len(run.measured()) == 1
        assert run.configuration["protect_last"] == (8, 9)[codes.index(0)]


def test_a_changed_manifest_is_noticed(model, tmp_path):
    run = measure(model, tiny_data.documents(1, 100), fault_runner.request(), tmp_path / "run")
    path = run.folder / "manifest.json"
    honest = json.loads(path.read_text())
    changes = {
        "configuration": ("its configuration was changed", lambda m: m["configuration"].update(protect_first=3)),
        "hash": ("its configuration was changed", lambda m: m.update(configuration_hash="0" * 64)),
        "threads": ("no usable threads", lambda m: m["execution"].update(threads=10**6)),
        "chunk": ("no usable chunk", lambda m: m["execution"].update(chunk=0)),
        "model": ("its model is no dict", lambda m: m.update(model="x")),
        "skipped": ("its skipped is no list", lambda m: m.update(skipped=3)),
        "context": ("context is no int", lambda m: m["configuration"].update(context="many")),
        "part": ("is no file name", lambda m: m["documents"][0].update(part="../../x")),
        "fingerprint": ("has no fingerprint", lambda m: m["documents"][0].pop("fingerprint")),
    }
    for words, change in changes.values():
        manifest = json.loads(json.dumps(honest))
        change(manifest)
        path.write_text(json.dumps(manifest))
        with pytest.raises(UsageError, match=words):
            open_run(tmp_path / "run")
    path.write_text(json.dumps(honest))
    assert len(open_run(tmp_path / "run").measured()) == 1


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_selections_that_do_not_belong_to_their_part_are_measured_again(model, tmp_path, damage):
    documents = tiny_data.documents(2, 100)
    run = measure(model, documents, fault_runner.request(), tmp_path / "run")
    path = run.selections_path(run.documents[0]["part"])
    honest, tensors = path.read_bytes(), {name: t.clone() for name, t in load_file(path).items()}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(honest[:-5] + bytes([honest[-5] ^ 1]) + honest[-4:])
    assert [d["name"] for d in run.measured()] == ["doc 1/../x"]
    run = measure(model, documents, fault_runner.request(), tmp_path / "run")
    again = load_file(path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in again)
    assert len(run.measured()) == 2


def test_parts_that_no_measurement_writes_do_not_read_back(model, tmp_path):
    """A digest can be made for anything: what is inside must make sense, too."""
    run = measure(model, tiny_data.documents(1, 100), fault_runner.request(), tmp_path / "run")
    digest = run.manifest["configuration_hash"]
    path = run.part_path(run.documents[0]["part"])
    rows = load_part(path, digest).rows
    where = next(i for i, row in enumerate(rows) if row["kind"] == "condition")
    nan = rows[where]["kl"].copy()
    nan[3] = np.nan
    wrongs = [
        {"kl": None},
        {"kl": rows[where]["kl"][:5]},
        {"kl": nan},
        {"continuation": None},
        {"kind": "guess"},
        {"distance": np.arange(len(nan), dtype=np.int32) + 1},
    ]
    for wrong in wrongs:
        path.write_bytes(encode_part([*rows[:where], {**rows[where], **wrong}, *rows[where + 1 :]], digest))
        with pytest.raises(ForwardInfluenceError, match="does not read back"):
            load_part(path, digest)
        assert run.measured() == []


def test_a_part_that_would_unpack_to_gigabytes_is_refused_unread(tmp_path, model, monkeypatch):
    run = measure(model, tiny_data.documents(1, 100), fault_runner.request(), tmp_path / "run")
    path = run.part_path(run.documents[0]["part"])
    rows = load_part(path).rows
    zeros = {**rows[1], "kl": np.zeros(2_000_000, np.float32), "continuation": 2_000_000}
    zeros |= {"nll_delta": zeros["kl"], "top1_changed": np.zeros(2_000_000, bool), "distance": None}
    path.write_bytes(encode_part([zeros] * 8, "x"))
    monkeypatch.setattr("forward_influence.storage.tables._MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr("forward_influence.storage.tables.pq.ParquetFile.read", lambda self: pytest.fail("it was read"))
    with pytest.raises(ForwardInfluenceError, match="would unpack to"):
        load_part(path)


def test_going_on_under_other_versions_is_said(model, tmp_path):
    documents = tiny_data.documents(2, 100)
    measure(model, documents, fault_runner.request(), tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "2.6.0"
    path.write_text(json.dumps(manifest))
    (tmp_path / "run" / "parts").joinpath(manifest["documents"][0]["part"] + ".parquet").unlink()
    said: list[str] = []

    class Listener:
        def begin(self, total, text): ...
        def advance(self, count, text): ...
        def message(self, text):
            said.append(text)

        def end(self): ...

    measure(model, documents, fault_runner.request(), tmp_path / "run", progress=Listener())
    assert any(f"was begun with torch 2.6.0, now {torch.__version__}" in text for text in said)
    assert {"tokenizers", "pyarrow", "numpy", "transformers", "python"} <= set(manifest["versions"])


def test_a_folder_of_somebody_else_is_left_alone(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a run folder"):
        measure(model, tiny_data.documents(1, 100), fault_runner.request(), tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"], "not even a lock is left there"


class Poisoned:
    """A model whose embedding of token 2, which no document has, is NaN."""

    def __init__(self) -> None:
        self.model = tiny_data.model()
        self.weight = self.model.model.get_input_embeddings().weight

    def __enter__(self):
        self.before = self.weight[2].clone()
        with torch.no_grad():
            self.weight[2] = float("nan")
        return wrap_model(self.model.model, spec=self.model.spec)

    def __exit__(self, *error):
        with torch.no_grad():
            self.weight[2] = self.before


def failure_of(place: int, **changes) -> str:
    said: list[str] = []

    class Listener:
        def begin(self, total, text): ...
        def advance(self, count, text): ...
        def message(self, text):
            said.append(text)

        def end(self): ...

    documents = tiny_data.documents(2, 100)
    documents[1].segments[0][place] = 2
    settings = {"selectors": ("recent", "random"), "budgets": ("0.2",), "context": 60, "continuation": 40, **changes}
    with Poisoned() as model, tempfile.TemporaryDirectory() as folder:
        run = measure(
            model, documents, Request(protect_last=8, **settings), folder + "/run", chunk=16, progress=Listener()
        )
        assert {row["document"] for row in run.rows()} == {"doc 0/../x"}
    return said[0]


@pytest.mark.parametrize("place", [0, 20, 39, 59])
def test_the_token_that_poisons_a_context_is_named(place):
    assert f"token {place} of its context (segment 0) makes" in failure_of(place)


@pytest.mark.parametrize("place", [60, 81, 99])
def test_the_token_that_poisons_a_continuation_is_named(place):
    if place == 99:  # the last token's own logits are compared as well
        assert "at distance 39" in failure_of(place)
        return
    assert f"the full cache gives NaN or infinite logits at distance {place - 60}" in failure_of(place)


def test_poison_while_generating_or_looking_ahead_costs_its_document_alone():
    assert "token 20 of its context" in failure_of(20, continuation_from="generate")
    assert "logits at distance 10" in failure_of(70, selectors=("oracle:far",))


def test_an_ablation_that_causes_nan_names_condition_and_distance():
    """Removing tokens can overflow where the full cache does not: here a value is spoilt under the ablation alone."""
    from forward_influence.influence.ablation import Removal
    from forward_influence.influence.measure import measure_ablations
    from forward_influence.tracing.recorder import record

    model = tiny_data.model()
    [tokens] = tiny_data.documents(1, 100)[0].segments
    trace = record(model, tokens[:60], span=100)

    def poisoned(room):
        cache = trace.cache.branch(None, room)
        update = cache.layers[1].update

        def at_distance_seven(keys, values, *args, **kwargs):
            start = cache.layers[1].seen - 60
            if start <= 7 < start + values.shape[2]:
                values = values.clone()
                values[:, :, 7 - start] = float("nan")
            return update(keys, values, *args, **kwargs)

        cache.layers[1].update = at_distance_seven
        return cache

    with pytest.raises(ForwardInfluenceError, match=r"entropy at 0\.2: NaN or infinite logits at distance 7;"):
        measure_ablations(model, trace, tokens[60:], [Removal("entropy at 0.2", 40, branch=poisoned)], chunk=16)


def test_runs_still_has_the_names_that_others_import():
    assert {"SCHEMA", "encode_part", "read_part", "part_stem", "write_whole"} <= set(runs.__all__)
