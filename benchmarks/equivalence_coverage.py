"""Equivalence, power, mixed model and several models by simulation: coverage and false alarms, for docs/statistics.md.

python benchmarks/equivalence_coverage.py             # all four tables
python benchmarks/equivalence_coverage.py mixed 100   # one of them, with so many simulated runs
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from simulated import effects_of_documents

from forward_influence.analysis.measures.across_models import over_models
from forward_influence.analysis.measures.mixed import COMPONENTS, NEEDED
from forward_influence.analysis.statistics.equivalence import equivalence
from forward_influence.analysis.statistics.inference import t_interval
from forward_influence.analysis.statistics.mixed import Singular, fit_mixed
from forward_influence.analysis.statistics.power import (
    documents_for,
    power_of_difference,
    power_of_equivalence,
    upper_spread,
)

MARGIN = 1.1
DOCUMENTS = (6, 12, 24)


def log_ratios(rng: np.random.Generator, n: int, ratio: float, sd: float, gaussian: bool) -> np.ndarray:
    """Log ratios of n documents around a geometric mean; of a Gaussian factor, whose logs are skewed."""
    logs = np.log(effects_of_documents(rng, sd, (n,), gaussian))
    centre = np.log(effects_of_documents(np.random.default_rng(1), sd, (400_000,), True)).mean() if gaussian else 0.0
    return math.log(ratio) + logs - centre


def show_equivalence(runs: int) -> None:
    """How often two rules are called equal within 10%, at the margin (false) and where they are equal."""
    print("| documents differ by | documents | ratio 1.1 | ratio 1 / 1.1 | ratio 1 | told apart at ratio 1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for sd, gaussian in ((0.05, False), (0.1, False), (0.2, False), (0.1, True), (0.3, True)):
        for n in (*DOCUMENTS, 48):
            rng, found = np.random.default_rng(n), []
            for ratio in (MARGIN, 1 / MARGIN, 1.0):
                made = [
                    equivalence(np.exp(log_ratios(rng, n, ratio, sd, gaussian)), np.ones(n), MARGIN)
                    for _ in range(runs)
                ]
                found.append(100 * np.mean([one.equal for one in made]))
            apart = 100 * np.mean([one.finding in ("more", "less") for one in made])
            kind = "Gaussian" if gaussian else "log-normal"
            cells = " | ".join(f"{value:.1f}" for value in (*found, apart))
            print(f"| {kind}, sd {sd:g} | {n} | {cells} |", flush=True)


def show_power(runs: int) -> None:
    """Mean power of studies whose size came from a pilot, and how many of them have 80%."""
    print("| pilot of | to find | documents | at the spread seen | 80% in | at its upper limit | 80% in |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    sd = 0.2
    for pilot in (6, 12, 24):
        for name, power in (("a ratio of 1.2", _difference), ("equality within 10%", _equality)):
            rng, cells = np.random.default_rng(pilot), []
            spreads = [rng.normal(0, sd, pilot).std(ddof=1) for _ in range(runs)]
            for cautious in (False, True):
                sizes = [documents_for(_of(power, upper_spread(s, pilot) if cautious else s)) for s in spreads]
                reached = np.array([power(sd, n or 10**6) for n in sizes])
                cells += [f"{100 * reached.mean():.0f}%", f"{100 * np.mean(reached >= 0.799):.0f}%"]
            true = documents_for(_of(power, sd))
            print(f"| {pilot} | {name} | {true} | {' | '.join(cells)} |", flush=True)


def _difference(sd: float, n: int) -> float:
    return power_of_difference(math.log(1.2), sd, n)


def _equality(sd: float, n: int) -> float:
    return power_of_equivalence(math.log(MARGIN), sd, n)


def _of(power, sd: float):
    return lambda n: power(sd, n)


def curves(rng: np.random.Generator, documents: int, wander: float, gaussian: bool) -> pd.DataFrame:
    """Log influence of three rules in 10 log-spaced bins; r1 is 1.5 times r0, and gains 10% with each doubling.

    Documents differ by a factor (sd of log 0.4), in slope (0.1), each rule in each document by a factor (0.2) and a
    slope (0.05); each curve wanders about its line (correlated between bins), and every bin has noise (0.1).
    """
    x = np.log1p(np.geomspace(4, 1500, 10))
    x = x - x.mean()
    rows = []
    for d in range(documents):
        level = math.log(effects_of_documents(rng, 0.3 if gaussian else 0.4, (1,), gaussian)[0])
        slope = 0.1 * rng.standard_normal()
        for rule in range(3):
            own = math.log(effects_of_documents(rng, 0.2, (1,), gaussian)[0])
            steps = wander * np.cumsum(rng.standard_normal(len(x))) / math.sqrt(len(x))
            line = (rule == 1) * (math.log(1.5) + math.log(1.1) / math.log(2) * x) - 0.5 * x
            y = (
                line
                + level
                + own
                + (slope + 0.05 * rng.standard_normal()) * x
                + steps
                + 0.1 * rng.standard_normal(len(x))
            )
            rows.append(pd.DataFrame({"y": y, "rule": f"r{rule}", "x": x, "document": f"d{d}"}))
    return pd.concat(rows, ignore_index=True)


def show_mixed(runs: int) -> None:
    """Coverage of the ratio and of its change with distance, false alarms; "plain" is (1 | document) alone."""
    print("| curves | documents | ratio | change | false alarms, ratio | change | singular | plain: ratio | change |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for wander, gaussian in ((0.0, False), (0.2, False), (0.2, True)):
        for n in DOCUMENTS:
            rng, found, plain, singular = np.random.default_rng(n), [], [], 0
            for _ in range(runs):
                frame = curves(rng, n, wander, gaussian)
                try:
                    found.append([*_covered(frame, "r1", 1.5, 1.1, n), *_covered(frame, "r2", 1.0, 1.0, n)])
                except Singular:
                    singular += 1
                plain.append(_plain(frame, n))
            name = ("straight" if wander == 0 else "wandering") + (", Gaussian" if gaussian else "")
            good, bare = 100 * np.mean(found, axis=0), 100 * np.mean(plain, axis=0)
            cells = [*good[:2], *(100 - good[2:]), 100 * singular / runs, *bare]
            print(f"| {name} | {n} | {' | '.join(f'{value:.1f}' for value in cells)} |", flush=True)


def _covered(frame: pd.DataFrame, rule: str, ratio: float, doubling: float, n: int) -> list[bool]:
    """Whether a rule's ratio to r0, and its change with each doubling, lie in their intervals."""
    wide = frame.pivot(index=["document", "x"], columns="rule", values="y").reset_index()
    wide["y"] = wide[rule] - wide["r0"]
    fitted = fit_mixed(wide, "y ~ x", wide["document"], COMPONENTS, df=n - 1, needed=NEEDED)
    found = [fitted.contrast({"Intercept": 1.0}), fitted.contrast({"x": math.log(2)})]
    return [one.low <= math.log(truth) <= one.high for one, truth in zip(found, (ratio, doubling), strict=True)]


def _plain(frame: pd.DataFrame, n: int) -> list[bool]:
    """The same of r1 in log FI ~ rule * x + (1 | document)."""
    fitted = fit_mixed(frame, "y ~ 0 + rule + rule:x", frame["document"], {}, df=n - 1)
    weights = ({"rule[r1]": 1.0, "rule[r0]": -1.0}, {"rule[r1]:x": math.log(2), "rule[r0]:x": -math.log(2)})
    found = [fitted.contrast(one) for one in weights]
    return [one.low <= math.log(truth) <= one.high for one, truth in zip(found, (1.5, 1.1), strict=True)]


def show_models(runs: int) -> None:
    """Coverage of the mean over models; models and documents crossed. "Documents alone" treats models as given."""
    print("| models differ by | models | documents | mean over models | documents alone | singular |")
    print("| --- | --- | --- | --- | --- | --- |")
    for spread in (0.1, 0.3):
        for models in (3, 5, 8):
            for n in (12, 24):
                rng, inside, alone, singular = np.random.default_rng(models * n), [], [], 0
                for _ in range(runs):
                    y = math.log(1.5) + spread * rng.standard_normal((models, 1)) + 0.15 * rng.standard_normal((1, n))
                    y = y + 0.2 * rng.standard_normal((models, n))
                    index = np.indices(y.shape).reshape(2, -1)
                    frame = pd.DataFrame({"y": y.ravel(), "model": index[0], "document": index[1]})
                    found = over_models(frame.astype({"model": str, "document": str}))
                    low, high = t_interval(y.mean(axis=0))[1:]
                    alone.append(low <= math.log(1.5) <= high)
                    if found.get("reason"):
                        singular += 1
                    else:
                        inside.append(found["ratio_low"] <= 1.5 <= found["ratio_high"])
                cells = (100 * np.mean(inside), 100 * np.mean(alone), 100 * singular / runs)
                print(f"| {spread:g} | {models} | {n} | {' | '.join(f'{c:.1f}' for c in cells)} |", flush=True)


SHOWN = {
    "equivalence": (show_equivalence, 4000),
    "power": (show_power, 400),
    "mixed": (show_mixed, 400),
    "models": (show_models, 400),
}

if __name__ == "__main__":
    for name in [sys.argv[1]] if len(sys.argv) > 1 else SHOWN:
        show, count = SHOWN[name]
        show(int(sys.argv[2]) if len(sys.argv) > 2 else count)
        print()
