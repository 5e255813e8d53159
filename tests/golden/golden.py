"""Golden results: what the commands give, written before code is moved about and compared with afterwards, bit by bit.

    python tests/golden/golden.py write FOLDER       run every case and write what it gave
    python tests/golden/golden.py compare FOLDER     run every case again and say what differs; exit code 1 if so

Cases go through the command line, so that they do not know where anything lies in the code. Numbers are compared as
they were written, which holds on one machine with one set of versions only: nothing of it is kept in the repository.
Timings, paths, versions and dates are left out. `--only NAME` takes some of the cases, `--quick` all but the default
model's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
#: Columns that differ from run to run.
_VOLATILE = re.compile(r"seconds|created|version|path|fingerprint")
#: Words of a report that differ from run to run.
_DATES = re.compile(r"\d{4}-\d\d-\d\d(T[\d:+]+)?|/tmp/[\w./-]+|\d+(\.\d+)? ?(s|seconds|minutes|ms)\b|[0-9a-f]{12,64}")
SMALL = ["--context", "96", "--continuation", "48", "--protect-last", "16"]
RULES = ["attention:window=16", "entropy", "infokv:window=16", "random"]


def run(*arguments: object, cwd: Path) -> str:
    """A command's standard output; what it prints is part of the result."""
    command = [sys.executable, "-m", "forward_influence", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of a table: arrays as digest and mean, volatile columns left out."""
    rows = pq.read_table(path).to_pylist()
    return [{k: _value(v) for k, v in row.items() if not _VOLATILE.search(k)} for row in rows]


def _value(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 8 and all(isinstance(v, int | float) for v in value):
        array = np.array(value, dtype=np.float64)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        return f"{len(value)} numbers, mean {np.nanmean(array)!r}, {digest}"
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(json.loads(value), sort_keys=True)
    return repr(value) if isinstance(value, float) else value


def parts(folder: Path) -> dict[str, Any]:
    """All parts of a run or an evaluation."""
    return {path.stem: parquet(path) for path in sorted((folder / "parts").glob("*.parquet"))}


def numbers_of(text: str) -> list[str]:
    """A text without what differs from run to run, in lines."""
    return [line for line in (_DATES.sub("#", line).strip() for line in text.splitlines()) if line]


class World:
    """A folder with a tiny model and texts, in which the cases run."""

    def __init__(self, folder: Path) -> None:
        import torch
        from tiny_files import save_tiny

        self.folder = folder
        save_tiny(folder / "model")
        generator = torch.Generator().manual_seed(1)
        words = ["the", "tide", "and", "a", "cat", "12", "then", "north", "of", "it", "was", "gone."]
        (folder / "texts").mkdir()
        for i in range(7):
            chosen = torch.randint(len(words), (400,), generator=generator).tolist()
            (folder / "texts" / f"text{i}.txt").write_text(" ".join(words[c] for c in chosen))

    def measure(self, name: str, *options: object, rules: list[str] | None = None) -> dict[str, Any]:
        """A run on the texts, its parts."""
        chosen = [word for rule in (RULES if rules is None else rules) for word in ("--selector", rule)]
        lengths = () if "--context" in options else SMALL
        out = self.folder / name
        given = ["--model", "model", "--documents", "texts", "--max-documents", "2", "--trace-cache", "0", "--out", out]
        run("measure", *given, *chosen, *lengths, *options, cwd=self.folder)
        return parts(out)

    def tables(self, out: str) -> dict[str, Any]:
        """What compare and the report make of a run."""
        found: dict[str, Any] = json.loads(run("compare", out, "--format", "json", cwd=self.folder))
        run("report", out, "--out", f"{out}.html", cwd=self.folder)
        page = (self.folder / f"{out}.html").read_text()
        body = re.sub(r"<(script|style|svg)\b.*?</\1>|<img[^>]*>", "", page, flags=re.DOTALL)
        return {"compare": found, "report": numbers_of(re.sub(r"<[^>]+>", "\n", body))}


def _demo(world: World) -> Any:
    lengths = ["--context", "512", "--continuation", "1536"]
    out = world.folder / "demo"
    run("measure", "--documents", "sotu", "--max-documents", "6", *lengths, "--trace-cache", 0, "--save-selections",
        "--out", out, cwd=world.folder)  # fmt: skip
    return {**parts(out), **world.tables("demo")}


def _generation(world: World) -> Any:
    prompt = " ".join(["the tide and a cat then north of it was gone."] * 6)
    texts = {}
    for compressor in ("infokv:window=8", "h2o", "rpc:window=8", "random-protected", "pyramidkv:window=4", "full"):
        found = run("generate", prompt, "--model", "model", "--compressor", compressor, "--budget", 0.4, "--every", 16,
                    "--max-new-tokens", 48, cwd=world.folder)  # fmt: skip
        texts[compressor] = [line for line in numbers_of(found) if not re.search(r"token.*per|tokens/s", line)]
    return texts


def _evaluation(world: World, *options: object) -> Any:
    out = world.folder / f"evaluation{len(options)}"
    chosen = ["--task", "needle", "--task", "facts", "--compressor", "infokv", "--compressor", "snapkv"]
    sizes = ["--budget", 0.3, "--length", 300, "--items", 2]
    run("evaluate", *chosen, *sizes, *options, "--out", out, cwd=world.folder)
    return parquet(out / "results.parquet")


def _screening(world: World) -> Any:
    chosen = [word for rule in RULES for word in ("--selector", rule)]
    return numbers_of(
        run("screen", "--model", "model", "--documents", "texts", *chosen, *SMALL, "--exact", cwd=world.folder)
    )


def _map(world: World, *options: object) -> Any:
    out = world.folder / f"map{len(options)}.parquet"
    sizes = ["--context", 24, "--continuation", 32, "--block", 2, "--bin-width", 8]
    run("influence-map", "--model", "model", "--documents", "texts", *sizes, *options, "--out", out, cwd=world.folder)
    return parquet(out)


def _analysis(world: World) -> Any:
    measured = world.measure("many", "--max-documents", 7, "--save-selections", "--effect", "both")
    return {**measured, **world.tables("many")}


#: Name -> (whether it needs the default model, what gives it).
CASES: dict[str, tuple[bool, Callable[[World], Any]]] = {
    "drop": (False, lambda w: w.measure("drop", "--verify")),
    "keep": (False, lambda w: w.measure("keep", "--mode", "keep", "--budget", "0.6")),
    "direct": (False, lambda w: w.measure("direct", "--effect", "direct", "--positions-per-bin", 4, "--bin-width", 16)),
    "grains": (
        False,
        lambda w: w.measure("grains", rules=[f"attention:window=16,per={g}" for g in ("entry", "layer", "token")]),
    ),
    "all rules": (
        False,
        lambda w: w.measure(
            "rules",
            rules=[
                "h2o",
                "tova",
                "observed-attention",
                "expected-attention",
                "knorm",
                "keydiff",
                "streaming",
                "recent",
                "first",
                "surprisal",
                "low-entropy",
                "rpc:window=8",
                "rkv",
                "pyramid:window=4",
                "attention:window=16,heads=adaptive",
                "infokv:window=16,layers=adaptive",
                "mix:0.9*knorm+0.1*entropy",
                "position-matched:of=knorm",
            ],
        ),
    ),
    "oracle": (False, lambda w: w.measure("oracle", rules=["oracle", "oracle:zone=far,by=fisher,samples=2"])),
    "sweep": (False, lambda w: w.measure("sweep", "--per-layer", "--layers", "0,2", "--heads", "1")),
    "rerotate": (False, lambda w: w.measure("rerotate", "--rerotate")),
    "written": (False, lambda w: w.measure("written", "--continuation-from", "generate")),
    "segments": (False, lambda w: w.measure("segments", "--segments", 2, "--draws", 2)),
    "compressors": (
        False,
        lambda w: w.measure(
            "compressors",
            "--compressor",
            "infokv:window=8",
            "--compressor",
            "h2o",
            "--compressor",
            "random",
            "--budget",
            "0.4",
            "--every",
            16,
            rules=[],
        ),
    ),
    "generation": (False, _generation),
    "screening": (False, _screening),
    "map": (False, _map),
    "map of direct effects": (False, lambda w: _map(w, "--effect", "direct")),
    "analysis": (False, _analysis),
    "evaluation": (True, _evaluation),
    "evaluation while decoding": (True, lambda w: _evaluation(w, "--every", 32)),
    "demo": (True, _demo),
}


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two results differ; what is new beside what there was is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{where}/{key}: gone" for key in old if key not in new]
        return gone + [d for key in old if key in new for d in differences(old[key], new[key], f"{where}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    return [] if old == new or (old != old and new != new) else [f"{where}: {old!r} was there, {new!r} is"]


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--quick", action="store_true", help="leave out what needs the default model")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for name, (large, case) in CASES.items():
            if (given.only and name not in given.only) or (given.quick and large):
                continue
            path = given.folder / f"{name.replace(' ', '-')}.json"
            found = json.loads(json.dumps(case(world)))
            if given.what == "write":
                path.write_text(json.dumps(found, indent=1))
                print(f"{name}: written")
                continue
            differing = differences(json.loads(path.read_text()), found)
            wrong += bool(differing)
            print(f"{name}: {f'{len(differing)} differences' if differing else 'equal'}")
            for line in differing[:5]:
                print(f"    {line[:300]}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
