"""Documents over a real Ray cluster of two nodes on this machine, with a worker and then a node killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import load_file
from tiny_files import VOCABULARY, save_tiny

from forward_influence.data.spans import Span, lay_out
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.models.loading import load_model

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from forward_influence.execution.places.ray import RayExecutor  # noqa: E402
from forward_influence.models.recipe import Recipe  # noqa: E402

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


def test_documents_of_different_lengths_give_the_local_runs_columns(cluster, model, folder, tmp_path):
    request = Request(selectors=("entropy", "random"), measure_on="answer", candidates_of="thought", protect_last=4)
    documents = []
    for i, plain in enumerate(tiny_data.documents(4, 100)):
        spans = [Span("thought", 3, 40 + 5 * i), Span("answer", 43 + 5 * i, 50 + 7 * i)]
        documents.append(replace(plain, layout=lay_out(spans, request.spans)))
    local = measure(model, documents, request, tmp_path / "local", chunk=32)
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    spread = measure(model, documents, request, tmp_path / "ray", executor=executor, chunk=32)
    assert contents(spread) == contents(local)
    assert len({row["continuation"] for row in spread.rows()}) == 4


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


def test_the_driver_needs_no_model(cluster, folder, model, tmp_path):
    """Only workers load it; what the manifest says of it is what they say."""
    documents = tiny_data.documents(2, 100)
    request = Request(selectors=("attention:window=8",), **SMALL)
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    spread = measure(None, documents, request, tmp_path / "ray", executor=executor)
    local = measure(model, documents, request, tmp_path / "local")
    assert contents(spread) == contents(local)
    assert spread.manifest["model"] == local.manifest["model"]


def test_more_workers_than_fit_are_said_and_more_than_a_node_has_are_refused(cluster, folder, model, tmp_path):
    documents = tiny_data.documents(2, 100)
    request = Request(selectors=("recent",), **SMALL)
    heard = Heard()
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=50)
    run = measure(model, documents, request, tmp_path / "run", executor=executor, progress=heard)
    assert len(run.measured()) == 2
    assert any("of 50 workers fit the cluster (1 processors each)" in message for message in heard.messages)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_worker": 1}, "no node of the cluster has 1 processors and 1 GPUs for a worker"),
        ({"threads": 512}, "no node of the cluster has 512 processors for a worker"),
        ({"address": "127.0.0.1:1"}, "a Ray cluster at 127.0.0.1:1 cannot be reached"),
        ({"address": "ray://127.0.0.1:1"}, "cannot be reached"),
    ],
)
def test_what_no_cluster_can_give_is_one_line_at_once(folder, tmp_path, options, words):
    """In a process of its own, whose Ray is not connected yet."""
    script = (
        "import sys, tiny_data\n"
        "from forward_influence.errors import UsageError\n"
        "from forward_influence.execution.run import measure\n"
        "from forward_influence.execution.places.ray import RayExecutor\n"
        "from forward_influence.models.recipe import Recipe\n"
        "from forward_influence.measurement.request import Request\n"
        f"request = Request(selectors=('recent',), **{SMALL!r})\n"
        f"executor = RayExecutor(Recipe({str(folder)!r}, device='cpu'), **{options!r})\n"
        "try:\n"
        f"    measure(None, tiny_data.documents(1, 100), request, {str(tmp_path / 'run')!r}, executor=executor)\n"
        "except UsageError as error:\n"
        "    print('said:', error)\n"
    )
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert words in done.stdout, done.stderr[-2000:]
    assert done.stdout.startswith("said:") and done.stdout.count("\n") == 1
    assert time.monotonic() - begun < 90


def test_a_killed_driver_is_resumed(cluster, folder, model, tmp_path):
    """SIGKILL for the process that drives; the same command measures what is missing, and nothing twice."""
    rule, _ = slow_rule(tmp_path, 0.7)
    script = (
        "import ray, sys, tiny_data, torch\n"
        "torch.set_num_threads(1)\n"
        "from forward_influence.execution.run import measure\n"
        "from forward_influence.execution.places.ray import RayExecutor\n"
        "from forward_influence.models.recipe import Recipe\n"
        "from forward_influence.measurement.request import Request\n"
        f"request = Request(selectors=({rule!r},), **{SMALL!r})\n"
        f"executor = RayExecutor(Recipe({str(folder)!r}, device='cpu'), address={cluster.address!r}, workers=2)\n"
        f"measure(None, tiny_data.documents(6, 100), request, {str(tmp_path / 'run')!r}, executor=executor)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "run" / "parts"
    deadline = time.monotonic() + 300
    while (not parts.is_dir() or len(list(parts.glob("*.parquet"))) < 2) and time.monotonic() < deadline:
        assert driver.poll() is None, driver.stderr.read()[-2000:]
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    there = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 2 <= len(there) < 6
    request = Request(selectors=(rule,), **SMALL)
    documents = tiny_data.documents(6, 100)
    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    run = measure(None, documents, request, tmp_path / "run", executor=executor)
    assert len(run.measured()) == 6
    assert all(path.stat().st_mtime_ns == changed for path, changed in there.items())
    assert contents(run) == contents(measure(model, documents, request, tmp_path / "local"))


def test_a_run_that_is_enough_ends_and_lets_its_workers_go(cluster, folder, tmp_path):
    class After:
        count = 0

        def add(self, rows):
            self.count += 1
            return {"half_widths": {"r": 0.1}, "level": 0.97} if self.count == 2 else None

    executor = RayExecutor(Recipe(str(folder), device="cpu"), workers=2)
    request = Request(selectors=("recent",), **SMALL)
    documents = tiny_data.documents(8, 100)
    run = measure(None, documents, request, tmp_path / "run", executor=executor, stop=After())
    assert [d["name"] for d in run.documents] == [d["name"] for d in run.measured()] == ["doc 0/../x", "doc 1/../x"]
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU", 0) >= 2


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


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "9"}])
def test_threads_of_workers_sleep_unless_the_user_has_decided(given, cluster, folder, model, tmp_path, monkeypatch):
    """The variables are in the worker's environment from its start, for torch is loaded with the worker's class."""
    from forward_influence.utils.threads import SLEEPING

    for name in SLEEPING:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "note.py").write_text(
        "from pathlib import Path\nfrom forward_influence import selector\n\n"
        f"@selector({'environment' + str(len(given))!r}, needs={{'surprisal'}})\ndef note(trace):\n"
        f"    Path({str(tmp_path / 'seen')!r}).write_bytes(Path('/proc/self/environ').read_bytes())\n"
        "    return trace.surprisal\n"
    )
    documents = tiny_data.documents(1, 100)
    request = Request(selectors=(f"{tmp_path / 'note.py'}:note",), draws=1, **SMALL)
    measure(
        None, documents, request, tmp_path / "run", executor=RayExecutor(Recipe(str(folder), device="cpu"), threads=1)
    )
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().split("\0") if "=" in line)
    assert {name: seen[name] for name in SLEEPING if name in seen} == (given or SLEEPING)


def test_workers_get_no_more_threads_than_processors_may_be_used(monkeypatch):
    from forward_influence.execution.places import ray as ray_executor

    monkeypatch.setattr(ray_executor, "processors", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert RayExecutor(Recipe("x")).threads == 1
    assert RayExecutor(Recipe("x"), threads=3).threads == 3
