"""Seeded mutants of the engine's core, each against a suite of seconds: `make mutants`.

python benchmarks/mutants.py COUNT SEED [FIRST [STOP]]    writes a line of JSON for each; docs/mutants.md reads them

Mutants are made by cosmic-ray's operators. Each is tried in a fork of a process that has torch and the tiny models in
memory already, on a copy of the package of its own, so that a mutant costs seconds instead of minutes.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "forward_influence"
#: The tests that a mutant of a file has to get past, those that fail first first.
SUITES = {
    "influence/divergence": ("divergence", "core_details", "influence"),
    "selectors/selection": ("selection", "core_details", "influence"),
    "instrument/cache": ("cache", "core_details", "influence"),
    "instrument/selective_layer": ("cache", "core_details", "influence"),
    "influence/ablation": ("core_details", "influence", "direct"),
    "influence/measure": ("core_details", "influence", "direct"),
    "influence/comparison": ("core_details", "influence", "direct"),
}
FILES = tuple(SUITES)
#: The package's other parts lie beside it in the repository.
PARTS = ("cli", "analysis", "data")
#: Operators that change names at random or exceptions into others: what they make mostly does not run.
LEFT_OUT = ("VariableInserter", "VariableReplacer", "ExceptionReplacer")
SLOWEST = 240  # seconds; a mutant that takes longer hangs


def plain(code: str) -> str | None:
    """The syntax tree of code without annotations; None for code that does not parse."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
    return ast.dump(tree)


def mutants(count: int, seed: int) -> list[dict[str, Any]]:
    """So many mutants at random: places of the code first, of each place one of what can be done there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    places: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    codes = {file: (PACKAGE / f"{file}.py").read_text("utf-8") for file in FILES}
    for file, code in codes.items():
        nodes = list(ast_nodes(get_ast(code)))
        for name in operator_names():
            if any(part in name for part in LEFT_OUT):
                continue
            try:
                operator = get_operator(name)()
            except TypeError:  # one that needs arguments
                continue
            positions = [position for node in nodes for position in operator.mutation_positions(node)]
            for occurrence, position in enumerate(positions):
                key = (file, position, name.split("/")[1].split("_")[0])
                places.setdefault(key, []).append((name, occurrence))
    generator = random.Random(seed)
    keys = sorted(places, key=str)
    generator.shuffle(keys)
    chosen: list[dict[str, Any]] = []
    for file, position, _ in keys:
        name, occurrence = generator.choice(places[file, position, _])
        new = mutate_code(codes[file], get_operator(name)(), occurrence)
        tree = plain(new) if new else None
        if new is None or tree is None or tree == plain(codes[file]):
            continue
        pairs = zip(codes[file].splitlines(), new.splitlines(), strict=False)
        old_line, new_line = next(((a, b) for a, b in pairs if a != b), ("", ""))
        chosen.append(
            {
                "file": file,
                "line": position[0][0],
                "operator": name.removeprefix("core/"),
                "old": old_line.strip(),
                "new": new_line.strip(),
                "code": new,
            }
        )
        if len(chosen) == count:
            break
    return chosen


def warmed() -> None:
    """Import what is slow and build the tiny models, before forks share them; nothing of the package itself."""
    import hypothesis  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers.models.auto.modeling_auto  # noqa: F401

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    for family in tiny.FAMILIES:
        for dtype in (torch.float64, torch.float32):
            tiny.tiny_model(family, dtype)
    assert "forward_influence" not in sys.modules


def killed(file: str | None, code: str) -> str:
    """What kills a mutant, in a word; an empty string where it survives."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 99
        try:
            status = _try(folder, file, code)
        finally:
            os._exit(status)
    started = time.monotonic()
    try:
        while True:
            there, status = os.waitpid(child, os.WNOHANG)
            if there:
                failed = (folder / "failed").read_text() if (folder / "failed").exists() else "crash"
                return "" if os.waitstatus_to_exitcode(status) == 0 else failed
            if time.monotonic() - started > SLOWEST:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hang"
            time.sleep(0.05)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(folder: Path, file: str | None, code: str) -> int:
    """Run the suite on a copy of the package in which one file is another; pytest's exit code."""
    import pytest
    from hypothesis.internal.conjecture import engine

    shutil.copytree(PACKAGE, folder / "forward_influence", ignore=shutil.ignore_patterns("__pycache__"))
    for part in PARTS:
        os.symlink(ROOT / part, folder / "forward_influence" / part)
    if file is not None:
        (folder / "forward_influence" / f"{file}.py").write_text(code, "utf-8")
    sys.path.insert(0, str(folder))
    # an editable install brings a finder that would find the original first
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f)).lower()]
    log = os.open(folder / "log", os.O_CREAT | os.O_RDWR)
    os.dup2(log, 1)
    os.dup2(log, 2)
    engine.MAX_SHRINKS = 0  # that a test fails is enough; hypothesis need not find the smallest case
    suite = SUITES[file] if file else dict.fromkeys(name for suite in SUITES.values() for name in suite)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]
    tests = [str(path) for name in suite for path in (ROOT / "tests").rglob(f"test_{name}.py")]
    status = int(pytest.main([*options, *tests]))
    import forward_influence

    assert str(forward_influence.__file__).startswith(str(folder)), "the original was tested"
    lines = (folder / "log").read_text("utf-8", "replace").splitlines()
    failed = [line.split(" - ")[0].split("::")[-1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    (folder / "failed").write_text((failed or ["at import"])[0])
    return status


def main(count: int, seed: int, first: int = 0, stop: int | None = None) -> None:
    chosen = mutants(count, seed)
    warmed()
    if reason := killed(None, ""):
        raise SystemExit(f"the suite fails without a mutant: {reason}")
    died = 0
    for i, mutant in enumerate(chosen[first:stop], first):
        started = time.monotonic()
        mutant["killed by"] = killed(mutant["file"], mutant.pop("code"))
        died += bool(mutant["killed by"])
        print(json.dumps({"mutant": i, **mutant, "seconds": round(time.monotonic() - started, 1)}), flush=True)
    print(f"{died} of {len(chosen[first:stop])} killed", file=sys.stderr)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
