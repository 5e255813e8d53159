"""The plan of a run: which questions it is to answer, written down before it begins.

    documents: 12
    margin: 1.1                      # closer to 1 than by this factor is equal
    zones: [near, far]
    questions:
      - ask: Does attention exceed random far away?
        rule: attention
        over: random
        expect: more                 # more, less, different or equal
        zones: [far]

It is read once, checked against what is measured, and kept in the run's configuration: a run goes on under the plan
that it was begun with and no other. Whoever reads the run answers these questions and calls the rest exploratory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.storage.manifest import differing_fields, steering_in
from forward_influence.utils.distances import ZONES
from forward_influence.utils.files import json_sha256, typed_file
from forward_influence.utils.margins import MARGIN, check_margin

#: Below it there is no interval, so that no question can be answered.
FEWEST_DOCUMENTS = 6

Zone = Literal["near", "middle", "far"]
Expect = Literal["more", "less", "different", "equal"]
Text = Annotated[str, Field(min_length=1, max_length=500)]


def _a_list(value: Any) -> Any:
    """One zone is a list of one."""
    return (value,) if isinstance(value, str) else value


class Question(BaseModel):
    """One question of a plan: a rule beside another, in some zones.

    Attributes:
        ask: the question in words; made from the rest where it is empty.
        rule, over: specs of what is compared, as measured: `attention`, `random:per=token`.
        expect: whether the rule's influence is expected to be more or less than the other's, different from it either
            way, or equal within the margin.
        zones: where; the plan's where none is named.
        margin: how close to 1 the ratio must be to be equal, as a factor; the plan's where it is None.
        budget: at which; needed where the run has several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Text
    over: Text
    expect: Expect
    ask: Annotated[str, Field(max_length=500)] = ""
    zones: Annotated[tuple[Zone, ...], BeforeValidator(_a_list)] = ()
    margin: float | None = None
    budget: Text | None = None


class StudyPlan(BaseModel):
    """Questions that a run is to answer, and on how many documents.

    Attributes:
        documents: how many are measured; fewer answer nothing.
        questions: at least one.
        title: of the study.
        margin: of the questions that name none.
        zones: of the questions that name none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int = Field(ge=FEWEST_DOCUMENTS)
    questions: tuple[Question, ...] = Field(min_length=1)
    title: Annotated[str, Field(max_length=200)] = ""
    margin: float = MARGIN
    zones: Annotated[tuple[Zone, ...], BeforeValidator(_a_list), Field(min_length=1)] = ZONES  # type: ignore[assignment]

    @property
    def content(self) -> dict[str, Any]:
        """The plan as JSON values, whatever its file looked like."""
        return self.model_dump(mode="json")

    @property
    def sha256(self) -> str:
        """Hash of the content (hex)."""
        return json_sha256(self.content)

    def zones_of(self, question: Question) -> tuple[str, ...]:
        """Where a question is asked."""
        return question.zones or self.zones

    def margin_of(self, question: Question) -> float:
        """What is equal, of a question."""
        return self.margin if question.margin is None else question.margin

    def budget_of(self, question: Question, measured: Sequence[str]) -> str:
        """At which of the measured budgets a question is asked.

        Raises:
            UsageError: it names none of several, or one that was not measured.
        """
        number = self.questions.index(question) + 1
        if question.budget is None and len(measured) == 1:
            return measured[0]
        if question.budget is None:
            raise UsageError(f"question {number} of the plan names no budget, of {', '.join(measured)}; name one")
        if question.budget not in measured:
            raise UsageError(
                f"question {number} of the plan names the budget {question.budget}, which is not measured; "
                f"measured: {', '.join(measured)}"
            )
        return question.budget


def read_plan(path: str | os.PathLike[str]) -> StudyPlan:
    """The plan in a YAML file.

    Raises:
        UsageError: the file cannot be read, or says something that no plan says; the first such thing is named.
    """
    where = Path(path)
    data = typed_file(where, "a plan", "`plan` takes a YAML file of questions")
    try:
        content = yaml.load(data, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UsageError(f"{where} is no readable YAML ({line}{reason}); docs/statistics.md shows a plan") from error
    return plan_of(content, str(where))


def plan_of(content: Any, where: str) -> StudyPlan:
    """A plan from JSON or YAML values.

    Args:
        where: they stand, for messages.

    Raises:
        UsageError: they are no plan; the first thing that is wrong is named.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{where} is no plan; write `documents:` and `questions:`, as docs/statistics.md shows")
    if character := steering_in(content):
        raise UsageError(f"{where} holds the control character {character}; write it without")
    try:
        plan = StudyPlan.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{where}: {_in_words(error)}") from error
    check_margin(plan.margin, f"{where}: margin")
    asked = set()
    for number, question in enumerate(plan.questions, 1):
        check_margin(plan.margin_of(question), f"{where}: margin of question {number}")
        for zone in plan.zones_of(question):
            key = (question.rule, question.over, question.expect, question.budget, plan.margin_of(question), zone)
            if key in asked:
                raise UsageError(f"{where}: question {number} asks again what was asked before; ask it once")
            asked.add(key)
    return plan


def refuse_other_plan(where: object, there: Mapping[str, Any] | None, asked: Mapping[str, Any] | None) -> None:
    """A run that has begun goes on under its own plan, if it has one.

    Args:
        where: the run lies.
        there, asked: the plans' contents, in the run's configuration and in the request's.

    Raises:
        UsageError: they differ; where, is named.
    """
    if there == asked:
        return
    if asked is None:
        raise UsageError(f"{where} was begun under a plan; give that plan with `plan`, or choose another `out`")
    if there is None:
        raise UsageError(
            f"{where} was begun without a plan, and a plan is made before its run; leave out `plan`, or choose another "
            "`out`"
        )
    fields = "; ".join(differing_fields(_flat(there), _flat(asked)))
    raise UsageError(
        f"the plan of {where} was changed after the run began ({fields}); give the plan as it was, or choose another "
        "`out` for a run of its own"
    )


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with its questions numbered, so that a difference is named where it is."""
    numbered = {f"question {number}": question for number, question in enumerate(plan["questions"], 1)}
    return {key: value for key, value in plan.items() if key != "questions"} | numbered


class _Loader(yaml.BaseLoader):
    """Texts, lists and mappings; a key that stands in a mapping twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str) or name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{str(name)[:80]!r} is said twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _in_words(error: ValidationError) -> str:
    """The first thing that is wrong with a plan, and what to write."""
    first = error.errors(include_url=False)[0]
    names = [
        f"question {part + 1}" if isinstance(part, int) and path == "questions" else str(part)
        for path, part in zip((None, *first["loc"]), first["loc"], strict=False)
        if part != "questions"
    ]
    if names[-1:] and names[-1].isdigit():  # of a list of zones
        names.pop()
    where, given = " of ".join(reversed(names)) or "questions", first.get("input")
    fields = StudyPlan.model_fields if len(first["loc"]) == 1 else Question.model_fields
    kind, about = first["type"], first.get("ctx", {})
    if kind == "missing":
        return f"{where} is missing; docs/statistics.md shows a plan"
    if kind == "extra_forbidden":
        return f"{where} means nothing{did_you_mean(str(first['loc'][-1]), fields)}; there are {', '.join(fields)}"
    if kind == "literal_error":
        known = about["expected"].replace("'", "")
        words = known.replace(" or ", ", ").split(", ")
        return f"{where} is {given!r}{did_you_mean(str(given), words)}; give {known}"
    if kind == "greater_than_equal":
        return f"{where} is {given}, too few; give at least {about['ge']}"
    if kind == "too_short":
        return f"{where or 'questions'} is empty; name at least one"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}; docs/statistics.md shows a plan"
