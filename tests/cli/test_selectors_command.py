"""The command `selectors`: the list, one rule, and names that are none."""

from __future__ import annotations

import json

import pytest

from forward_influence.cli.app import main
from forward_influence.selectors import discover, explained, registry


def output(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["selectors", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_list_names_every_rule_with_source_and_needs(capsys):
    text = output(capsys)
    for name, cls in discover().items():
        assert name in text
        assert cls.source.split(",")[0].split()[0] in text
    assert "representation_change" in text
    assert "per=entry|layer|token" in text


def test_the_list_for_programs(capsys):
    rows = {row["name"]: row for row in json.loads(output(capsys, "--format", "json"))}
    assert rows["attention"]["parameters"]["window"] == "64"
    assert rows["attention"]["needs"] == ["window:64"]
    assert rows["mix"]["needs"] is None
    assert rows["random"]["stochastic"]
    assert "infokv" in output(capsys, "--format", "csv")


@pytest.mark.parametrize("name", ["attention", "mix", "pyramid", "position-matched", "expected-attention"])
def test_one_rule_is_explained(capsys, name):
    text = " ".join(output(capsys, name).split())
    found = explained(discover()[name])
    assert found.summary in text
    assert found.source in text
    for parameter in found.parameters:
        assert f" {parameter.name} " in text
    assert f"--selector '{found.example}'" in text


def test_a_rule_of_ones_own_is_explained(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('def mine(trace):\n    """My idea."""\n    return trace.tokens\n')
    text = output(capsys, f"{path}:mine:per=token")
    assert "My idea." in text
    assert f"--selector '{path}:mine:per=token'" in text
    assert "whole number" in output(capsys, "attention:window=32", "--format", "markdown")


def test_a_rule_that_its_file_names_is_shown_as_it_was_typed(capsys, tmp_path):
    path = tmp_path / "named.py"
    path.write_text(
        "from forward_influence.selectors import Selector, selector\n\n\n"
        "@selector('named-late')\nclass Late(Selector):\n    power: float = 1.0\n\n"
        "    def scores(self, trace):\n        return trace.tokens\n"
    )
    try:
        text = output(capsys, f"{path}:Late:power=2")
    finally:
        registry._rules.pop("named-late", None)
    assert text.startswith("named-late: it has no docstring")
    assert f"--selector '{path}:Late:power=1.0'" in text, "in a new process, nobody knows named-late"


@pytest.mark.parametrize(
    ("name", "complaint"), [("atention", "did you mean 'attention'"), ("no.py:x", "does not exist")]
)
def test_unknown_rules_exit_with_2(capsys, name, complaint):
    with pytest.raises(SystemExit) as ended:
        main(["selectors", name])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
