"""Measure how often the intervals of runs that `--until` ended hold the truth; prints a table of docs/statistics.md.

python benchmarks/until_coverage.py [--runs 4000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated import effects_of_documents

from forward_influence.analysis.statistics.inference import wilcoxon
from forward_influence.analysis.statistics.stopping import FEWEST, LEVEL

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def gaussian(sd: float) -> Draw:
    """Logs of a Gaussian factor around 1."""
    mean = np.log(effects_of_documents(np.random.default_rng(99), sd, 4_000_000, True)).mean()
    return lambda rng, shape: np.log(effects_of_documents(rng, sd, shape, True)) - mean


#: Logs of documents, of mean 0.
LOGS: dict[str, Draw] = {
    "normal, sd 0.4": lambda rng, shape: rng.normal(0, 0.4, shape),
    "Gaussian factor, sd 0.2": gaussian(0.2),
    "Gaussian factor, sd 0.3": gaussian(0.3),
    "Student t, 4 degrees, times 0.3": lambda rng, shape: 0.3 * rng.standard_t(4, shape),
    "exponential, sd 0.4": lambda rng, shape: 0.4 * (rng.standard_exponential(shape) - 1),
}


def coverage(runs: int, seed: int) -> None:
    """Coverage of plain and of reported intervals, and false alarms between two rules of a run, in percent."""
    print(
        f"| logs of documents | until | rules | documents, mean | 95% intervals | {LEVEL:.0%} intervals | two alike |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, draw in LOGS.items():
        for width, most in ((0.1, 300), (0.2, 120), (0.3, 80)):
            for rules in (1, 4):
                logs = draw(np.random.default_rng([seed, most, rules]), (runs, rules, most))
                n = np.arange(1, most + 1)
                mean = np.cumsum(logs, axis=-1) / n
                spread = np.sqrt(np.maximum(np.cumsum(logs**2, axis=-1) / n - mean**2, 0) / np.maximum(n - 1, 1))
                half = {level: stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1)) * spread for level in (0.95, LEVEL)}
                enough = (np.expm1(half[LEVEL]) <= width).all(axis=1) & (n >= FEWEST)
                at = np.where(enough.any(axis=1), enough.argmax(axis=1), most - 1)
                run = np.arange(runs)
                covered = [100 * np.mean(abs(mean[run, :, at]) <= h[run, :, at]) for h in half.values()]
                alarms = "–"
                if rules > 1:
                    p = [wilcoxon(logs[i, 0, : k + 1] - logs[i, 1, : k + 1]) for i, k in enumerate(at)]
                    alarms = f"{100 * np.mean(np.array(p) < 0.05):.1f}"
                cells = [f"{at.mean() + 1:.0f}", *(f"{share:.1f}" for share in covered), alarms]
                print(f"| {name} | {width} | {rules} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000, help="simulated runs per line")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    coverage(options.runs, options.seed)


if __name__ == "__main__":
    main()
