"""Time and peak memory of analysis at scale: 100 documents, 12 conditions, 14,000 positions.

    python benchmarks/analysis_scale.py [--documents 100] [--positions 14000] [--folder DIR] [--keep] [--limits]

Each step runs in a process of its own, so that its peak memory is its own; seconds of the CPU are those of a machine
that nobody else uses, and count the imports. With --limits, fails past 60 s or 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS, GIGABYTES = 60.0, 2.0
CONDITIONS = 12


def make(folder: Path, documents: int, positions: int, selections: bool) -> None:
    """A run with `CONDITIONS` rows per document: nine rules and three draws of random."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from simulated import Decay, simulate

    names = ["attention", "entropy", "surprisal", "infokv", "h2o", "recent", "first", "attention:per=token"]
    rules = {name: Decay("power", 0.5 - 0.04 * i, 0.9 - 0.07 * i) for i, name in enumerate(names)}
    rules["position-matched:of=attention"] = Decay("power", 0.2, 0.6)
    rules["random"] = Decay("power", 0.2, 0.6)
    draws = {"draws": 2}
    sizes = {"documents": documents, "continuation": positions, "context": 2048, "layers": 30, "heads": 3}
    run = simulate(
        folder, rules, **sizes, **draws, save_selections=selections, authors=[f"author {i}" for i in range(20)]
    )
    first = next(iter(run.rows()))["document"]
    rows = sum(row["kind"] == "condition" for row in run.rows() if row["document"] == first)
    assert rows == CONDITIONS, rows


def steps(folder: Path, out: Path) -> dict[str, list[str]]:
    """Commands to time, by name."""
    tables = ["--show", "comparison", "--show", "means", "--show", "decay", "--show", "crossovers"]
    return {"compare": ["compare", str(folder), *tables], "report": ["report", str(folder), "--out", str(out)]}


def run_step(arguments: list[str]) -> None:
    """One command of the tool in this process; writes seconds, those of the CPU, and peak memory to stderr as JSON."""
    import typer

    started = time.perf_counter()
    module = __import__(f"forward_influence.cli.{arguments[0]}", fromlist=["command"])
    app = typer.Typer()
    app.command()(getattr(module, f"{arguments[0]}_command"))
    app(arguments[1:], standalone_mode=False)
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"seconds": time.perf_counter() - started, "cpu": used.ru_utime + used.ru_stime}
    figures["peak_gb"] = used.ru_maxrss * (1024 if sys.platform != "darwin" else 1) / 1e9
    print(json.dumps(figures), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--positions", type=int, default=14_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to make the run; a temporary folder otherwise")
    parser.add_argument("--selections", action="store_true", help="save selections too, so that the report has tokens")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--limits", action="store_true", help=f"fail past {SECONDS:.0f} s or {GIGABYTES:.0f} GB in all")
    parser.add_argument("--step", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step)
        return
    base = options.folder or Path(tempfile.mkdtemp(prefix="analysis-scale-"))
    folder = base / "run"
    started = time.perf_counter()
    if not folder.exists():
        make(folder, options.documents, options.positions, options.selections)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    print(
        f"made {options.documents} documents x {CONDITIONS} conditions x {options.positions} positions: "
        f"{size:.0f} MB in {time.perf_counter() - started:.1f} s"
    )
    total, cpu, peak = 0.0, 0.0, 0.0
    for name, arguments in steps(folder, base / "report.html").items():
        command = [sys.executable, __file__, "--step", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "Agg"})
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        figures = json.loads(done.stderr.strip().splitlines()[-1])
        total, cpu = total + figures["seconds"], cpu + figures["cpu"]
        peak = max(peak, figures["peak_gb"])
        print(f"{name}: {figures['seconds']:.1f} s ({figures['cpu']:.1f} s of CPU), peak {figures['peak_gb']:.2f} GB")
    print(f"together: {total:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GB")
    if not options.keep and options.folder is None:
        shutil.rmtree(base)
    if options.limits and (total > SECONDS or peak > GIGABYTES):
        sys.exit(f"past the limits of {SECONDS:.0f} s and {GIGABYTES:.0f} GB")


if __name__ == "__main__":
    main()
