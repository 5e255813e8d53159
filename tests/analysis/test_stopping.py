"""Ending a run when its far intervals are narrow: what is looked at, when, and that it covers."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_data
from scipy import stats
from simulated import effects_of_documents

from forward_influence.analysis.statistics.stopping import FEWEST, LEVEL, Until, far_means, half_width, widths_of
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.storage.run import open_run

MEANS = (0.01, 0.02, 0.01, 0.03, 0.02, 0.01, 0.02, 0.02, 0.01, 0.03)


def rows(*means: float, draws: int = 1, m: int = 40) -> list[dict]:
    """A document's rows: one rule per mean, its far half alone at that mean."""
    found = [{"kind": "baseline"}]
    for number, mean in enumerate(means):
        for draw in range(draws):
            kl = np.full(m, 9.0, np.float32)
            kl[m // 2 :] = mean * (1 + 0.5 * (draw - (draws - 1) / 2))
            about = {"selector": f"r{number}", "budget": "0.2", "mode": "drop", "effect": "total", "layers": None}
            found.append({"kind": "condition", **about, "kl": kl, "distance": None, "continuation": m})
    return found


def test_the_far_half_is_averaged_over_draws_and_at_sampled_positions():
    [value] = far_means(rows(0.25, draws=3)).values()
    assert value == pytest.approx(0.25)
    [_, row] = rows(0.25)
    where = np.array([3, 19, 20, 33])
    sampled = {**row, "distance": where, "kl": np.array([9.0, 9.0, 0.1, 0.3])}
    assert list(far_means([sampled]).values()) == [pytest.approx(0.2)]


def test_names_of_layers_are_plain_whole_numbers():
    """A part holds its layers as an array; what is noted of them is read again by people and programs."""
    stop = Until(50)
    for mean in MEANS:
        found = stop.add([{**row, "layers": np.array([0, 1, 4], np.int32)} for row in rows(mean)])
    assert list(found["half_widths"]) == ["r0 0.2 drop total layers 0-1,4"]


def test_widths_over_documents_are_those_that_were_looked_at():
    measured = [rows(mean, 2 * mean**2) for mean in MEANS]
    stop = Until(50)
    found = [stop.add(document) for document in measured][-1]
    assert widths_of(measured) == found["half_widths"]
    assert widths_of(measured[:5]) == dict.fromkeys(["r0 0.2 drop total", "r1 0.2 drop total"], np.inf)
    assert widths_of([]) == {}
    narrower = widths_of(measured, 0.9)
    assert all(narrower[name] < width for name, width in widths_of(measured).items())


def test_half_width_is_that_of_the_t_interval_on_logs():
    logs = np.log([0.011, 0.013, 0.009, 0.010, 0.014, 0.012, 0.011])
    ci = stats.ttest_1samp(logs, 0).confidence_interval(LEVEL)
    assert half_width(logs) == pytest.approx(np.sqrt(np.exp(ci.high - ci.low)) - 1)
    assert half_width(logs[:5]) == np.inf, "no interval below 6 documents"
    assert half_width([*logs, -np.inf]) == np.inf


def test_every_rule_must_be_narrow():
    generator = np.random.default_rng(3)
    stop, alone = Until(0.2), Until(0.2)
    for number in range(1, 200):
        steady, restless = np.exp(generator.normal(0, (0.1, 0.4)))
        first = alone.add(rows(steady))
        found = stop.add(rows(steady, restless))
        if first is not None and number < 20:
            assert found is None, "the other rule is not narrow yet"
        if found is not None:
            break
    assert 15 < number < 60
    assert max(found["half_widths"].values()) <= 0.2
    assert found["level"] == LEVEL


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(UsageError, match="no relative half-width"):
        Until(width)


def test_nothing_is_ended_before_the_tenth_document():
    stop = Until(5.0)
    ended = [stop.add(rows(mean)) is not None for mean in MEANS]
    assert ended == [False] * (FEWEST - 1) + [True]


def ended(logs: np.ndarray, width: float) -> list[float]:
    """The logs of the documents that a run with one rule is ended by."""
    stop, taken = Until(width), []
    for value in logs.tolist():
        taken.append(value)
        if stop.add(rows(float(np.exp(value)), m=4)) is not None:
            break
    return taken


@pytest.mark.parametrize(("gaussian", "spread", "width"), [(False, 0.6, 0.35), (True, 0.3, 0.2), (True, 0.3, 0.3)])
def test_intervals_at_the_stop_cover_what_they_promise(gaussian: bool, spread: float, width: float):
    """Looked at after every document, the reported intervals cover 95%, of skewed logs too (97% ones: 93% to 94%)."""
    generator = np.random.default_rng(0)
    population = np.log(effects_of_documents(np.random.default_rng(9), spread, 1_000_000, gaussian)).mean()
    covered, count = 0, 900
    for _ in range(count):
        logs = ended(np.log(effects_of_documents(generator, spread, 200, gaussian)), width)
        half = stats.t.ppf((1 + LEVEL) / 2, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
        covered += abs(np.mean(logs) - population) <= half
    assert covered / count > 0.95 - np.sqrt(0.95 * 0.05 / count)


class After:
    """Enough after so many documents."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, []

    def add(self, found):
        self.seen.append(found[0]["document"])
        return {"half_widths": {"r": 0.1}, "level": 0.97} if len(self.seen) == self.count else None


def asked() -> Request:
    return Request(selectors=("recent",), context=60, continuation=40, protect_last=8)


def test_a_run_ends_where_it_is_enough_and_says_so(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(6, 100)
    run = measure(model, documents, asked(), tmp_path / "run", stop=After(3))
    assert run.stopped["documents"] == 3
    assert [d["name"] for d in run.documents] == [d["name"] for d in run.measured()]
    assert len(list((run.folder / "parts").iterdir())) == 3
    assert {row["document"] for row in run.rows()} == {f"doc {i}/../x" for i in range(3)}
    again = measure(model, documents, asked(), tmp_path / "run", stop=After(3))
    assert len(list((again.folder / "parts").iterdir())) == 3, "what is there is looked at first"
    whole = measure(model, documents, asked(), tmp_path / "run")
    assert whole.stopped is None
    assert len(open_run(tmp_path / "run").measured()) == 6


def test_documents_are_looked_at_in_order_whatever_order_they_are_done_in(tmp_path):
    from forward_influence.execution.executors import LocalExecutor

    model, documents = tiny_data.model(), tiny_data.documents(6, 100)

    class Backwards(LocalExecutor):
        def run(self, run, documents, task, progress):
            yield from super().run(run, dict(reversed(documents.items())), task, progress)

    stop = After(3)
    run = measure(model, documents, asked(), tmp_path / "run", stop=stop, executor=Backwards(model))
    assert stop.seen == [f"doc {i}/../x" for i in range(3)]
    assert len(run.documents) == 3
    assert {row["document"] for row in run.rows()} == {f"doc {i}/../x" for i in range(3)}
