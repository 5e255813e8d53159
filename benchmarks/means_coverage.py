"""Measure how often the BCa intervals of arithmetic means hold the truth; prints a table of docs/statistics.md.

python benchmarks/means_coverage.py [--runs 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated import effects_of_documents

from forward_influence.analysis.statistics.means import arithmetic, ratio_of_means

SIZES = (6, 8, 12, 24)
#: How documents differ in what both rules share, and how each rule differs beyond that: (Gaussian, shared, own).
SPREADS = ((False, 0.4, 0.2), (False, 0.4, 0.4), (False, 0.8, 0.6), (True, 0.3, 0.2))
#: Simulated runs that are drawn with the same resamples.
TOGETHER = 100


def plain(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """BCa bounds of the ratio of means without widening, for comparison: (documents, runs) to two arrays (runs,)."""

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(x.mean(axis=axis) / y.mean(axis=axis))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"paired": True, "vectorized": True, "n_resamples": 2000, "batch": 500, "random_state": seed}
        found = stats.bootstrap((a.T, b.T), ratio, axis=-1, method="BCa", **options).confidence_interval
    return found.low, found.high


def coverage(runs: int, seed: int) -> None:
    """Coverage of the ratio of two rules whose arithmetic means are equal, and of one rule's mean, in percent."""
    print("| documents differ by | documents | ratio of means | one mean | ratio of means, not widened |")
    print("| --- | --- | --- | --- | --- |")
    for gaussian, shared, own in SPREADS:
        name = f"{'Gaussian, sd' if gaussian else 'log-normal, sd of log'} {shared}, rules by {own}"
        factors = [effects_of_documents(np.random.default_rng(9), sd, 4_000_000, gaussian) for sd in (shared, own)]
        truth = float(factors[0].mean() * factors[1].mean())
        for n in SIZES:
            rng = np.random.default_rng([seed, n, gaussian])
            covered: list[np.ndarray] = []
            for part in range(-(-runs // TOGETHER)):
                both = effects_of_documents(rng, shared, (n, TOGETHER), gaussian)
                a, b = (both * effects_of_documents(rng, own, (n, TOGETHER), gaussian) for _ in range(2))
                bounds = [(1.0, *ratio_of_means(a, b)[1:]), (truth, *arithmetic(a)[1:]), (1.0, *plain(a, b, part))]
                covered.append(np.array([(low <= true) & (true <= high) for true, low, high in bounds]))
            cells = [f"{100 * share:.1f}" for share in np.concatenate(covered, axis=1).mean(axis=1)]
            print(f"| {name} | {n} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs per line")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    coverage(options.runs, options.seed)


if __name__ == "__main__":
    main()
