"""Measure how often crossover intervals hold the true distance, early and late; prints a table of docs/statistics.md.

python benchmarks/crossover_coverage.py [--runs 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated import RISES, crossing_documents

from forward_influence.analysis.formatting.wording import tokens
from forward_influence.analysis.measures.crossover import Crossing, cross, crossing
from forward_influence.analysis.reading.curves import fine_bins

SIZES = (8, 12, 24)
CONTINUATION = 2048
#: Where A overtakes B: early, at 30 to 90% of the distances, throughout, and beyond the end.
PLACES = (3, 8, 40, 200, 614, 819, 1024, 1229, 1638, 1843, -0.5, 4096)


def covers(found: Crossing, truth: float) -> bool:
    """Whether an interval holds the true distance; one below 0 is "throughout", one behind the end "nowhere"."""
    if truth < 0:
        return found.low == 0
    return math.isinf(found.high) if truth >= found.range[1] else found.low <= truth <= found.high


def coverage(runs: int, seed: int) -> None:
    """Coverage, and the medians of both bounds."""
    edges = fine_bins(CONTINUATION)
    print(
        f"| log ratio rises as of | true distance of {CONTINUATION:,} | "
        + " | ".join(f"{n} documents" for n in SIZES)
        + " |"
    )
    print("| --- | --- |" + " --- |" * len(SIZES))
    for rises, gaussian in ((rises, gaussian) for gaussian in (False, True) for rises in RISES):
        for truth in PLACES:
            cells = []
            for n in SIZES:
                rng = np.random.default_rng([seed, n, round(truth) + 1, gaussian])
                made = (crossing_documents(rng, rises, truth, edges, n, gaussian=gaussian) for _ in range(runs))
                found = [crossing(a, b, edges[:-1], edges[1:]) for a, b in made]
                low, high = np.median([(one.low, one.high) for one in found], axis=0)
                share = np.mean([covers(one, truth) for one in found])
                cells.append(f"{100 * share:.1f} [{tokens(low)}, {'∞' if math.isinf(high) else tokens(high)}]")
            where = "throughout" if truth < 0 else "nowhere" if truth >= CONTINUATION else str(truth)
            name = f"{rises}, Gaussian documents" if gaussian else rises
            print(f"| {name} | {where} | {' | '.join(cells)} |", flush=True)


def planted() -> None:
    """Estimates where nothing is random."""
    print("\n| planted, of 2,048 | " + " | ".join(RISES) + " |\n| --- | --- | --- |")
    edges = fine_bins(CONTINUATION)
    d = np.arange(CONTINUATION)
    for share in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        cells = []
        for rises in RISES.values():
            ratio = np.exp(rises(d, share * CONTINUATION))
            means = np.add.reduceat(ratio, edges[:-1]) / np.diff(edges)
            cells.append(tokens(cross(np.log(means), edges[:-1], edges[1:])))
        print(f"| {tokens(share * CONTINUATION)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="simulated runs per cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    coverage(options.runs, options.seed)
    planted()


if __name__ == "__main__":
    main()
