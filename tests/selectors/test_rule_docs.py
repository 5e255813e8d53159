"""docs/rules.md beside the registry, and docs/custom-rules.md beside what its examples do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plain_rules import seen

from forward_influence.models.loading import wrap_model
from forward_influence.selectors import discover, explained, parse_selector, registry, select
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

DOCS = Path(__file__).parents[2] / "docs"
SHARED = ("per", "heads")


def documented() -> dict[str, list[str]]:
    """Rule -> the other cells of its row."""
    rows = {}
    for line in (DOCS / "rules.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if match := re.fullmatch(r"`([\w-]+)`", cells[0]):
            rows[match[1]] = cells[1:]
    return {name: cells for name, cells in rows.items() if name not in SHARED}


def test_every_rule_has_a_row_and_every_row_a_rule():
    assert set(documented()) == {
        name for name, cls in discover().items() if cls.__module__.startswith("forward_influence.")
    }


@pytest.mark.parametrize("name", [n for n, c in discover().items() if c.__module__.startswith("forward_influence.")])
def test_rows_say_what_the_code_has(name):
    found = explained(discover()[name])
    meaning, parameters, source = documented()[name]
    own = [p for p in found.parameters if p.name not in SHARED]
    wanted = [f"`{p.name}`, required" if p.default == "required" else f"`{p.name}={p.default}`" for p in own]
    assert parameters == (", ".join(wanted) or "none")
    assert source == found.source
    assert meaning


def test_specifications_in_the_docs_can_be_read():
    text = (DOCS / "rules.md").read_text() + (DOCS / "kvpress.md").read_text()
    specs = re.findall(r"--selector '?([a-z0-9][\w:=.,()*+/-]*)'?", text)
    own = [s for s in specs if not re.match(r"path/|package\.|kvpress:|NAME", s)]
    assert len(own) >= 4
    for spec in own:
        assert parse_selector(spec).spec


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_tutorials_rules_work_as_written(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(blocks("custom-rules.md")[0])
    specs = re.findall(r"(?<=--selector )rules\.py:[\w:=,]+", (DOCS / "custom-rules.md").read_text())
    assert specs
    try:
        for spec in dict.fromkeys(specs):
            rule = parse_selector(spec.replace("rules.py", str(path)))
            trace = record(
                wrap_model(seen("llama").model), seen("llama").tokens, Needs.merge(rule.needs), first=4, last=52
            )
            assert select(rule, trace, 9).mask.sum(-1).unique().tolist() == [9]
    finally:
        for name in [n for n, c in registry._rules.items() if not c.__module__.startswith("forward_influence.")]:
            del registry._rules[name]
