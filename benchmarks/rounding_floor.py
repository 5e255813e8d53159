"""Means measured in 16 bits against those of float32: how far off, with the floor and without it, flagged or not.

    for dtype in float32 bfloat16 float16; do
        forward-influence measure --documents sotu --max-documents 6 --context 256 --continuation 768 \\
            --selector attention --selector entropy --selector random --draws 2 --effect both \\
            --budget 0.02 --budget 0.1 --budget 0.4 --dtype $dtype --out runs/$dtype
    done
    python benchmarks/rounding_floor.py runs/float32 runs/bfloat16 runs/float16
    python benchmarks/rounding_floor.py --simulate       logits of known influence and rounding, no model

The first run is taken for the truth. A rule may choose other tokens in 16 bits, which is no error of measuring, but
counts as one here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.curves import RULE, load_zones
from forward_influence.analysis.reading.matrix import by_rule, matrix
from forward_influence.influence.noise_floor import FLAG_FACTOR, taken_off
from forward_influence.storage.run import open_run

WRONG = 0.25
KEY = [name for name in RULE if name != "run"]


def zone_means(folder: Path) -> pd.DataFrame:
    """Mean KL of every rule in near, middle and far, with the floor (`measured`) and without it (`kl`)."""
    frame = load_zones(open_run(folder))
    rows = []
    for key, group in by_rule(frame):
        curve = matrix(group)
        with_floor = matrix(group.assign(kl=group["measured"])).geometric_mean
        columns = {"low": curve.low, "kl": curve.geometric_mean, "measured": with_floor, "floor": curve.floor}
        columns |= {"mean": curve.kl.mean(axis=0), "flagged": curve.below_floor}
        rows.append(pd.DataFrame({**{name: key[name] for name in KEY}, **columns}))
    return pd.concat(rows, ignore_index=True)


def against(truth: Path, folder: Path) -> pd.DataFrame:
    """Both runs' means side by side, and by what factors the second's are off."""
    both = zone_means(truth).merge(zone_means(folder), on=[*KEY, "low"], suffixes=("_true", ""))
    off = {"before": both["measured"] / both["kl_true"], "geometric": both["kl"] / both["kl_true"]}
    return both.assign(**off, arithmetic=both["mean"] / both["mean_true"])


def tabulate(truth: Path, folders: list[Path]) -> None:
    print("| run | zone means | | too high or low by over 25% | from | to |\n| --- | --- | --- | --- | --- | --- |")
    for folder in folders:
        found = against(truth, folder)
        kept, before = found[~found["flagged"]], found[found["measured"] >= 3 * found["floor"]]
        for frame, what, column in (
            (before, "floor left in, flagged below 3 times it", "before"),
            (kept, f"floor taken off, flagged below {FLAG_FACTOR} times it", "geometric"),
            (kept, "the same, arithmetic means", "arithmetic"),
        ):
            wrong = ((frame[column] - 1).abs() > WRONG).sum()
            ends = f"{frame[column].min():.2f} | {frame[column].max():.2f}"
            print(f"| {folder.name} | {len(frame)} of {len(found)} unflagged | {what} | {wrong} | {ends} |")
    for folder in folders:
        floor = zone_means(folder).groupby(["effect", "low"])["floor"].first().unstack()
        print(f"\nnoise floor of {folder.name}, by where a zone begins:\n{floor.map('{:.1e}'.format).to_string()}")


def simulate(seed: int, documents: int = 8, positions: int = 256, words: int = 500) -> None:
    """KLs of logits that an influence and rounding move, at sizes of influence around the floor.

    `alike` is how far the rounding of the control and of the full cache are correlated: that part its floor misses.
    """
    rng = np.random.default_rng(seed)

    def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
        return (np.exp(p) * (p - q)).sum(axis=-1)

    print("| influence / floor | alike | with the floor / true | without / true, lowest | highest | flagged |")
    print("| --- | --- | --- | --- | --- | --- |")
    rounding = 0.02
    for alike in (0.0, 0.3):
        for times in (0.5, 1, 2, 3, 4, 6, 10, 30):
            found = []
            for _ in range(20):
                shape = (documents, positions, words)
                z = 2 * rng.standard_normal(shape, dtype=np.float32)
                # documents differ by a factor in their influence, positions in how far they are moved
                size = np.sqrt(2 * times) * rounding * np.exp(0.2 * rng.standard_normal((documents, 1, 1)))
                moved = size * np.exp(0.5 * rng.standard_normal((documents, positions, 1)) - 0.25)
                shift = moved * rng.standard_normal(shape, dtype=np.float32)
                full, cut, order = (rounding * rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
                order = alike * full + np.sqrt(1 - alike**2) * order
                true, measured = kl(z, z + shift).mean(axis=1), kl(z + full, z + shift + cut).mean(axis=1)
                floor = kl(z + full, z + order).mean(axis=1)
                kept = taken_off(measured, floor, np.ones(documents))
                means = [np.exp(np.log(x).mean()) if (x > 0).all() else x.mean() for x in (true, measured, kept)]
                found.append([means[1] / means[0], means[2] / means[0], means[2] < FLAG_FACTOR * floor.mean()])
            before, after, flagged = np.array(found).T
            cells = [f"{times}", f"{alike:.0%}", f"{before.mean():.2f}", f"{after.min():.2f}", f"{after.max():.2f}"]
            print(f"| {' | '.join(cells)} | {flagged.mean():.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="the run that is the truth, and others")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.simulate:
        simulate(given.seed)
    elif len(given.runs) > 1:
        tabulate(given.runs[0], given.runs[1:])
    else:
        parser.error("give the run that is the truth and at least one other, or --simulate")


if __name__ == "__main__":
    main()
