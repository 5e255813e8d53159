"""Documents spread over a Ray cluster: one model per worker, loaded once; the driver alone writes the run folder.

A worker that dies costs the document it was at, which is done again by its successor; nothing half-done is ever
written, for results travel to the driver whole. A driver that dies is started again and continues its run folder.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch

from forward_influence.data.cutting import Cut
from forward_influence.data.document import Document
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.cluster import Cluster
from forward_influence.execution.executors import Task, is_expected, reason_of, write_measured
from forward_influence.measurement.request import Request
from forward_influence.models.info import Card
from forward_influence.models.recipe import Recipe
from forward_influence.storage.run import Run
from forward_influence.utils.progress import Progress
from forward_influence.utils.threads import SLEEPING, processors

#: How often a document may take its worker down before it is given up.
_MOST_LOSSES = 3
_POLL_SECONDS = 1.0
_REACH_SECONDS = 5.0


class _Count:
    """A worker's progress, fetched by the driver now and then."""

    def __init__(self) -> None:
        self.tokens, self.what = 0, ""

    def begin(self, total_tokens: int, what: str) -> None: ...

    def advance(self, tokens: int, what: str) -> None:
        self.tokens, self.what = self.tokens + tokens, what

    def message(self, text: str) -> None: ...

    def end(self) -> None: ...


class Worker:
    """Lives in a process of its own, holds the model and measures one document at a time."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self._recipe, self._threads = recipe, threads
        self._count = _Count()
        self._request: Request | None = None

    def load(self, fingerprint: str | None) -> Card:
        """Load the model, whose weights must have this fingerprint if one is given; what it is.

        Raises:
            ForwardInfluenceError: other weights.
        """
        torch.set_num_threads(self._threads)
        self._model = self._recipe.loaded()
        if fingerprint is not None and self._model.fingerprint != fingerprint:
            raise ForwardInfluenceError(
                f"a worker on {os.uname().nodename} has other weights of {self._recipe.model} than the driver; "
                "give every node the same model"
            )
        return Card.of(self._model)

    def measure(self, document: Cut, request: dict[str, Any], task: dict[str, Any]) -> Any:
        """The document's `Measured`, or the reason why it could not be measured."""
        torch.set_num_threads(self._threads)  # for this thread: Ray has set another number for the process
        if self._request is None:
            self._request = Request(**request)
        try:
            return Task(self._request, **task).measure(self._model, document, self._count)
        except UsageError:
            raise
        except (ForwardInfluenceError, MemoryError, RuntimeError) as failure:
            if not is_expected(failure):
                raise
            return reason_of(failure)

    def taken(self) -> tuple[int, str]:
        """Tokens done since the last question, and what is being done."""
        tokens, self._count.tokens = self._count.tokens, 0
        return tokens, self._count.what


class RayExecutor:
    """Measures documents on the workers of a Ray cluster.

    Args:
        recipe: how each worker loads the model.
        address: of a running cluster ("auto", "ray://host:10001", "host:6379"); None starts one on this machine, or
            joins the one that the environment variable RAY_ADDRESS names.
        workers: how many; 0 for as many as fit the cluster.
        gpus_per_worker: GPUs that each worker gets.
        threads: processors that each worker gets; 0 for as many as torch uses here.

    Attributes:
        threads: of each worker.
    """

    def __init__(
        self,
        recipe: Recipe,
        address: str | None = None,
        workers: int = 0,
        gpus_per_worker: float = 0,
        threads: int = 0,
    ) -> None:
        if workers < 0 or gpus_per_worker < 0 or threads < 0:
            raise UsageError("`workers`, `gpus_per_worker` and `threads_per_worker` are not negative; leave them out")
        self.recipe, self._address, self._workers, self._gpus = recipe, address, workers, gpus_per_worker
        self.threads = threads or min(torch.get_num_threads(), processors())
        self._first: Any = None  # a worker that has loaded the model already, and what it said of it
        self._card: Card | None = None
        self._own = False
        self._ray = _import_ray()

    def card(self) -> Card:
        """The model as a worker loads it, once; that worker goes on to measure."""
        if self._first is not None and self._card is not None:
            return self._card
        self._connect()
        self._first = self._make(self.threads)
        try:
            card: Card = self._ray.get(self._first.load.remote(None))
        except self._ray.exceptions.RayTaskError as error:
            raise _plain(error) from error
        except self._ray.exceptions.RayError as error:
            raise ForwardInfluenceError(f"loading the model: a worker died ({type(error).__name__})") from error
        if card.free_bytes is not None and torch.device(card.device).type == "cpu":
            card = dataclasses.replace(card, free_bytes=card.free_bytes // max(1, self._most_on_one_node()))
        self._card = card
        return card

    def run(
        self, run: Run, documents: Mapping[str, Cut], task: Task, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """As `Executor.run`: yields documents as they are done, in whatever order that is."""
        crew = None
        try:
            if not documents:
                return
            self._connect()
            self.threads = int(run.manifest["execution"]["threads"])
            size = self._size(len(documents), progress)
            crew = _Crew(self, task.fingerprint, documents, task, progress)
            crew.hire(size, self._first)
            self._first = None
            for stem, result in crew.work():
                if isinstance(result, str):
                    yield stem, result
                else:
                    write_measured(run, stem, result)
                    yield stem, None
        finally:
            if crew is not None:
                crew.dismiss()
            self._first = None
            if self._own:
                self._ray.shutdown()
                self._own = False

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        _refuse_silent(self._address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"a Ray cluster at {self._address}" if self._address else "Ray on this machine"
            first = (str(error).splitlines() or [""])[0]
            raise UsageError(f"{where} cannot be reached ({first}); start one with `ray start --head`") from error
        self._own = True
        if not self.fits():
            wanted = f"{self.threads} processors" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            self._ray.shutdown()
            self._own = False
            raise UsageError(
                f"no node of the cluster has {wanted} for a worker; lower `threads_per_worker` (or OMP_NUM_THREADS) or "
                "`gpus_per_worker`, or add a node"
            )

    def fits(self) -> bool:
        """Whether any node that is alive could hold a worker."""
        return self._most_on_one_node() > 0

    def _on_nodes(self) -> list[int]:
        """How many workers each living node could hold."""
        found = []
        for node in self._ray.nodes():
            if node.get("Alive"):
                there = node.get("Resources", {})
                fitting = there.get("CPU", 0) // max(1, self.threads)
                found.append(int(min(fitting, there.get("GPU", 0) // self._gpus if self._gpus else fitting)))
        return found

    def _most_on_one_node(self) -> int:
        return max(self._on_nodes(), default=0)

    def _size(self, documents: int, progress: Progress) -> int:
        """Workers: as asked for, and no more than fit the cluster or have a document."""
        fitting = sum(self._on_nodes())
        if self._workers > fitting:
            progress.message(f"{fitting} of {self._workers} workers fit the cluster ({self.threads} processors each)")
        return max(1, min(self._workers or fitting, fitting, documents))

    def _make(self, threads: int) -> Any:
        actor = self._ray.remote(num_cpus=threads, num_gpus=self._gpus, max_restarts=0, max_concurrency=2)(Worker)
        # read when a worker's process loads torch, which is when it unpacks the class
        waiting = {"env_vars": _waiting(os.environ)}
        return actor.options(runtime_env=waiting).remote(self.recipe, threads)

    def make(self) -> Any:
        """Another worker."""
        return self._make(self.threads)

    @property
    def ray(self) -> Any:
        """The module."""
        return self._ray


def make(recipe: Recipe, cluster: Cluster) -> RayExecutor:
    """As asked for.

    Raises:
        UsageError: Ray is not installed.
    """
    return RayExecutor(recipe, cluster.address, cluster.workers, cluster.gpus_per_worker, cluster.threads_per_worker)


class _Crew:
    """The workers of one run, and who is at what."""

    def __init__(
        self,
        executor: RayExecutor,
        fingerprint: str,
        documents: Mapping[str, Cut],
        task: Task,
        progress: Progress,
    ) -> None:
        self._executor, self._ray, self._documents = executor, executor.ray, documents
        self._fingerprint, self._progress = fingerprint, progress
        self._request = {f.name: getattr(task.request, f.name) for f in fields(task.request) if f.init}
        self._task = {f.name: getattr(task, f.name) for f in fields(task) if f.name != "request"}
        self._waiting = deque(documents)
        self._losses: Counter[str] = Counter()
        self._busy: dict[Any, tuple[Any, str | None]] = {}  # future -> worker, document (None: it is loading)

    def hire(self, size: int, first: Any = None) -> None:
        """Take so many workers on, one that is there already among them."""
        if first is not None:
            self._assign(first)
        for _ in range(size - (first is not None)):
            worker = self._executor.make()
            self._busy[worker.load.remote(self._fingerprint)] = (worker, None)

    def _assign(self, worker: Any) -> None:
        if not self._waiting:
            self._ray.kill(worker)
            return
        stem = self._waiting.popleft()
        cut = self._documents[stem]
        # nothing but its name, fingerprint and token ids travels
        shipped = Cut(Document(cut.document.name, "", cut.document.fingerprint), tuple(cut.segments), cut.length)
        self._busy[worker.measure.remote(shipped, self._request, self._task)] = (worker, stem)

    def work(self) -> Iterator[tuple[str, Any]]:
        """(part stem, `Measured` or the reason of a failure), as documents are done."""
        while self._busy and (self._waiting or any(stem for _, stem in self._busy.values())):
            ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_POLL_SECONDS)
            self._poll()
            if not ready and all(stem is None for _, stem in self._busy.values()) and not self._executor.fits():
                raise ForwardInfluenceError(
                    "no node that is left of the cluster has room for a worker; what was measured is kept, the same "
                    "command continues"
                )
            for future in ready:
                worker, stem = self._busy.pop(future)
                try:
                    result = self._ray.get(future)
                except self._ray.exceptions.RayTaskError as error:
                    raise _plain(error) from error
                except self._ray.exceptions.RayError as error:
                    given_up = self._lost(stem, error)
                    if given_up is not None:
                        yield given_up
                    continue
                if stem is not None:
                    yield stem, result
                self._assign(worker)

    def _lost(self, stem: str | None, error: BaseException) -> tuple[str, str] | None:
        """A worker is gone: its document goes back, a successor is hired; (stem, reason) if that is enough."""
        key = stem or "loading"
        self._losses[key] += 1
        if self._losses[key] >= _MOST_LOSSES * (1 if stem else 10):
            reason = f"{self._losses[key]} workers died at it ({type(error).__name__}); is there enough memory?"
            if stem is None:
                raise ForwardInfluenceError(f"loading the model: {reason}")
            self.hire(1)
            return stem, reason
        if stem is not None:
            self._progress.message(f"a worker was lost; {self._documents[stem].document.name} is done again")
            self._waiting.appendleft(stem)
        self.hire(1)
        return None

    def _poll(self) -> None:
        """Fetch every worker's progress; one that does not answer is not waited for."""
        asked = [worker.taken.remote() for worker, stem in self._busy.values() if stem is not None]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_POLL_SECONDS / 2) if asked else ([], [])
        for answer in ready:
            try:
                tokens, what = self._ray.get(answer)
            except self._ray.exceptions.RayError:
                continue
            if tokens:
                self._progress.advance(tokens, what)

    def dismiss(self) -> None:
        """Let every worker go."""
        for worker, _ in self._busy.values():
            self._ray.kill(worker)
        self._busy.clear()


def _waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """How a worker's threads wait: as the driver's user has decided, otherwise asleep."""
    given = {name: environment[name] for name in SLEEPING if name in environment}
    return given or dict(SLEEPING)


def _refuse_silent(address: str | None) -> None:
    """Ray tries for minutes to reach a cluster that is not there; one knock tells.

    Raises:
        UsageError: nobody answers at the address.
    """
    match = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:/\[\]]+):(\d+)", address or "")
    if match is None:
        return
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"a Ray cluster at {address} cannot be reached ({reason}); start one with `ray start --head`"
        ) from error


def _plain(error: Any) -> Exception:
    """The error that a worker raised, as it would be raised here."""
    cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
    if isinstance(cause, ForwardInfluenceError):
        return cause
    first = (str(cause).splitlines() or [""])[0]
    return ForwardInfluenceError(f"a worker failed: {type(cause).__name__}: {first}")


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError('`executor` ray needs Ray; install it with `pip install "forward-influence[ray]"`') from error
    return ray
