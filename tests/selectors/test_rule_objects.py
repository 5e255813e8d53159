"""Rules given as objects, as in a notebook: functions, classes and instances, registered or not."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import forward_influence as fi
from forward_influence.errors import UsageError
from forward_influence.selectors import registry
from forward_influence.selectors.registry import spec_of

SMALL = {"context": 48, "continuation": 32, "protect_last": 8}


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    """What is registered here is no rule of the package."""
    registry.discover()
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))


def every_seventh(trace):
    """Tokens by their place."""
    return trace.positions % 7


class Newest(fi.Selector):
    """The latest tokens."""

    def scores(self, trace):
        return trace.positions.double()


@dataclass(frozen=True, kw_only=True)
class Shifted(fi.Selector):
    """The latest tokens, from a place on."""

    start: int = 3

    def scores(self, trace):
        return (trace.positions - self.start).double()


def test_functions_and_classes_get_names_of_their_own():
    request = fi.Request(selectors=[every_seventh, Newest, "entropy"], **SMALL)
    assert request.selectors == ("every-seventh", "newest", "entropy")
    assert [rule.spec for rule in request.rules] == ["every-seventh", "newest", "entropy"]


def test_an_instance_keeps_its_parameters():
    request = fi.Request(selectors=Shifted(start=5), **SMALL)
    assert request.selectors == ("shifted:start=5",) and request.rules[0].start == 5


def test_a_registered_rule_keeps_its_name():
    assert spec_of(type(fi.parse_selector("attention"))) == "attention"
    assert spec_of(fi.parse_selector("attention:window=8")) == "attention:window=8"


def test_a_changed_cell_takes_its_own_place_and_no_other_rule_s():
    def mine(trace):
        return trace.positions

    def again(trace):
        return -trace.positions

    again.__name__, again.__qualname__ = mine.__name__, mine.__qualname__
    assert spec_of(mine) == spec_of(again) == "mine"
    assert fi.parse_selector("mine").scores(SimpleNamespace(positions=3)) == -3

    def other(trace):
        return trace.positions

    other.__name__ = other.__qualname__ = "entropy"
    with pytest.raises(UsageError, match="exists already"):
        spec_of(other)


@pytest.mark.parametrize("wrong", [3, object(), int, lambda trace: trace.positions])
def test_what_is_no_rule_is_refused_in_one_line(wrong):
    with pytest.raises(UsageError) as caught:
        fi.Request(selectors=[wrong], **SMALL)
    assert "\n" not in str(caught.value)
