"""A plan before the run: what a file may say, what a measurement must have, and that it stays what it was."""

from __future__ import annotations

import json

import pytest
import tiny_data

from forward_influence.cli import app
from forward_influence.cli.measuring import planned
from forward_influence.data.asked import Asked
from forward_influence.errors import UsageError
from forward_influence.execution.run import Source, measure
from forward_influence.measurement.planned import check_plan
from forward_influence.measurement.request import Request
from forward_influence.storage.run import open_run
from forward_influence.storage.study_plan import StudyPlan, plan_of, read_plan

QUESTION = {"rule": "recent", "over": "random", "expect": "more"}


def plan(documents: int = 6, *questions: dict, **fields) -> StudyPlan:
    return plan_of({"documents": documents, "questions": list(questions) or [QUESTION], **fields}, "plan.yaml")


def request(**changes) -> Request:
    asked = {"selectors": ("recent", "random"), "context": 60, "continuation": 40, "protect_last": 8, "draws": 1}
    return Request(**{**asked, **changes})


def test_a_file_is_read_and_its_hash_is_of_what_it_says(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("documents: 6\nquestions:\n- {rule: recent, over: random, expect: more, zones: far}\n")
    second.write_text(
        "# the same\nquestions:\n  - expect: more\n    rule: recent\n    over: random\n    zones: [far]\ndocuments: 6"
    )
    one, other = read_plan(first), read_plan(second)
    assert one == other and one.sha256 == other.sha256
    assert one.zones_of(one.questions[0]) == ("far",) and one.margin_of(one.questions[0]) == 1.1
    assert plan(7).sha256 != plan(6).sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no plan; write `documents:`"),
        ("documents: 5\nquestions: [{rule: a, over: b, expect: more}]", "documents is 5, too few; give at least 6"),
        ("documents: 6\nquestions: []", "questions is empty; name at least one"),
        ("documents: 6", "questions is missing"),
        ("documents: 6\nquestions: [{rule: a, over: b}]", "expect of question 1 is missing"),
        ("documents: 6\nquestions: [{rule: a, over: b, expect: mor}]", "did you mean 'more'?"),
        ("documents: 6\nquestions: [{rule: a, over: b, expect: more, zones: [fra]}]", "zones of question 1 is 'fra'"),
        ("documents: 6\nquestions: [{rule: a, over: b, expect: more, zone: far}]", "zone of question 1 means nothing"),
        ("documents: 6\ndocuments: 9", "'documents' is said twice"),
        ("documents: six\nquestions: [{rule: a, over: b, expect: more}]", "documents: input should be a valid integer"),
        ("documents: 6\nmargin: 1\nquestions: [{rule: a, over: b, expect: equal}]", "margin 1 leaves no room"),
        (
            "documents: 6\nquestions: [{rule: a, over: b, expect: equal, margin: 0.9}]",
            "margin of question 1 0.9 leaves",
        ),
        ("documents: 6\nquestions: [{rule: a, over: b, expect: more}, {rule: a, over: b, expect: more}]", "asks again"),
        ("documents: [6", "no readable YAML (line 1"),
        ('documents: 6\ntitle: "a\\eb"', "control character"),
    ],
)
def test_what_is_no_plan_is_one_line_that_says_why(text, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_plan(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there_or_too_long(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "long.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(UsageError, match="too long for a plan"):
        read_plan(tmp_path / "long.yaml")


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        (plan(6, {**QUESTION, "rule": "recant"}), {}, r"names recant, which is not measured \(did you mean 'recent'"),
        (plan(6, {**QUESTION, "over": "recent"}), {}, "sets recent beside itself"),
        (plan(6), {"budgets": ("0.2", "0.3")}, "names no budget, of 0.2, 0.3"),
        (plan(6, {**QUESTION, "budget": "0.5"}), {}, "names the budget 0.5, which is not measured"),
        (plan(6), {"effect": "both"}, "about one effect"),
        (plan(6), {"per_layer": True}, "all layers together"),
        (plan(9), {}, "asks for 9 documents, and 6 are to be measured; give more"),
    ],
)
def test_a_measurement_that_cannot_answer_is_refused(made, asked, message):
    with pytest.raises(UsageError, match=message):
        check_plan(made, request(**asked), 6)
    check_plan(plan(6, {**QUESTION, "budget": "0.2"}), request(budgets=("0.2", "0.3")), 6)


def test_a_run_keeps_its_plan_and_goes_on_under_no_other(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(6, 100)

    def run(made, count=6):
        return measure(model, documents[:count], request(), tmp_path / "run", source=Source(plan=made))

    with pytest.raises(UsageError, match="asks for 6 documents, and 5"):
        run(plan(6), 5)
    assert not (tmp_path / "run").exists()
    first = run(plan(6))
    assert first.plan == plan(6) and open_run(tmp_path / "run").plan == plan(6)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["plan_sha256"] == plan(6).sha256
    assert len(run(plan(6)).measured()) == 6  # the same again continues
    with pytest.raises(
        UsageError, match=r"was changed after the run began \(question 1.expect: \"more\" there, \"less\""
    ):
        run(plan(6, {**QUESTION, "expect": "less"}))
    with pytest.raises(UsageError, match=r"was changed after the run began .margin: 1.1 there, 1.2 now"):
        run(plan(6, margin=1.2))
    with pytest.raises(UsageError, match="was begun under a plan"):
        run(None)


def test_a_plan_is_not_made_for_a_run_that_has_begun(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(6, 100)
    measure(model, documents, request(), tmp_path / "run")
    assert open_run(tmp_path / "run").plan is None
    with pytest.raises(UsageError, match="begun without a plan, and a plan is made before its run"):
        measure(model, documents, request(), tmp_path / "run", source=Source(plan=plan(6)))


def test_on_the_command_line_the_plan_says_how_many_documents(tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    path.write_text("documents: 6\nquestions: [{rule: recent, over: random, expect: more}]\n")
    common = ["measure", "--dry-run", "--plan", str(path), "--selector", "recent", "--selector", "random"]
    for more, message in ((["--until", "0.1"], "--until and"), (["--max-documents", "8"], "--max-documents is 8")):
        with pytest.raises(SystemExit) as stopped:
            app.main([*common, *more])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    plan, asked = planned(str(path), Asked(("folder",)), None)
    assert (plan, asked.max_documents) == (read_plan(path), 6)
