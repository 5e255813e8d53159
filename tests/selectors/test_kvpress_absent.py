"""Without the extra `kvpress`, naming a press gives one line that says what to install."""

from __future__ import annotations

import sys

import pytest

from forward_influence.errors import UsageError
from forward_influence.selectors import parse_selector
from forward_influence.selectors.kvpress_rule import press_rule


@pytest.fixture(autouse=True)
def forgotten():
    """Presses that another test has found are looked for anew."""
    press_rule.cache_clear()
    yield
    press_rule.cache_clear()


def test_a_press_without_kvpress(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(UsageError, match=r"kvpress.*transformers below 5\.3") as caught:
        parse_selector("kvpress:SnapKVPress")
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / "kvpress").mkdir()
    (tmp_path / "kvpress" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "kvpress", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="kvpress is not installed"):
        parse_selector("kvpress:SnapKVPress")
    monkeypatch.delitem(sys.modules, "kvpress")


def test_a_press_beside_a_transformers_that_kvpress_does_not_know(monkeypatch, tmp_path):
    (tmp_path / "kvpress.py").write_text("raise ImportError('cannot import name QuantizedCache')\n")
    monkeypatch.delitem(sys.modules, "kvpress", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be imported .*QuantizedCache.*below 5\.3"):
        parse_selector("kvpress:SnapKVPress")
