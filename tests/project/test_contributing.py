"""CONTRIBUTING's examples: one file and at most 60 lines each, applied to a copy of the package and run there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 60
#: Headings of CONTRIBUTING, and the room in which each thing is one file.
ROOMS = {
    "a rule": "forward_influence/selectors",
    "a signal": "forward_influence/tracing/signals",
    "an effect": "forward_influence/influence/effects",
    "a measure of what was found": "analysis/tables/kinds",
    "a picture": "analysis/plots/kinds",
    "an executor": "forward_influence/execution/places",
    "an option": "forward_influence/models",
}


def examples() -> dict[str, str]:
    """Heading -> the diff under it; headings that begin with Adding alone."""
    found = {}
    for section in (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n## Adding ")[1:]:
        heading, _, rest = section.partition("\n")
        _, _, fenced = rest.partition("\n```diff\n")
        found[heading] = fenced.partition("\n```\n")[0] + "\n"
    return found


def test_every_thing_has_an_example_in_one_file() -> None:
    found = examples()
    assert found.keys() == ROOMS.keys()
    assert set(re.findall(r"^## Adding (.+)$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)) == set(
        ROOMS
    )
    for name, text in found.items():
        [path] = re.findall(r"^\+\+\+ b/(.+)$", text, re.MULTILINE)
        assert str(Path(path).parent) == ROOMS[name]
        assert len(text.splitlines()) <= MOST_LINES, name


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict:
    """What `contributed_runner.py` saw of all of them, in a copy of the package."""
    copy = tmp_path_factory.mktemp("copy")
    hidden = shutil.ignore_patterns("__pycache__")
    for room in ("forward_influence", "analysis", "cli", "data"):
        shutil.copytree(ROOT / room, copy / room, ignore=hidden)
    for name, text in examples().items():
        applied = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", "-"], cwd=copy, input=text, capture_output=True, text=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)},
        )  # fmt: skip
        assert applied.returncode == 0, f"{name}: {applied.stderr}"
    for room in ("analysis", "cli", "data"):  # as in the wheel
        (copy / room).rename(copy / "forward_influence" / room)
    runner = Path(__file__).with_name("contributed_runner.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT / "tests")])}
    ran = subprocess.run(
        [sys.executable, str(runner)], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(copy)
    return found


def test_the_rule_scores_as_it_says(done) -> None:
    assert done["repeats"] == done["repeats_by_hand"]


def test_the_signal_is_recorded_for_a_rule(done) -> None:
    assert done["recurrence"] == done["recurrence_by_hand"] and max(done["recurrence"]) > 0


def test_the_effect_is_measured_and_verified(done) -> None:
    assert done["effects"] == ["halved"] and len(done["verified"]) == 2
    assert all(share < 1 for share in done["verified"])


def test_the_measure_is_shown_on_the_terminal_and_in_a_report(done) -> None:
    assert done["variation"] == pytest.approx(done["variation_by_hand"]) and len(done["variation"]) > 0
    assert "Variation between documents" in done["report"] and "Variation between documents" in done["terminal"]
    assert "factor: exp of the standard deviation" in done["terminal"]


def test_the_picture_is_drawn_and_in_a_report(done) -> None:
    assert done["picture"] == "written" and "Far influence, document by document" in done["report"]


def test_the_executor_measures_what_this_process_does(done) -> None:
    assert done["there"] == done["here"] and len(done["here"]) > 0


def test_the_option_is_one_of_every_command_that_loads_a_model(done) -> None:
    assert done["has_option"] == ["evaluate", "generate", "influence-map", "inspect", "measure", "screen"]
    assert done["max_memory"] == {"0": "40GB", "cpu": "90GB"}
