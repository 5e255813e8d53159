"""Ending a run when its intervals are narrow enough: what `--until` looks at after each document.

The rule stops on the width of the intervals, not on where they lie, so that it does not pick results; but a width that
happens to come out small stops too early, and plain 95% intervals at the stop cover less than that. Looking after every
document from the tenth on with 98% intervals, and reporting these, covers at least 95% where the logs of documents are
normal, heavy-tailed or as skewed as those of a Gaussian factor of sd 0.3; more skewed ones are covered less
(docs/statistics.md, simulated by benchmarks/until_coverage.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS, Kind, Method
from forward_influence.errors import UsageError
from forward_influence.influence.noise_floor import floor_of, taken_off
from forward_influence.storage.run import Run
from forward_influence.utils.distances import zones
from forward_influence.utils.ranges import ranges

#: Confidence of an interval that is looked at after every document.
LEVEL = 0.98
#: Documents before which nothing is ended: the spread of fewer is too uncertain, and of skewed logs too small.
FEWEST = 10


def method_for(runs: Sequence[Run], kind: Kind = "t") -> Method:
    """How intervals over runs are made: 95% ones, and where `--until` ended a run, of the level that it looked at."""
    ended = [run.stopped.get("level", LEVEL) for run in runs if run.stopped is not None]
    return Method(kind, max([CONFIDENCE, *ended]))


class Until:
    """Enough documents are measured when every rule's far interval is narrow: a `measurement.Stop`.

    Args:
        width: relative half-width that is narrow enough, 0.1 for +-10%.
    """

    def __init__(self, width: float) -> None:
        if not 0 < width < float("inf"):
            raise UsageError(f"`until` {width} is no relative half-width; give 0.1 for +-10%")
        self.width = width
        self._logs: dict[tuple[Any, ...], list[float]] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Take in a document's rows; what to note when every rule's interval is narrow enough, else None."""
        _take_in(self._logs, rows)
        widths = _named_widths(self._logs)
        if min(map(len, self._logs.values()), default=0) < FEWEST or not all(w <= self.width for w in widths.values()):
            return None
        return {"until": self.width, "level": LEVEL, "half_widths": widths}


def widths_of(documents: Iterable[Sequence[Mapping[str, Any]]], level: float = LEVEL) -> dict[str, float]:
    """The relative half-width of every rule's far interval over these documents' rows, under the names that a run's
    stopped.json has for them.

    Args:
        level: nominal confidence, that which the run was ended at.
    """
    logs: dict[tuple[Any, ...], list[float]] = {}
    for rows in documents:
        _take_in(logs, rows)
    return _named_widths(logs, level)


def _take_in(logs: dict[tuple[Any, ...], list[float]], rows: Sequence[Mapping[str, Any]]) -> None:
    for key, value in far_means(rows).items():
        logs.setdefault(key, []).append(math.log(value) if value > 0 else -math.inf)


def _named_widths(logs: Mapping[tuple[Any, ...], Sequence[float]], level: float = LEVEL) -> dict[str, float]:
    return {_name(key): half_width(values, level) for key, values in logs.items()}


def _name(key: tuple[Any, ...]) -> str:
    *words, layers = key
    return " ".join([*map(str, words), *([f"layers {ranges(layers)}"] if layers else [])])


def far_means(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """(selector, budget, mode, effect, layers) -> mean KL of a document's far zone, over its draws and segments.

    Without the noise floor, as in the tables.
    """
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["kind"] != "condition":
            continue
        low, high = zones(row["continuation"])["far"]
        distances = np.arange(row["continuation"]) if row["distance"] is None else row["distance"]
        inside = (distances >= low) & (distances < high)
        layers = () if row["layers"] is None else tuple(int(layer) for layer in row["layers"])
        key = (row["selector"], row["budget"], row["mode"], row["effect"], layers)
        kl, floor = np.asarray(row["kl"], dtype=float)[inside], floor_of(rows, row["effect"], np.array([low, high]))
        found.setdefault(key, []).append(float(taken_off(kl.mean(), floor, (kl != 0).mean())[0]))
    return {key: float(np.mean(values)) for key, values in found.items()}


def half_width(logs: Sequence[float], level: float = LEVEL) -> float:
    """Relative half-width of the geometric mean's t-interval; infinite where there is none."""
    n = len(logs)
    if n < MINIMUM_DOCUMENTS or not np.isfinite(logs).all():
        return math.inf
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.std(logs, ddof=1) / math.sqrt(n)
    return float(math.expm1(half))
