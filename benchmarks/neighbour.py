"""A measurement beside another process on the same cores, with threads that spin at barriers and threads that sleep.

    python benchmarks/neighbour.py                       beside one busy loop
    python benchmarks/neighbour.py --neighbour run       beside a second measurement, whose threads wait alike

Each time is that of one document (`measure_document`) in a process of its own, after a warm-up. The four cases take
turns, so that whatever else the machine does falls on all of them; figures are medians and, in brackets, the shortest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import engine, load, machine, remember, seconds

from forward_influence.utils.threads import SLEEPING, allowed_processors

CASES = [(wait, busy) for busy in (False, True) for wait in ("spin", "sleep")]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--continuation", type=int, default=512)
    parser.add_argument("--rules", default="attention,entropy")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--neighbour", choices=("loop", "run"), default="loop")
    parser.add_argument("--once", choices=("timed", "forever"), help=argparse.SUPPRESS)
    return parser.parse_args()


def once(given: argparse.Namespace) -> None:
    """One document, timed; or one after the other until it is ended."""
    model, tokens = load(given.model, "cpu", "auto", given.context + given.continuation)
    rules = tuple(given.rules.split(","))
    engine(model, tokens[: given.context + 32], given.context, rules, 512)
    while given.once == "forever":
        engine(model, tokens, given.context, rules, 512)
    print(seconds(model.device, lambda: engine(model, tokens, given.context, rules, 512)))


def child(given: argparse.Namespace, wait: str, kind: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a measurement."""
    words = [f"--{name}={getattr(given, name)}" for name in ("model", "context", "continuation", "rules")]
    plain = {name: value for name, value in os.environ.items() if name not in SLEEPING}
    return [sys.executable, __file__, *words, "--once", kind], plain | (SLEEPING if wait == "sleep" else {})


@contextmanager
def neighbour(given: argparse.Namespace, wait: str, busy: bool) -> Iterator[None]:
    """Another busy process, if there is to be one."""
    if not busy:
        yield
        return
    loop, environment = [sys.executable, "-c", "while True: pass"], dict(os.environ)
    if given.neighbour == "run":
        loop, environment = child(given, wait, "forever")
    process = subprocess.Popen(loop, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    given = arguments()
    if given.once:
        once(given)
        return
    found: dict[tuple[str, bool], list[float]] = {case: [] for case in CASES}
    for repeat in range(given.repeats):
        for wait, busy in CASES if repeat % 2 == 0 else CASES[::-1]:
            command, environment = child(given, wait, "timed")
            with neighbour(given, wait, busy):
                text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found[wait, busy].append(float(text))
            print(
                f"{wait:5s} {'beside a ' + given.neighbour if busy else 'quiet':14s} {float(text):7.2f} s", flush=True
            )
    median = {case: statistics.median(times) for case, times in found.items()}
    entry: dict[str, Any] = {
        "neighbour": given.neighbour,
        "tokens": [given.context, given.continuation],
        "rules": given.rules,
        "processors": allowed_processors(),
        "seconds": {f"{wait}, {'busy' if busy else 'quiet'}": times for (wait, busy), times in found.items()},
        "machine": machine(torch.device("cpu")),
    }
    remember("neighbour", entry)
    for wait in ("spin", "sleep"):
        quiet, busy = median[wait, False], median[wait, True]
        print(
            f"{wait:5s}: {quiet:.1f} s quiet, {busy:.1f} s beside a {given.neighbour}: {busy / quiet:.2f} times as long"
        )
    print(f"sleeping over spinning, quiet: {median['sleep', False] / median['spin', False]:.2f}")
    print(f"sleeping over spinning, beside a {given.neighbour}: {median['sleep', True] / median['spin', True]:.2f}")


if __name__ == "__main__":
    main()
