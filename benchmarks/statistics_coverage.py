"""Measure how often intervals cover the truth and tests raise false alarms; prints the tables of docs/statistics.md.

python benchmarks/statistics_coverage.py [--runs 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated import effects_of_documents

from forward_influence.analysis.measures.decay import bin_law, fit
from forward_influence.analysis.measures.fading import surely_below
from forward_influence.analysis.reading.curves import bins
from forward_influence.analysis.statistics.inference import (
    bootstrap_interval,
    holm,
    paired,
    t_interval,
)

SIZES = (6, 8, 12, 24)
SPREADS = ((False, 0.4), (True, 0.2), (True, 0.3))


def percentile_interval(x: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The plain percentile bootstrap, for comparison: (runs, n) to bounds (runs,)."""
    n = x.shape[1]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=2000) / n
    low, high = np.quantile(x @ weights.T, [0.025, 0.975], axis=1)
    return low, high


def share(low: np.ndarray, high: np.ndarray, truth: float) -> str:
    return f"{100 * np.mean((low <= truth) & (truth <= high)):.1f}"


def means(runs: int, seed: int) -> None:
    print("| effects of documents | documents | t on logs | bootstrap (expanded) | plain percentiles |")
    print("| --- | --- | --- | --- | --- |")
    for gaussian, spread in SPREADS:
        population = np.log(effects_of_documents(np.random.default_rng(99), spread, 4_000_000, gaussian)).mean()
        for n in SIZES:
            rng = np.random.default_rng([seed, n, gaussian])
            logs = np.log(effects_of_documents(rng, spread, (runs, n), gaussian))
            some = logs[: max(runs // 5, 1)]
            plain = percentile_interval(some, rng)
            boot = [bootstrap_interval(part, resamples=4000, seed=i) for i, part in enumerate(np.array_split(some, 20))]
            low, high = (np.concatenate([b[k] for b in boot]) for k in (1, 2))
            _, t_low, t_high = t_interval(logs)
            name = f"Gaussian, sd {spread}" if gaussian else f"log-normal, sd of log {spread}"
            cells = [share(t_low, t_high, population), share(low, high, population), share(*plain, population)]
            print(f"| {name} | {n} | {' | '.join(cells)} |")


def alarms(runs: int, seed: int) -> None:
    print("\n| documents | one test p < 0.05 | interval excludes 1 | any of three, Holm (independent) | (correlated) |")
    print("| --- | --- | --- | --- | --- |")
    for n in SIZES:
        rng = np.random.default_rng([seed, n])
        cells: list[str] = []
        for correlated in (0.0, 0.8):
            noise = np.sqrt(correlated) * rng.standard_normal((runs, 1, n))
            noise = noise + np.sqrt(1 - correlated) * rng.standard_normal((runs, 3, n))
            out = [[paired(np.exp(zone), np.ones(n)) for zone in family] for family in 0.3 * noise]
            p = np.array([[one.p for one in family] for family in out])
            if not cells:
                excluded = np.mean([[one.low > 1 or one.high < 1 for one in family] for family in out])
                cells += [f"{100 * (p < 0.05).mean():.1f}", f"{100 * excluded:.1f}"]
            cells.append(f"{100 * np.mean([(holm(family) < 0.05).any() for family in p]):.1f}")
        print(f"| {n} | {' | '.join(cells)} |")


def curves(runs: int, seed: int) -> None:
    print("\n| documents | exponent | length |")
    print("| --- | --- | --- |")
    edges = bins(2048, log=True)
    low, high = edges[:-1], edges[1:]
    for n in SIZES:
        rng = np.random.default_rng([seed, n])
        cells = []
        for law, rate, sd in (("power", 0.8, 0.15), ("exponential", 1 / 600, 1 / 4000)):
            bounds = []
            for _ in range(runs // 250):  # in pieces: a bin's positions times all documents at once would not fit
                rates = rng.normal(rate, sd, 250 * n)
                logs = bin_law(law, rates, low, high)[0] + rng.normal(0, 0.2, (250 * n, len(low)))
                bounds.append(t_interval(fit(law, logs, low, high)[0].reshape(250, n)))
            below, above = (np.concatenate([b[k] for b in bounds]) for k in (1, 2))
            cells.append(share(below, above, rate))
        print(f"| {n} | {' | '.join(cells)} |")


def fading(runs: int, seed: int) -> None:
    """How often "fades faster" is said of the extremes of k rules that all fade alike."""
    print("\n| documents | 2 rules | 4 rules | 8 rules |")
    print("| --- | --- | --- | --- |")
    for n in SIZES:
        rng = np.random.default_rng([seed, n])
        cells = []
        for rules in (2, 4, 8):
            logs = rng.normal(0, 0.3, (runs, 1, n)) + rng.normal(0, 0.3, (runs, rules, n))
            means = logs.mean(axis=-1)
            ends = [
                np.take_along_axis(logs, pick[:, None, None], 1)[:, 0] for pick in (means.argmin(1), means.argmax(1))
            ]
            pairs = rules * (rules - 1) // 2
            said = [surely_below(np.exp(a), np.exp(b), comparisons=pairs) for a, b in zip(*ends, strict=True)]
            cells.append(f"{100 * np.mean(said):.1f}")
        print(f"| {n} | {' | '.join(cells)} |")


def largest(runs: int, seed: int) -> None:
    """How often a rule is said to be less than the largest of k that are all alike, which is picked for being it."""
    print("\n| documents | 2 rules | 4 rules | 8 rules | 8 rules, each interval of 95% |")
    print("| --- | --- | --- | --- | --- |")
    for n in SIZES:
        cells = []
        for rules, plain in ((2, False), (4, False), (8, False), (8, True)):
            rng = np.random.default_rng([seed, n, rules])
            logs = rng.normal(0, 0.3, (runs, 1, n)) + rng.normal(0, 0.3, (runs, rules, n))
            values, pairs = np.exp(logs), 1 if plain else rules * (rules - 1) // 2
            tops = logs.mean(axis=-1).argmax(axis=1)
            said = [
                any(surely_below(one[i], one[top], comparisons=pairs) for i in range(rules) if i != top)
                for one, top in zip(values, tops, strict=True)
            ]
            cells.append(f"{100 * np.mean(said):.1f}")
        print(f"| {n} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="simulated runs per line of the first table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    means(options.runs, options.seed)
    alarms(max(options.runs // 5, 1), options.seed)
    curves(max(options.runs // 5, 250), options.seed)
    fading(max(options.runs // 5, 1), options.seed)
    largest(max(options.runs // 20, 1), options.seed)


if __name__ == "__main__":
    main()
