"""The wheel as a new user has it: what is in it, and that it works by itself in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import tiny_files

ROOT = Path(__file__).parents[2]
ROOMS = {"forward_influence": "", "cli": "cli/", "analysis": "analysis/", "data": "data/"}
pytestmark = pytest.mark.slow


def run(*words: object, cwd: Path) -> str:
    """What a command prints where it succeeds; nothing of this environment is passed on that Python would read."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=clean, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the working tree."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, copy, cwd=out)
    [made] = out.glob("*.whl")
    return made


def test_every_file_of_every_room_is_in_it_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"forward_influence/{below}{path.relative_to(ROOT / room).as_posix()}"
        for room, below in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in expected} >= {".py", ".typed", ".toml", ".yaml", ".j2", ".css", ".js"}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_it_works_by_itself_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment, which a path file lends; the package itself is the wheel's."""
    home, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(home, with_pip=False)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = python.with_name("forward-influence")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    [site] = (home / "lib").glob("python*/site-packages")
    lent = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    where = run(python, "-c", "import forward_influence.cli as package; print(package.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(site)

    tiny_files.save_tiny(elsewhere / "model")
    (elsewhere / "texts").mkdir()
    for i in range(2):
        (elsewhere / "texts" / f"{i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(400)))
    assert "measure" in run(command, "--help", cwd=elsewhere)
    assert "infokv" in run(command, "selectors", cwd=elsewhere)
    assert "smollm2-135m" in run(command, "models", cwd=elsewhere)  # named in a data file
    given = ["--model", "model", "--documents", "texts", "--context", 60, "--continuation", 40, "--protect-last", 8]
    given += ["--selector", "recent", "--selector", "random", "--draws", 1, "--trace-cache", 0, "--device", "cpu"]
    assert "mean KL" in run(command, "measure", *given, "--out", "run", cwd=elsewhere)
    run(command, "report", "run", "--out", "report.html", cwd=elsewhere)  # of templates
    assert "</html>" in (elsewhere / "report.html").read_text("utf-8")
    tasks = "from forward_influence.integrations.lm_eval import tasks as t; print(sorted(p.suffix for p in "
    tasks += "__import__('pathlib').Path(t.__file__).parent.iterdir()))"
    assert "'.yaml'" in run(python, "-c", tasks, cwd=elsewhere)
