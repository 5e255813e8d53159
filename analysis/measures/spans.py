"""Curves by span: the mean over the positions of each measured span, one number per document whatever its length."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from forward_influence.analysis.reading.binning import Spans, spans_of
from forward_influence.analysis.reading.curves import read
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run


def has_spans(runs: Sequence[Run]) -> bool:
    """Whether all of the runs are measured by spans."""
    return bool(runs) and all(run.configuration.get("measure_on") for run in runs)


def span_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The measured spans, in their order.

    Raises:
        UsageError: a run is not measured by spans, or its documents have them in different orders.
    """
    if not has_spans(runs):
        raise UsageError("there are no spans: the run is measured by lengths; measure with `measure_on` answer, say")
    orders = list(dict.fromkeys(spans_of(document).names for run in runs for document in run.documents))
    if len(orders) > 1:
        shown = " and ".join("+".join(order) for order in orders[:2])
        raise UsageError(f"documents have their measured spans in different orders ({shown}); measure one span alone")
    return orders[0]


def span_curves(runs: Sequence[Run], cluster: str | None = None) -> pd.DataFrame:
    """Curves in one bin per measured span, columns as `curves.read` gives them, and `span`."""
    names = span_names(runs)
    frame = read(list(runs), [Spans()], cluster)[0]
    return frame.assign(span=[names[k] for k in frame["bin"]])
