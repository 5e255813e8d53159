"""Time of the engine over the bare forward passes on the same tokens, and peak memory beside a plain implementation.

    python benchmarks/engine.py                                        what `make bench` does
    python benchmarks/engine.py --part time --repeats 1 --append       one more pair, added to the results
    python benchmarks/engine.py --device cuda --dtype bfloat16 --model random:16x2048x128256

The floor: `model(...)` as it is, with logits, in chunks of the same size: context once, continuation once per condition
and once in full. Engine and floor alternate in one process; the figure is the median of the ratios of neighbours.
Peaks are measured in processes of their own, above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import torch
from common import RESULTS, RULES, Peak, configuration, engine, floor, load, machine, remember, seconds

from forward_influence.utils.threads import start_anew

PARTS = ("all", "time", "memory", "plain", "profile", "grid", "peak")

#: (model, context, continuation, rules, chunk, effect) over which the memory formula is held against measured peaks.
GRID = (
    ("smollm2-135m", 512, 512, "recent", 512, "total"),
    ("smollm2-135m", 512, 512, "infokv", 512, "total"),
    ("smollm2-135m", 512, 1536, "attention,entropy,infokv,random", 512, "total"),
    ("smollm2-135m", 1024, 3072, "recent", 512, "total"),
    ("smollm2-135m", 512, 256, "h2o", 512, "total"),
    ("smollm2-135m", 1024, 512, "entropy", 512, "both"),
    ("smollm2-135m", 3072, 512, "attention", 256, "total"),
    ("random:4x256x4096", 2048, 2048, "recent", 512, "total"),
    ("random:4x256x4096", 2048, 2048, "attention,entropy,infokv,random", 512, "total"),
    ("random:4x256x4096", 1024, 4096, "attention,entropy", 128, "total"),
    ("random:4x256x4096", 4096, 512, "h2o", 512, "total"),
    ("random:4x256x4096", 512, 512, "recent", 512, "total"),
    ("random:4x256x4096", 2048, 256, "attention", 512, "total"),
    ("random:8x768x8192", 2048, 2048, "infokv,recent", 512, "both"),
    ("random:8x768x8192", 1024, 1024, "oracle:far", 512, "total"),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="all")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--continuation", type=int, default=3072)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="keep the entries of earlier runs")
    parser.add_argument("--effect", choices=("total", "direct", "both"), default="total")
    parser.add_argument("--who", choices=("engine", "plain", "floor"), default="engine", help="of --part peak")
    parser.add_argument("--label", default="", help="kept with the result")
    return parser.parse_args()


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """What a result is about."""
    names = ("model", "dtype", "context", "continuation", "rules", "chunk", "label")
    return {name: getattr(given, name) for name in names}


def prepared(given: argparse.Namespace) -> tuple[Any, torch.Tensor]:
    """The model, warm, and the tokens."""
    if given.threads:
        torch.set_num_threads(given.threads)
    model, tokens = load(given.model, given.device, given.dtype, given.context + given.continuation)
    engine(model, tokens[:288], 256, ("entropy",), given.chunk)
    floor(model.model, tokens[:288], 256, 0, given.chunk)
    return model, tokens


def call(given: argparse.Namespace, who: str, model: Any, tokens: torch.Tensor) -> Any:
    """One run of the engine, the floor or the plain script."""
    rules = tuple(given.rules.split(","))
    if who == "engine":
        return engine(model, tokens, given.context, rules, given.chunk, given.effect)
    if who == "floor":
        return floor(model.model, tokens, given.context, len(rules), given.chunk)
    from plain import plain_influence

    return plain_influence(model.model, tokens[: given.context], tokens[given.context :], rules, 0.2)


def time_part(given: argparse.Namespace, other: str) -> None:
    """Engine and `other` (floor or plain) in turns."""
    model, tokens = prepared(given)
    for _ in range(given.repeats):
        took = {
            who: seconds(model.device, lambda who=who: call(given, who, model, tokens)) for who in (other, "engine")
        }
        ratio = took["engine"] / took[other]
        entry = {**setting(given), **machine(model.device), **{k: round(v, 3) for k, v in took.items()}}
        entries = remember(f"time-{other}", {**entry, "ratio": round(ratio, 4)})
        ratios = [e["ratio"] for e in entries if all(e[k] == v for k, v in setting(given).items())]
        print(
            f"engine / {other} {ratio:.3f}",
            took,
            f"median of {len(ratios)}: {statistics.median(ratios):.3f}",
            flush=True,
        )


def peak_part(given: argparse.Namespace) -> None:
    """Peak memory of one run in this process, printed as JSON."""
    model, tokens = prepared(given)
    with Peak(model.device) as peak:
        call(given, given.who, model, tokens)
    print(json.dumps({"bytes": peak.bytes}))


def memory_part(given: argparse.Namespace) -> None:
    """Peaks of the engine and the plain script, each in a process of its own."""
    entry = {**setting(given), **machine(torch.device("cpu"))}
    for who in ("engine", "plain"):
        entry[who] = peak_elsewhere(given, who)
        print(f"peak of the {who} above the model: {entry[who] / 1e6:,.0f} MB", flush=True)
    entry["ratio"] = round(entry["engine"] / entry["plain"], 4)
    remember("memory", entry)


def peak_elsewhere(given: argparse.Namespace, who: str, **changes: Any) -> int:
    """Peak bytes in a fresh process."""
    names = ("model", "device", "dtype", "context", "continuation", "rules", "chunk", "threads", "effect")
    values = {**{n: getattr(given, n) for n in names}, **changes}
    options = [f"--{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        [sys.executable, __file__, "--part=peak", f"--who={who}", *options],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def grid_part(given: argparse.Namespace) -> None:
    """The memory formula against measured peaks."""
    from forward_influence import Request
    from forward_influence.measurement.memory import peak_of_request
    from forward_influence.models.sizes import Sizes

    rows = []
    for model, context, continuation, rules, chunk, effect in GRID:
        changes = {"model": model, "context": context, "continuation": continuation, "rules": rules, "chunk": chunk}
        measured = peak_elsewhere(given, "engine", **changes, effect=effect)
        request = Request(
            selectors=tuple(rules.split(",")), context=context, continuation=continuation, draws=1, effect=effect
        )
        formula = peak_of_request(Sizes.of(configuration(model)), request, chunk)
        rows.append({**changes, "effect": effect, "measured": measured, "formula": formula.total})
        row = rows[-1] | {"ratio": round(measured / formula.total, 3)}
        print(json.dumps(row), flush=True)
        remember("memory-grid", row)
    worst = max(rows, key=lambda row: abs(row["measured"] / row["formula"] - 1))
    print(f"furthest from the formula: {worst}")


def profile_part(given: argparse.Namespace) -> None:
    """Seconds of the engine by part of the work."""
    import profile_engine

    model, tokens = prepared(given)
    print(json.dumps(profile_engine.profile(lambda: call(given, "engine", model, tokens), model), indent=1))


def main() -> None:
    """Run the parts asked for."""
    given = arguments()
    if given.part == "peak":
        peak_part(given)
        return
    if not given.append:
        parts = {"time-floor": "time", "time-plain": "plain", "memory": "memory", "memory-grid": "grid"}
        for name, part in parts.items():
            if given.part in ("all", part):
                (RESULTS / f"{name}.json").unlink(missing_ok=True)
    if given.part in ("all", "time"):
        time_part(given, "floor")
    if given.part in ("all", "plain"):
        time_part(given, "plain")
    if given.part in ("all", "memory"):
        memory_part(given)
    if given.part in ("all", "grid"):
        grid_part(given)
    if given.part == "profile":
        profile_part(given)


if __name__ == "__main__":
    start_anew()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
