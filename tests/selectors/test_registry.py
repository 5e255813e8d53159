"""The language of --selector: names, parameters, files, modules, entry points, and rules that go wrong."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from plain_rules import seen

from forward_influence.errors import UsageError
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import discover, explained, final_scores, parse_selector, registry, select, selector
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

RULES = '''
from __future__ import annotations
from dataclasses import dataclass
import torch
from forward_influence.selectors import Selector, selector


@selector("file-rare", needs={"surprisal"})
def rare(trace):
    """Unexpected tokens."""
    return trace.surprisal


def plain(trace):
    return torch.arange(trace.n)


@selector("file-class", source="mine")
@dataclass(frozen=True, kw_only=True)
class Decorated(Selector):
    """A class.

    Attributes:
        power: to which.
        limit: at most, or none.
    """

    power: float = 1.0
    limit: int | None = None

    @property
    def needs(self):
        return frozenset({"surprisal"})

    def scores(self, trace):
        return trace.surprisal ** self.power


class Undecorated(Selector):
    width: int = 3

    def scores(self, trace):
        return torch.arange(trace.n) // self.width


class Derived(Decorated):
    def scores(self, trace):
        return -super().scores(trace)


not_a_rule = 3
'''


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    yield path
    registry._rules.pop("file-rare", None)
    registry._rules.pop("file-class", None)


@pytest.fixture(scope="module")
def trace():
    return record(wrap_model(seen("llama").model), seen("llama").tokens, Needs(), first=4, last=52)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("atention", "unknown rule 'atention' \\(did you mean 'attention'\\?\\)"),
        ("zzz", "unknown rule 'zzz'; `forward-influence selectors` lists them"),
        ("atention:window", "'atention' is neither a rule \\(did you mean 'attention'\\?\\) nor a module"),
        ("attention:windw=3", "no parameter 'windw' \\(did you mean 'window'\\?\\); it has per, heads, window"),
        ("attention:window=many", "attention: window=many is not a whole number"),
        ("attention:window=3.5", "window=3.5 is not a whole number"),
        ("infokv:alpha=x", "alpha=x is not a number"),
        ("expected-attention:values=maybe", "neither true nor false"),
        ("attention:32", "'32' is not key=value"),
        ("attention:window=32,7", "'7' is not key=value"),
        ("attention:window=8,window=9", "window is given twice"),
        ("mix:attention,terms=entropy", "terms is given twice"),
        ("attention:per=head", "per=head is unknown; per is one of entry, layer, token"),
        ("attention:window=(3", "parentheses do not match"),
        ("attention:window=0", "window=0 observes nothing"),
        ("random:seed=3", "no parameter 'seed'"),
        ("", "names no rule"),
        ("rules.py", "names no rule; write rules.py:RuleName"),
        ("no/such/rules.py:Rare", "rule file no/such/rules.py does not exist"),
        ("no.such.module:Rare", "module 'no.such.module' cannot be imported"),
        ("forward_influence.selectors.snapkv:Atention", "has no rule 'Atention' \\(did you mean 'Attention'\\?\\)"),
        ("forward_influence.selectors.window:POOLINGS", "is not a rule"),
    ],
)
def test_bad_specifications(spec, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_selector(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(discover()))
def test_every_rule_is_documented_and_its_specification_reads_back(name):
    example = discover()[name].example
    rule = parse_selector(example or name)
    assert rule.spec == (example or name)
    assert parse_selector(explained(type(rule)).example).name == name
    assert parse_selector(rule.spec) == rule
    assert rule.source
    found = explained(type(rule))
    assert found.summary.endswith(".")
    for parameter in found.parameters:
        assert parameter.meaning, f"{name} does not say what {parameter.name} is"


def test_parameters_read_back_from_specifications():
    for spec in ("attention:window=32,kernel=7", "infokv:alpha=0.5,layers=adaptive", "entropy:alignment=next,top_k=0"):
        rule = parse_selector(spec)
        assert parse_selector(rule.spec) == rule
        assert rule.parameters["per"] == "entry"
    assert parse_selector("attention:window=64").spec == "attention"
    assert parse_selector(" attention:window = 32 ").spec == "attention:window=32"
    assert parse_selector("position-matched:of=attention(window=32)").observation_window == 32
    assert parse_selector("expected-attention:values=no").parameters["values"] is False


def test_rules_of_a_file(rules, trace):
    for name, kind in [("rare", "file-rare"), ("file-rare", "file-rare"), ("Decorated", "file-class")]:
        assert parse_selector(f"{rules}:{name}").name == kind
    assert parse_selector("file-rare").needs == {"surprisal"}, "named once, it is known by its name"
    rule = parse_selector(f"{rules}:Decorated:power=2,limit=none")
    assert (rule.spec, rule.power, rule.limit) == ("file-class:power=2.0", 2.0, None)
    assert parse_selector(f"{rules}:Decorated:limit=3").limit == 3
    derived = parse_selector(f"{rules}:Derived:power=3")
    assert (derived.name, derived.power) == (f"{rules}:Derived", 3.0)
    undecorated = parse_selector(f"{rules}:Undecorated:width=5")
    assert torch.equal(final_scores(undecorated, trace)[0, 0], torch.arange(60.0) // 5)
    assert parse_selector(undecorated.spec) == undecorated
    function = parse_selector(f"{rules}:plain")
    assert function.name == f"{rules}:plain"
    assert select(function, trace, 2).mask[0, 0].nonzero().flatten().tolist() == [50, 51]
    token = parse_selector(f"{rules}:plain:per=token")
    assert token.parameters["per"] == "token"
    assert parse_selector(f"position-matched:of={rules}:Undecorated(width=5)").rule == undecorated


def test_a_file_is_read_again_once_it_has_changed(rules):
    import os

    assert parse_selector(f"{rules}:Decorated").power == 1.0
    rules.write_text(RULES.replace("power: float = 1.0", "power: float = 4.0"))
    os.utime(rules, ns=(1, 1))
    assert parse_selector(f"{rules}:Decorated").power == 4.0


def test_files_that_cannot_be_read(tmp_path, rules):
    broken = tmp_path / "broken.py"
    broken.write_text("def rule(trace):\n    return (\n")
    with pytest.raises(UsageError, match=r"broken.py cannot be loaded: SyntaxError.*\(line 2\)"):
        parse_selector(f"{broken}:rule")
    failing = tmp_path / "failing.py"
    failing.write_text("import os\n\nwidth = 1 / 0\n")
    with pytest.raises(UsageError, match=r"failing.py cannot be loaded: ZeroDivisionError.*\(line 3\)"):
        parse_selector(f"{failing}:rule")
    with pytest.raises(UsageError, match=r"rules.py has no rule 'plian' \(did you mean 'plain'\?\)"):
        parse_selector(f"{rules}:plian")
    with pytest.raises(UsageError, match="not_a_rule is not a rule"):
        parse_selector(f"{rules}:not_a_rule")


def test_a_name_that_is_taken_is_refused(tmp_path):
    taken = tmp_path / "taken.py"
    taken.write_text(
        "from forward_influence.selectors import selector\n\n@selector('attention')\ndef mine(trace):\n    return 1\n"
    )
    with pytest.raises(
        UsageError, match=r"a rule named 'attention' exists already \(forward_influence.selectors.snapkv"
    ):
        parse_selector(f"{taken}:mine")
    assert parse_selector("attention").needs == {"window:64"}


def test_a_class_that_is_no_selector_is_refused():
    with pytest.raises(UsageError, match=r"Stranger is not a rule; derive it from forward_influence.Selector"):
        selector("stranger")(type("Stranger", (), {}))


def test_a_required_parameter_is_asked_for(tmp_path):
    path = tmp_path / "required.py"
    path.write_text(
        textwrap.dedent(
            """
            from forward_influence.selectors import Selector

            class Required(Selector):
                width: int

                def validate(self):
                    1 / self.width
            """
        )
    )
    with pytest.raises(UsageError, match=r"required.py:Required' cannot be made: .*width"):
        parse_selector(f"{path}:Required")
    with pytest.raises(UsageError, match="cannot be made: ZeroDivisionError"):
        parse_selector(f"{path}:Required:width=0")


def test_rules_of_a_module(tmp_path, monkeypatch):
    package = tmp_path / "my_rules_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text("def rule(trace):\n    return trace.tokens\n")
    (package / "bad.py").write_text("raise RuntimeError('no\\nway')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parse_selector("my_rules_package.good:rule").name == "my_rules_package.good:rule"
    with pytest.raises(UsageError, match=r"'my_rules_package.bad' cannot be imported \(RuntimeError"):
        parse_selector("my_rules_package.bad:rule")
    sys.modules.pop("my_rules_package", None)


def test_rules_of_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "other_package.py").write_text("def rule(trace):\n    return trace.tokens\n\nbroken = 3\n")
    folder = tmp_path / "other_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[forward_influence.selectors]\nfrom-elsewhere = other_package:rule\n"
        "missing = no_such_package:rule\nwrong = other_package:broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert parse_selector("from-elsewhere").name == "from-elsewhere"
    assert parse_selector("from-elsewhere:per=token").spec == "from-elsewhere:per=token"
    with pytest.raises(UsageError, match="unknown rule 'from-elsewere' \\(did you mean 'from-elsewhere'"):
        parse_selector("from-elsewere")
    with pytest.raises(UsageError, match="rule 'missing' from no_such_package:rule cannot be loaded"):
        parse_selector("missing")
    with pytest.raises(UsageError, match="wrong is not a rule"):
        parse_selector("wrong")
