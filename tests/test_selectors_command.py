"""The command `selectors`: the list, one rule, and names that are none."""

from __future__ import annotations

import json

import pytest

from forward_influence.cli.app import main
from forward_influence.selectors import discover, explained


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
    assert "My idea." in output(capsys, f"{path}:mine")
    assert "whole number" in output(capsys, "attention:window=32", "--format", "markdown")


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
