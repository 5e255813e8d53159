"""The documents hold: links lead somewhere, commands exist, and docs/testing.md lists every test that is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
INVENTORY = (ROOT / "docs" / "testing.md").read_text("utf-8")
#: What leaves a test out, as it is written in the code.
LEAVES_OUT = re.compile(r"mark\.(slow|browser|real_model|skipif|skip|xfail)\b|\b(importorskip)\(|pytest\.(skip)\(")


def left_out() -> dict[str, set[str]]:
    """Test file -> the ways in which some of its tests are left out."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        for groups in LEAVES_OUT.findall(path.read_text("utf-8")):
            found.setdefault(path.name, set()).add(next(filter(None, groups)))
    return found


def listed() -> dict[str, set[str]]:
    """The same as docs/testing.md has it: the first two cells of its inventory."""
    table = INVENTORY.split("## What is left out, and where")[1]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {file.strip(" `"): set(re.findall(r"`(\w+)`", ways)) for file, ways in rows}


def test_every_test_that_is_left_out_is_listed():
    assert listed() == left_out()


def test_the_inventory_is_not_vacuous():
    assert {"slow", "browser", "real_model", "importorskip", "skipif"} <= set().union(*left_out().values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_tell_to_make_exists(page):
    makefiles = "".join(path.read_text("utf-8") for path in (ROOT / "Makefile", *(ROOT / "make").glob("*.mk")))
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefiles, re.M))
    wanted = set(re.findall(r"`make ([a-z][a-z-]+)", page.read_text("utf-8")))
    assert wanted <= targets, f"{page.name}: {sorted(wanted - targets)}"


def test_the_tests_that_the_table_of_faults_names_exist():
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    for file, names in re.findall(r"`(test_\w+\.py)(?:::([\w.]+))?`", text):
        (path,) = (ROOT / "tests").rglob(file)
        code = path.read_text("utf-8")
        assert not names or names.removesuffix("...") in code, f"{file} has no {names}"
