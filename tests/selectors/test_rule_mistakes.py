"""Rules of one's own that go wrong: one line with the rule's name, and where in its file it begins or fails."""

from __future__ import annotations

import re
import textwrap

import pytest
import torch
from plain_rules import seen

from forward_influence.errors import UsageError
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.request import Request
from forward_influence.measurement.selection_step import choose_all
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import Selector, explained, final_scores, parse_selector, registry, select, selector
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

RULES = """
from __future__ import annotations
import sys
import numpy
import torch
from forward_influence.selectors import Selector, selector


def nan(trace):
    scores = torch.zeros(trace.shape)
    scores[1, 0, 7] = float("nan")
    return scores


def shape(trace):
    return torch.zeros(3)


def square(trace):
    return torch.zeros(2, trace.n)


def nothing(trace):
    pass


def array(trace):
    return numpy.zeros(trace.n)


def listed(trace):
    return [0.0] * trace.n


def raises(trace):
    broken = {}
    return broken["key"]


def needy(trace):
    return trace.surprisal + 0


def inside_torch(trace):
    return torch.zeros(3) @ torch.zeros(4)


def nullary():
    return 0


def leaves(trace):
    sys.exit(3)


class Shapeless(Selector):
    width: int = 3

    def scores(self, trace):
        return torch.zeros(self.width)


@selector("mistaken-need", needs={"surprizal"})
def mistaken_need(trace):
    return trace.tokens


@selector("one-need", needs="surprisal")
def one_need(trace):
    return trace.surprisal


class TextNeeds(Selector):
    @property
    def needs(self):
        return "surprisal"

    def scores(self, trace):
        return trace.surprisal


class RaisingNeeds(Selector):
    @property
    def needs(self):
        return frozenset({self.nowhere})

    def scores(self, trace):
        return trace.tokens


class RaisingWindow(Selector):
    @property
    def observation_window(self):
        raise ValueError("no window")

    def scores(self, trace):
        return trace.tokens


class NoWindow(Selector):
    @property
    def observation_window(self):
        return None

    def scores(self, trace):
        return trace.tokens


class RaisingRemarks(Selector):
    def scores(self, trace):
        return trace.tokens

    def remarks(self, number, candidates):
        return [f"{1 / 0}"]


class Remarking(Selector):
    def scores(self, trace):
        return trace.tokens

    def remarks(self, number, candidates):
        return "mind this"


class RaisingInit(Selector):
    def validate(self):
        sys.exit("no")

    def scores(self, trace):
        return trace.tokens


def flat(trace):
    return torch.zeros(trace.n)
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes") / "rules.py"
    path.write_text(RULES)
    yield path
    for name in ("mistaken-need", "one-need"):
        registry._rules.pop(name, None)


@pytest.fixture(scope="module")
def trace():
    return record(wrap_model(seen("llama").model), seen("llama").tokens, Needs(), first=4, last=52)


def line_of(text: str) -> int:
    return RULES.splitlines().index(next(line for line in RULES.splitlines() if text in line)) + 1


def refused(call, *patterns: str) -> str:
    """The one line that a call is refused with; it contains all patterns."""
    with pytest.raises(UsageError) as caught:
        call()
    assert type(caught.value) is UsageError
    assert "\n" not in str(caught.value)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "complaint", "line"),
    [
        ("nan", r"returned NaN for 1 of 288 candidates \(first: layer 1, kv head 0, token 7\)", "def nan"),
        ("shape", r"returned scores of shape \(3,\); .* = \(3, 2, 60\) is needed", "def shape"),
        ("square", r"\(2, 60\): whether its rows are layers or kv heads cannot be told", "def square"),
        ("nothing", "returned NoneType; a tensor of scores is needed", "def nothing"),
        ("array", "returned ndarray; a tensor of scores is needed", "def array"),
        ("listed", "returned list; a tensor of scores is needed", "def listed"),
        ("raises", "failed: KeyError: 'key'", 'broken["key"]'),
        ("needy", r'surprisal was not recorded; .*: needs=\{"surprisal"\}', "trace.surprisal + 0"),
        ("inside_torch", "failed: RuntimeError: ", "torch.zeros(4)"),
        ("nullary", r"failed: TypeError: nullary\(\) takes 0 positional arguments", "def nullary"),
        ("leaves", "failed: SystemExit: 3", "sys.exit(3)"),
        ("Shapeless", r"returned scores of shape \(3,\)", "        return torch.zeros(self.width)"),
    ],
)
def test_scores_that_go_wrong(rules, trace, name, complaint, line):
    number = line_of(line) - (name == "Shapeless")  # where `scores` begins
    rule = parse_selector(f"{rules}:{name}")
    refused(lambda: final_scores(rule, trace), f"^rule '.*rules.py:{name}'", complaint, rf"rules.py, line {number}\)$")


def test_a_forgotten_need_fails_beside_a_rule_that_has_it_too(rules):
    """Company, or a trace kept on disk, must not decide whether a rule works."""
    model, tokens = wrap_model(seen("llama").model), seen("llama").tokens
    every = {
        "surprisal",
        "window:16",
        "entropy:8",
        "representation_change",
        "query_moments",
        "model",
        "accumulated_attention",
    }
    trace = record(model, tokens, Needs.merge(every), first=4, last=44)
    refused(
        lambda: final_scores(parse_selector(f"{rules}:needy"), trace), "surprisal was not recorded",
        rf"rules.py, line {line_of('trace.surprisal + 0')}\)$",
    )  # fmt: skip
    bare = trace.limited(Needs.merge({"window:8"}))
    assert bare.attention(0, 8).shape[2] == 8
    for read in (
        lambda: bare.attention(0, 16), lambda: bare.entropy_of(8), lambda: bare.representation_change,
        lambda: bare.query_moments, lambda: bare.model, lambda: bare.accumulated_attention, lambda: bare.surprisal,
    ):  # fmt: skip
        with pytest.raises(UsageError, match="not recorded"):
            read()
    assert trace.memo("x", lambda: 1) == bare.memo("x", lambda: 2) == 1


@pytest.mark.parametrize(
    ("name", "complaint", "line"),
    [
        ("mistaken_need", "unknown signal 'surprizal' in a rule's needs \\(did you mean 'surprisal'", '@selector("mis'),
        ("TextNeeds", "gives its needs as the text 'surprisal'; they are a set of texts", "return trace.surprisal\n"),
        ("RaisingNeeds", "failed: AttributeError: .*nowhere", "self.nowhere"),
        ("RaisingWindow", "failed: ValueError: no window", 'ValueError("no window")'),
        ("NoWindow", "observes from None tokens; observation_window is a whole number from 0", ""),
        ("RaisingInit", "cannot be made: SystemExit: no", ""),
    ],
)
def test_declarations_that_go_wrong(rules, name, complaint, line):
    where = rf"rules.py, line {line_of(line)}\)" if line.strip() and "\n" not in line else r"rules.py, line \d+\)"
    refused(lambda: parse_selector(f"{rules}:{name}"), "^rule '", complaint, where)


def test_remarks_that_go_wrong(rules):
    made = {"context": 60, "continuation": 10, "protect_last": 8}
    request = Request(selectors=(f"{rules}:RaisingRemarks",), **made)
    refused(lambda: request.remarks, "failed: ZeroDivisionError", rf"line {line_of('1 / 0')}\)$")
    assert Request(selectors=(f"{rules}:Remarking",), **made).remarks == ("mind this",)


def test_needs_given_to_the_decorator(rules):
    assert parse_selector(f"{rules}:one_need").needs == {"surprisal"}

    class Late(Selector):
        def scores(self, trace):
            return trace.surprisal

    class Own(Late):
        @property
        def needs(self):
            return frozenset({"surprisal"})

    try:
        assert selector("late-mistake", needs={"surprisal"})(Late)().needs == {"surprisal"}
        refused(
            lambda: selector("own-mistake", needs={"surprisal"})(Own), "'own-mistake' has a property `needs`, so leave"
        )
        assert selector("own-mistake")(Own)().needs == {"surprisal"}
    finally:
        for name in ("late-mistake", "own-mistake"):
            registry._rules.pop(name, None)


def test_unknown_needs_are_refused():
    refused(lambda: Needs.merge({"entropie"}), "unknown signal 'entropie' in a rule's needs \\(did you mean 'entropy'")


def test_a_class_without_words_of_its_own_says_nothing(rules):
    assert explained(type(parse_selector(f"{rules}:Shapeless"))).summary == ""
    assert explained(type(parse_selector(f"{rules}:flat"))).summary == ""


def test_nan_outside_the_candidates_harms_nobody(trace, tmp_path):
    path = tmp_path / "edges.py"
    path.write_text(
        "def edges(trace):\n    scores = trace.tokens.float()\n    scores[:4] = scores[52:] = float('nan')\n"
        "    return scores\n"
    )
    assert select(parse_selector(f"{path}:edges"), trace, 5).mask.sum(-1).unique().tolist() == [5]


def test_infinities_that_cancel_in_a_grain_are_named(trace, tmp_path):
    path = tmp_path / "infinite.py"
    path.write_text(
        "import torch\n\ndef infinite(trace):\n    scores = torch.zeros(trace.shape)\n"
        "    scores[0, 0, 9], scores[0, 1, 9] = float('inf'), -float('inf')\n    return scores\n"
    )
    assert select(parse_selector(f"{path}:infinite"), trace, 5).mask[0, 0, 9]
    refused(
        lambda: final_scores(parse_selector(f"{path}:infinite:per=layer"), trace),
        r"NaN for 2 of 288 candidates when averaged to per=layer",
    )


def chosen_by(trace, *selectors: str):
    """All conditions of a request on 4 to 51 of 60 tokens, at a budget of 12."""
    request = Request(selectors=selectors, budgets=("0.2",), context=60, continuation=10, protect_last=8, draws=2)
    conditions = expand(request, "", 0)
    return choose_all(trace, conditions, request, Candidates(60, 4, 52), 1)


def test_what_ties_decide_is_said(rules, trace):
    choices = chosen_by(trace, "recent", f"{rules}:flat", "first")
    assert [c.notes for c in choices.found] == [{}, {"ties": 1.0}, {}]
    [message] = choices.messages(100.0)
    assert re.search(r"rule '.*rules.py:flat' \(.*rules.py, line \d+\) left 100% of what it selected to ties", message)


def test_ties_are_counted_where_they_decide(tmp_path, trace):
    (tmp_path / "steps.py").write_text("def steps(trace):\n    return trace.positions // 5\n")
    # of 12 the latest come first: 50 and 51 (a step cut short), 45 to 49, 40 to 44; no step is cut
    [whole] = chosen_by(trace, f"{tmp_path}/steps.py:steps").found
    assert whole.notes == {}
    (tmp_path / "steps.py").write_text("def steps(trace):\n    return (trace.positions + 1) // 5\n")
    # 49 to 51, 44 to 48, then 4 of the 5 from 39 to 43
    [cut] = chosen_by(trace, f"{tmp_path}/steps.py:steps").found
    assert cut.notes == {"ties": pytest.approx(4 / 12)}


def test_a_rule_slower_than_the_context_is_named(tmp_path, trace):
    (tmp_path / "slow.py").write_text("import torch\n\n\ndef slow(trace):\n    return trace.positions\n")
    choices = chosen_by(trace, f"{tmp_path}/slow.py:slow", "random")
    assert choices.messages(0.0) == [], "nothing below a second is slow"
    assert all(0 < spent < 1 for spent in choices.seconds.values())
    choices.seconds = dict.fromkeys(choices.seconds, 20.4)
    mine, random = choices.messages(1.2)
    assert re.fullmatch(r"rule '.*slow.py:slow' \(.*slow.py, line 4\) took 20 s, the context pass 1 s", mine)
    assert random == "rule 'random' took 20 s, the context pass 1 s"
    assert choices.messages(30.0) == []


def test_messages_reach_whoever_watches_a_measurement(tmp_path):
    import tiny_data

    from forward_influence.measurement.document import measure_document
    from forward_influence.utils.progress import Silent

    said = []

    class Watching(Silent):
        def message(self, text):
            said.append(text)

    (tmp_path / "flat.py").write_text("def flat(trace):\n    return trace.tokens * 0\n")
    request = Request(selectors=(f"{tmp_path}/flat.py:flat",), context=60, continuation=40, protect_last=8)
    measure_document(tiny_data.model(), tiny_data.documents(1, 100)[0], request, progress=Watching())
    assert len(said) == 1 and "left 100% of what it selected to ties" in said[0]


def test_files_beside_a_rule_file_can_be_imported(tmp_path, trace):
    for name, power in (("one", 1), ("two", -1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helping_words.py").write_text(f"power = {power}\n")
        (folder / "rules.py").write_text(
            "from helping_words import power\n\n\ndef rule(trace):\n    return trace.positions * power\n"
        )
    one, two = (parse_selector(f"{tmp_path}/{name}/rules.py:rule") for name in ("one", "two"))
    assert torch.equal(final_scores(one, trace), -final_scores(two, trace)), "each file has the helper beside it"
    before = registry.own_sources([one])
    (tmp_path / "one" / "helping_words.py").write_text("power = 10\n")
    again = parse_selector(f"{tmp_path}/one/rules.py:rule")
    assert float(final_scores(again, trace)[0, 0, 7]) == 70
    assert registry.own_sources([again]) != before, "a run of it is another run"


def test_files_that_end_the_program_are_refused(tmp_path):
    path = tmp_path / "leaving.py"
    path.write_text("import sys\n\nsys.exit(3)\n")
    refused(lambda: parse_selector(f"{path}:rule"), r"leaving.py cannot be loaded: SystemExit: 3 \(line 3\)")
    path = tmp_path / "stranger.py"
    path.write_text(
        textwrap.dedent(
            """
            from forward_influence.selectors import selector

            @selector("attention")
            def mine(trace):
                return trace.tokens
            """
        )
    )
    refused(lambda: parse_selector(f"{path}:mine"), r"'attention' exists already .*\(.*stranger.py, line 4\)$")
