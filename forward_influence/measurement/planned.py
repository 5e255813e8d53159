"""Whether a measurement can answer the plan that it is made under, found out before a model is loaded."""

from __future__ import annotations

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.influence.effects import TOGETHER
from forward_influence.measurement.request import Request
from forward_influence.selectors import parse_selector
from forward_influence.storage.study_plan import StudyPlan


def check_plan(plan: StudyPlan, request: Request, documents: int) -> None:
    """Refuse a plan that a measurement cannot answer.

    Args:
        documents: how many are to be measured.

    Raises:
        UsageError: a rule or a budget that is not measured, several effects or layers one by one, or another number of
            documents.
    """
    known = [*(rule.spec for rule in request.rules), *(contender.name for contender in request.contenders)]
    for number, question in enumerate(plan.questions, 1):
        for name in (question.rule, question.over):
            if _spec(name) not in known:
                raise UsageError(
                    f"question {number} of the plan names {name}, which is not measured{did_you_mean(name, known)}; "
                    f"measured: {', '.join(known)}"
                )
        if _spec(question.rule) == _spec(question.over):
            raise UsageError(f"question {number} of the plan sets {question.rule} beside itself; name another rule")
        plan.budget_of(question, request.budgets)
    if request.effect in TOGETHER or request.per_layer:
        several = "several effects" if request.effect in TOGETHER else "layers one by one"
        raise UsageError(f"a plan asks about one effect and all layers together, and this measures {several}")
    if documents != plan.documents:
        remedy = "give more `documents`, or plan for fewer" if documents < plan.documents else "plan for as many"
        raise UsageError(f"the plan asks for {plan.documents} documents, and {documents} are to be measured; {remedy}")


def _spec(name: str) -> str:
    """A rule as runs store it; other names as they are."""
    try:
        return parse_selector(name).spec
    except UsageError:
        return name
