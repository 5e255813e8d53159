"""An evaluation's folder: damage is noticed, never read and done again; what was changed by hand is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import hostile
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_influence.errors import UsageError
from forward_influence.storage.evaluation import (
    RESULTS,
    SCHEMA,
    SCHEMA_VERSION,
    Evaluation,
    create_or_continue,
    open_evaluation,
)
from forward_influence.storage.run import MANIFEST, open_run

CONFIGURATION = {"model": "tiny", "budgets": ["0.4", "0.2"], "items": 2, "every": None, "temperature": 0.5}
STEMS = ["needle-600-seen-00000", "needle-600-seen-00001"]


def rows(item: int) -> list[dict]:
    """A row for the full cache and one for a rule; values of every type of the schema, missing ones too."""
    examples = {
        pa.string(): "text é 😀",
        pa.bool_(): True,
        pa.int32(): item,
        pa.int64(): 1 << 40,
        pa.float64(): 0.1 + item,
        pa.list_(pa.string()): ["one", "two"],
    }
    full = {field.name: examples[field.type] for field in SCHEMA}
    return [full, {**full, "compressor": "random", "depth": None, "every": None, "score": 0.0}]


def made(folder: Path) -> Evaluation:
    evaluation = create_or_continue(folder, {"configuration": CONFIGURATION})
    for item, stem in enumerate(STEMS):
        evaluation.write(stem, rows(item))
    return evaluation


def test_what_is_written_reads_back(tmp_path):
    evaluation = made(tmp_path / "e")
    assert evaluation.merge(STEMS)
    found = open_evaluation(tmp_path / "e").frame()
    assert found["score"].tolist() == [0.1, 0.0, 1.1, 0.0]
    assert found["answers"].iloc[0].tolist() == ["one", "two"]
    (tmp_path / "e" / RESULTS).write_bytes(b"damaged")
    assert found.equals(evaluation.frame()), "the parts are there still"


def test_every_flipped_bit_of_a_part_is_noticed_or_harmless(tmp_path):
    """Each byte of a part in turn (a sample of them): it does not read back, or it reads back unchanged."""
    evaluation = made(tmp_path / "e")
    path = evaluation.part_path(STEMS[0])
    whole, data = evaluation.frame(), path.read_bytes()
    generator = np.random.default_rng(0)
    noticed = 0
    for at in generator.choice(len(data), 600, replace=False):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        if evaluation.has(STEMS[0]):
            assert evaluation.frame().equals(whole), f"byte {at} changed results without a word"
        else:
            noticed += 1
            assert len(evaluation.frame()) == 2
            assert not evaluation.merge(STEMS)
    assert noticed > 200
    evaluation.write(STEMS[0], rows(0))
    assert evaluation.merge(STEMS)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"\x89PNG\r\n\x1a\n", "torn", "another's"])
def test_a_damaged_part_is_not_there(tmp_path, damage):
    evaluation = made(tmp_path / "e")
    path = evaluation.part_path(STEMS[0])
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "another's":
        other = create_or_continue(tmp_path / "other", {"configuration": {**CONFIGURATION, "items": 3}})
        other.write(STEMS[0], rows(0))
        path.write_bytes(other.part_path(STEMS[0]).read_bytes())
    else:
        path.write_bytes(damage)
    assert not evaluation.has(STEMS[0])
    assert len(evaluation.frame()) == 2


@pytest.mark.parametrize("key", list(CONFIGURATION))
def test_a_configuration_that_was_changed_is_refused(tmp_path, key):
    """Otherwise results of one request would be shown as those of another."""
    made(tmp_path / "e")
    path = tmp_path / "e" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["configuration"][key] = "changed"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"its configuration(.s budgets)? (was changed|is no list)"):
        open_evaluation(tmp_path / "e")
    with pytest.raises(UsageError, match=r"its configuration(.s budgets)? (was changed|is no list)"):
        create_or_continue(tmp_path / "e", {"configuration": manifest["configuration"]})


def test_results_of_an_older_schema_are_refused_in_words(tmp_path):
    made(tmp_path / "e")
    path = tmp_path / "e" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    with pytest.raises(
        UsageError, match=f"made with schema 1, this version reads {SCHEMA_VERSION} and 3; .*evaluate anew"
    ):
        open_evaluation(tmp_path / "e")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=2000, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(["kind", "schema", "configuration", "configuration_hash", "versions", "model"]), value=JSON)
def test_manifests_with_one_thing_wrong(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp() / "evaluation"
    if not folder.exists():
        made(folder)
    path = folder / MANIFEST
    sound = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(sound), key: value}))
        assert hostile.taken_well(open_evaluation, folder)
        with suppress(UsageError):
            evaluation = open_evaluation(folder)
            assert evaluation.configuration == CONFIGURATION
            assert len(evaluation.frame()) == 4
    finally:
        path.write_text(sound)


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b'{"kind": "evaluation"}'])
def test_what_is_no_manifest_is_one_line(tmp_path, data):
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(UsageError, match=MANIFEST) as caught:
        open_evaluation(tmp_path)
    assert len(str(caught.value)) <= 600


def test_an_unfinished_evaluation_says_how_to_go_on(tmp_path):
    asked = CONFIGURATION | {"tasks": ["needle"], "lengths": [600], "protocols": ["seen"]}
    evaluation = create_or_continue(tmp_path / "e", {"configuration": asked, "command": "evaluate again"})
    evaluation.write(STEMS[0], rows(0))
    assert evaluation.unfinished() == "unfinished: 1 of 2 parts are there; to continue: evaluate again"
    evaluation.write(STEMS[1], rows(1))
    assert evaluation.unfinished() is None


def test_a_folder_without_an_answer_takes_another_request(tmp_path):
    """A request that was refused after its manifest was written leaves nothing that could be lost."""
    first = create_or_continue(tmp_path / "e", {"configuration": CONFIGURATION})
    second = create_or_continue(tmp_path / "e", {"configuration": CONFIGURATION | {"items": 3}})
    assert second.configuration["items"] == open_evaluation(tmp_path / "e").configuration["items"] == 3
    assert not first.started()
    second.write(STEMS[0], rows(0))
    with pytest.raises(UsageError, match="an evaluation of another configuration"):
        create_or_continue(tmp_path / "e", {"configuration": CONFIGURATION})


def test_an_evaluation_is_no_run(tmp_path):
    made(tmp_path / "e")
    with pytest.raises(UsageError, match="is no run but an evaluation"):
        open_run(tmp_path / "e")
