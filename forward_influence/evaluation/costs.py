"""What an evaluation will cost, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.compression.contenders import needs_of
from forward_influence.evaluation.plan import Plan
from forward_influence.models.sizes import Sizes, forward_operations, head_operations


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of an evaluation at most: every prompt as long as it may be, every answer too.

    Attributes:
        answers: how many, of all compressors at all budgets.
        tokens: that go through the model.
        operations: floating-point operations, each cache counted as if it were full (a multiplication and an addition
            are two). Scoring is not counted.
        cache_bytes: of all caches that are held at once.
    """

    answers: int
    tokens: int
    operations: float
    cache_bytes: int


def evaluation_cost(sizes: Sizes, plan: Plan) -> EvaluationCost:
    """Predict what an evaluation costs."""
    found = plan.contenders
    together = plan.every is None  # one prefill for all, then all answers side by side
    head = needs_of(found).head
    answers, tokens, operations, cache = 0, 0, 0.0, 0
    for task in plan.parsed_tasks:
        for length in plan.lengths:
            times = plan.items * len(plan.protocols)
            count = plan.runs * len(found)
            prefills = 1 if together else count
            longest = task.answer_tokens
            prefill = forward_operations(sizes, 0, length) + (head_operations(sizes, length) if head else 0.0)
            answer = forward_operations(sizes, length, longest) + head_operations(sizes, longest)
            answers += times * count
            tokens += times * (prefills * length + count * longest)
            operations += times * (prefills * prefill + count * answer)
            held = [c.compressor.kept(length, length) for c in found]
            each = [sizes.cache_bytes(length + longest, kept + longest) for kept in held]
            whole = sizes.cache_bytes(length)
            cache = max(cache, whole + plan.runs * sum(each) if together else whole + sizes.cache_bytes(longest))
    return EvaluationCost(answers, tokens, operations, cache)
