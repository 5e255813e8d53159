"""Where documents are measured. An executor yields each document as it is done, with an error or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from safetensors.torch import save

from forward_influence.document import CutDocument, Measured, measure_document
from forward_influence.errors import ForwardInfluenceError, StorageError, UsageError
from forward_influence.models import Model
from forward_influence.progress import Labelled, Progress
from forward_influence.request import Request
from forward_influence.runs import Run, write_whole


class Executor(Protocol):
    """Measures documents and writes their parts."""

    def run(
        self, run: Run, documents: Mapping[str, CutDocument], request: Request, chunk: int, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """Yield (part stem, None) for each document written, (part stem, reason) for each that failed."""


class LocalExecutor:
    """One document after the other, in this process.

    Args:
        model: loaded once.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(
        self, run: Run, documents: Mapping[str, CutDocument], request: Request, chunk: int, progress: Progress
    ) -> Iterator[tuple[str, str | None]]:
        """Measure and write; what concerns the request itself (a rule that fails) ends the run at once."""
        for number, (stem, document) in enumerate(documents.items(), start=1):
            error = None
            numbered = Labelled(progress, f"{number}/{len(documents)} ")
            try:
                write_measured(
                    run, stem, measure_document(self.model, document, request, chunk=chunk, progress=numbered)
                )
            except (UsageError, StorageError):
                raise
            except (ForwardInfluenceError, MemoryError, RuntimeError) as failure:
                if not is_expected(failure):
                    raise
                error = reason_of(failure)
            yield stem, error


def write_measured(run: Run, stem: str, measured: Measured) -> None:
    """Write a document's selections, timings and part, each whole; the part last, for it says that all is there."""
    if measured.tensors:
        write_whole(run.selections_path(stem), save(measured.tensors, metadata=measured.metadata))
    run.write_part(stem, measured.rows, measured.timings)


def is_expected(error: BaseException) -> bool:
    """Whether an error concerns one document alone: what we raise ourselves, and memory that is not there."""
    if isinstance(error, ForwardInfluenceError | MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator on the CPU has no class of its own for it
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def reason_of(error: BaseException) -> str:
    """Why a document could not be measured, in one line."""
    if isinstance(error, ForwardInfluenceError):
        return str(error)
    return "out of memory; use a smaller --context, --continuation or --chunk, or a smaller dtype"
