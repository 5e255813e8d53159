"""Documents over a real Ray cluster of two nodes on this machine, with a worker and then a node killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import load_file
from tiny_files import VOCABULARY, save_tiny

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.measurement import measure
from forward_influence.models import load_model
from forward_influence.request import Request

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
cluster_utils = pytest.importorskip("ray.cluster_utils")

from forward_influence.ray_executor import RayExecutor, Recipe  # noqa: E402

SMALL = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2",)}
#: A rule that says where it runs and takes its time, so that it can be killed in the middle.
SLOW_RULE = """
import os, time
from pathlib import Path
from forward_influence import selector

@selector({name!r}, needs={{"surprisal"}})
def dawdling(trace):
    import ray
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    Path({folder!r}, str(os.getpid())).write_text(node)
    time.sleep({seconds})
    return trace.surprisal
"""


class Heard:
    """Counts progress."""

    def __init__(self) -> None:
        self.tokens, self.messages, self.total, self.ended = 0, [], 0, 0

    def begin(self, total_tokens: int, what: str) -> None:
        self.total = total_tokens

    def advance(self, tokens: int, what: str) -> None:
        self.tokens += tokens

    def message(self, text: str) -> None:
        self.messages.append(text)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    made.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def contents(run) -> list[dict]:
    return [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in run.rows()]


def slow_rule(tmp_path: Path, seconds: float) -> tuple[str, Path]:
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "slow.py").write_text(SLOW_RULE.format(folder=str(seen), seconds=seconds, name=tmp_path.name))
    return f"{tmp_path / 'slow.py'}:dawdling", seen


def first_seen(seen: Path, ignore: set[str] = frozenset()) -> Path:
    while True:
        for path in seen.iterdir():
            if path.name not in ignore and path.read_text():
                return path
        time.sleep(0.05)


def in_background(action) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_two_nodes_give_the_local_runs_columns_bit_for_bit(cluster, model, folder, tmp_path):
    documents = tiny_data.documents(5, 100)
    request = Request(selectors=("attention:window=8", "entropy", "random"), save_selections=True, **SMALL)
    local = measure(model, documents, request, tmp_path / "local", chunk=32)
    heard = Heard()
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    spread = measure(model, documents, request, tmp_path / "ray", chunk=32, executor=executor, progress=heard)
    assert len(contents(local)) == 5 * (1 + 2 + 5 + 2)
    assert contents(spread) == contents(local)
    for document in local.documents:
        one, two = (load_file(run.selections_path(document["part"])) for run in (local, spread))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert heard.ended == 1
    assert heard.total > 0 and not heard.messages


def test_a_killed_worker_costs_its_document_which_is_done_again(cluster, model, folder, tmp_path):
    rule, seen = slow_rule(tmp_path, 1.0)
    request = Request(selectors=(rule,), **SMALL)
    documents = tiny_data.documents(4, 100)
    killing = in_background(lambda: os.kill(int(first_seen(seen).name), signal.SIGKILL))
    heard = Heard()
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    run = measure(model, documents, request, tmp_path / "ray", executor=executor, progress=heard)
    killing.join()
    assert len(run.measured()) == 4
    assert sum("is done again" in message for message in heard.messages) == 1
    local = measure(model, documents, request, tmp_path / "local")
    assert contents(run) == contents(local)


def test_a_killed_node_costs_no_more(cluster, model, folder, tmp_path):
    rule, seen = slow_rule(tmp_path, 1.5)
    request = Request(selectors=(rule,), **SMALL)
    second = cluster.add_node(num_cpus=1, object_store_memory=10**8)

    def kill_the_new_node() -> None:
        while not any(path.read_text() == second.node_id for path in seen.iterdir()):
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killing = in_background(kill_the_new_node)
    heard = Heard()
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=3)
    run = measure(model, tiny_data.documents(6, 100), request, tmp_path / "ray", executor=executor, progress=heard)
    killing.join(timeout=1)
    assert not killing.is_alive()
    assert len(run.measured()) == 6
    assert any("is done again" in message for message in heard.messages)


def test_what_concerns_the_request_ends_the_run_with_one_line(cluster, model, folder, tmp_path):
    rules = tmp_path / "broken.py"
    rules.write_text(
        "from forward_influence import selector\n\n@selector('broken')\ndef broken(trace):\n"
        "    return trace.tokens[:3].float()\n"
    )
    request = Request(selectors=(f"{rules}:broken",), **SMALL)
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=1)
    with pytest.raises(UsageError, match="rule 'broken' returned scores of shape"):
        measure(model, tiny_data.documents(2, 100), request, tmp_path / "run", executor=executor)


def test_other_weights_on_a_node_are_refused(cluster, model, folder, tmp_path):
    from tiny import tiny_model

    other = save_tiny(tmp_path / "other", tiny_model("llama", torch.float32, 1, vocab_size=VOCABULARY))
    executor = RayExecutor(Recipe(str(other), device="cpu"), workers=1)
    with pytest.raises(ForwardInfluenceError, match="has other weights"):
        measure(
            model,
            tiny_data.documents(1, 100),
            Request(selectors=("recent",), **SMALL),
            tmp_path / "r",
            executor=executor,
        )
