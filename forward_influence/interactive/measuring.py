"""`fi.measure`: `forward_influence.execution.run.measure` with a bar in notebooks and a run that shows itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forward_influence.interactive.progress import default_progress
from forward_influence.interactive.run import Run

if TYPE_CHECKING:
    from forward_influence.data.cutting import Cut
    from forward_influence.measurement.request import Request
    from forward_influence.models.loading import Model


def measure(
    model: Model | None, documents: Sequence[Cut], request: Request, out: str | os.PathLike[str], **options: Any
) -> Run:
    """Measure every condition of `request` on every document and write a run folder.

    Running the same again continues it: documents that are measured stay as they are.

    Args:
        model: from `load_model` or `wrap_model`; None where `executor` has its own.
        documents: cut to tokens, from `forward_influence.data.prepare`.
        out: the run folder, or an address like s3://bucket/run; made if it is not there.
        options: everything else that `forward_influence.execution.run.measure` takes: executor, progress, ...

    Returns:
        The run, which shows itself: `summary()`, `compare()`, `plot()`, `show()`, `report()`.

    Raises:
        UsageError: the folder holds another configuration; a span beyond the model's positions; a rule that fails.
        ForwardInfluenceError: no document could be measured.
    """
    from forward_influence.execution.run import measure as measured

    options.setdefault("progress", default_progress())
    return Run.of(measured(model, documents, request, out, **options))
