"""What is published says the same everywhere: version, licence, and that the workflow runs what .ci/run runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import forward_influence as fi

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_version_stands_in_one_place_and_is_cited():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == fi.__version__
    assert f"## {fi.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_licence_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    steps = workflow["jobs"]["everything"]["steps"]
    assert {"run": ".ci/run"} in steps
