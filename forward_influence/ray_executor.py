"""Documents spread over a Ray cluster: one model per worker, loaded once; the driver alone writes the run folder.

A worker that dies costs the document it was at, which is done again by its successor; nothing half-done is ever
written, for results travel to the driver whole. A driver that dies is started again and continues its run folder.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from forward_influence.document import CutDocument, measure_document
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.executors import is_expected, reason_of, write_measured
from forward_influence.progress import Progress
from forward_influence.request import Request
from forward_influence.runs import Run

#: How often a document may take its worker down before it is given up.
_MOST_LOSSES = 3
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a worker loads the model: the arguments of `load_model`, by name."""

    spec: str
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Shipped:
    """A document as it travels: nothing but its name, fingerprint and token ids."""

    name: str
    fingerprint: str
    segments: tuple[Tensor, ...]

    @property
    def document(self) -> Shipped:
        """Itself."""
        return self


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

    def __init__(self, recipe: Recipe, fingerprint: str, threads: int, request: dict[str, Any]) -> None:
        self._recipe, self._fingerprint, self._threads = recipe, fingerprint, threads
        self._fields = request
        self._count = _Count()

    def load(self) -> int:
        """Load the model, whose weights must be the driver's; the process id.

        Raises:
            ForwardInfluenceError: other weights.
        """
        from forward_influence.models import load_model, resolve_spec

        torch.set_num_threads(self._threads)
        recipe = self._recipe
        resolved = resolve_spec(recipe.spec, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
        self._model = load_model(resolved, device=recipe.device, dtype=recipe.dtype)
        if self._model.fingerprint != self._fingerprint:
            raise ForwardInfluenceError(
                f"a worker on {os.uname().nodename} has other weights of {recipe.spec} than the driver; "
                "give every node the same model"
            )
        self._request = Request(**self._fields)
        return os.getpid()

    def measure(self, document: Shipped, chunk: int) -> Any:
        """The document's `Measured`, or the reason why it could not be measured."""
        torch.set_num_threads(self._threads)  # for this thread: Ray has set another number for the process
        try:
            return measure_document(self._model, document, self._request, chunk=chunk, progress=self._count)
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
    """

    def __init__(
        self, recipe: Recipe, address: str | None = None, workers: int = 0, gpus_per_worker: float = 0
    ) -> None:
        if workers < 0 or gpus_per_worker < 0:
            raise UsageError("--workers and --gpus-per-worker are not negative; leave --workers out for all that fit")
        self._recipe, self._address, self._workers, self._gpus = recipe, address, workers, gpus_per_worker
        self._ray = _import_ray()

    def run(
        self, run: Run, documents: Mapping[str, CutDocument], request: Request, chunk: int, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """As `Executor.run`: yields documents as they are done, in whatever order that is."""
        if not documents:
            return
        own = not self._ray.is_initialized()
        if own:
            self._connect()
        crew = None
        try:
            crew = _Crew(
                self._ray, self._maker(run, request), self._size(run, len(documents)), documents, chunk, progress
            )
            for stem, result in crew.work():
                if isinstance(result, str):
                    yield stem, result
                else:
                    write_measured(run, stem, result)
                    yield stem, None
        finally:
            if crew is not None:
                crew.dismiss()
            if own:
                self._ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"a Ray cluster at {self._address}" if self._address else "Ray on this machine"
            first = (str(error).splitlines() or [""])[0]
            raise UsageError(f"{where} cannot be reached ({first}); start one with `ray start --head`") from error

    def _size(self, run: Run, documents: int) -> int:
        """Workers: as asked for, or as many as the cluster's processors or GPUs allow; never more than documents."""
        if self._workers:
            return min(self._workers, documents)
        there = self._ray.cluster_resources()
        fitting = int(there.get("CPU", 1) // run.manifest["execution"]["threads"])
        if self._gpus:
            fitting = int(there.get("GPU", 0) // self._gpus)
        return max(1, min(fitting, documents))

    def _maker(self, run: Run, request: Request) -> Any:
        threads = int(run.manifest["execution"]["threads"])
        choices = {f.name: getattr(request, f.name) for f in fields(request) if f.init}
        actor = self._ray.remote(num_cpus=threads, num_gpus=self._gpus, max_restarts=0, max_concurrency=2)(Worker)
        return lambda: actor.remote(self._recipe, run.manifest["model"]["fingerprint"], threads, choices)


class _Crew:
    """The workers of one run, and who is at what."""

    def __init__(
        self, ray: Any, make: Any, size: int, documents: Mapping[str, CutDocument], chunk: int, progress: Progress
    ) -> None:
        self._ray, self._make, self._documents = ray, make, documents
        self._chunk, self._progress = chunk, progress
        self._waiting = deque(documents)
        self._losses: Counter[str] = Counter()
        self._busy: dict[Any, tuple[Any, str | None]] = {}  # future -> worker, document (None: it is loading)
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        worker = self._make()
        self._busy[worker.load.remote()] = (worker, None)

    def _assign(self, worker: Any) -> None:
        if not self._waiting:
            self._ray.kill(worker)
            return
        stem = self._waiting.popleft()
        cut = self._documents[stem]
        shipped = Shipped(cut.document.name, cut.document.fingerprint, tuple(cut.segments))
        self._busy[worker.measure.remote(shipped, self._chunk)] = (worker, stem)

    def work(self) -> Iterator[tuple[str, Any]]:
        """(part stem, `Measured` or the reason of a failure), as documents are done."""
        while self._busy and (self._waiting or any(stem for _, stem in self._busy.values())):
            ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_POLL_SECONDS)
            self._poll()
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
            self._hire()
            return stem, reason
        if stem is not None:
            self._progress.message(f"a worker was lost; {self._documents[stem].document.name} is done again")
            self._waiting.appendleft(stem)
        self._hire()
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
        raise UsageError('--executor ray needs Ray; install it with `pip install "forward-influence[ray]"`') from error
    return ray
