"""Where documents are measured. An executor yields each document as it is done, with an error or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors.torch import save

from forward_influence.data.cutting import Cut
from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.influence.divergence import compiling
from forward_influence.measurement.document import Measured, measure_document
from forward_influence.measurement.request import Request
from forward_influence.models.info import Card
from forward_influence.models.loading import Model
from forward_influence.storage.run import Run
from forward_influence.tracing.store import TraceStore
from forward_influence.utils.paths import cache_folder
from forward_influence.utils.progress import Labelled, Progress


@dataclass(frozen=True)
class Task:
    """How every document of a run is measured.

    Attributes:
        request: what is asked.
        chunk: tokens per forward pass.
        controls: whether the noise floor and the positive control are measured.
        compile: whether the divergence is compiled.
        trace_cache: bytes of traces and baselines kept on disk between runs; 0 for none.
        fingerprint: of the model that the run is measured with now; workers must have the same.
    """

    request: Request
    chunk: int
    controls: bool = True
    compile: bool = False
    trace_cache: int = 0
    fingerprint: str = ""

    def measure(self, model: Model, document: Cut, progress: Progress) -> Measured:
        """One document."""
        store = TraceStore(cache_folder() / "traces", self.trace_cache) if self.trace_cache else None
        with compiling(self.compile):
            return measure_document(
                model,
                document,
                self.request,
                chunk=self.chunk,
                progress=progress,
                store=store,
                controls=self.controls,
            )


class Executor(Protocol):
    """Measures documents and writes their parts."""

    def card(self) -> Card:
        """The model that it measures with."""

    def run(
        self, run: Run, documents: Mapping[str, Cut], task: Task, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """Yield (part stem, None) for each document written, (part stem, reason) for each that failed."""


class LocalExecutor:
    """One document after the other, in this process.

    Args:
        model: loaded once.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def card(self) -> Card:
        """The model that was given."""
        return Card.of(self.model)

    def run(
        self, run: Run, documents: Mapping[str, Cut], task: Task, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """Measure and write; what concerns the request itself (a rule that fails) ends the run at once."""
        for number, (stem, document) in enumerate(documents.items(), start=1):
            error = None
            numbered = Labelled(progress, f"{number}/{len(documents)} ")
            try:
                write_measured(run, stem, task.measure(self.model, document, numbered))
            except (UsageError, StorageError):
                raise
            except (ForwardInfluenceError, MemoryError, RuntimeError) as failure:
                if not is_expected(failure):
                    raise
                error = reason_of(failure)
            yield stem, error


def write_measured(run: Run, stem: str, measured: Measured) -> None:
    """Write a document's selections, timings and part."""
    selections = save(measured.tensors, metadata=measured.metadata) if measured.tensors else None
    run.write_part(stem, measured.rows, measured.timings, selections)


def is_expected(error: BaseException) -> bool:
    """Whether an error concerns one document alone: what we raise ourselves, and memory that is not there."""
    if isinstance(error, ForwardInfluenceError | MemoryError | torch.OutOfMemoryError):
        return True
    # allocators that have no class of their own for it: torch's on processors, and Apple's
    words = ("allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def reason_of(error: BaseException) -> str:
    """Why a document could not be measured, in one line."""
    if isinstance(error, ForwardInfluenceError):
        return str(error)
    return "out of memory; use a smaller `context`, `continuation` or `chunk`, or a smaller dtype"
