"""Tasks whose answers are long: problems that are thought through, and a fact planted in a thought."""

from __future__ import annotations

import pytest
import torch
from float64 import Float64
from test_evaluation import loaded
from tiny_tokenizer import byte_tokenizer

from forward_influence.compression import make_compressor
from forward_influence.data.tasks import parse_task
from forward_influence.data.tasks.thinking import THOUGHTS
from forward_influence.errors import UsageError
from forward_influence.evaluation.answering import Asking, answer_while_compressing
from forward_influence.evaluation.prompts import counter

TOKENS = counter(byte_tokenizer())


@pytest.mark.parametrize("problem", THOUGHTS)
def test_problems_are_the_same_every_time_and_score_their_answers(problem: str) -> None:
    pytest.importorskip("reasoning_gym")
    task = parse_task(f"thinking:problem={problem},tokens=100")
    item = task.item(2, 3000, TOKENS)
    assert item == task.item(2, 3000, TOKENS)
    assert item.context != task.item(3, 3000, TOKENS).context
    assert task.answer_tokens == 100
    assert task.score(item, f"First 5, then 7.\nSo the answer is: **{item.answers[0]}**.") == 1
    assert task.score(item, "The answer is 123456789 elephants") == 0
    assert task.score(item, "") == 0
    with pytest.raises(UsageError, match="give `lengths`"):
        task.item(2, 128, lambda text: 500)


def test_countdown_counts_what_it_is_made_of() -> None:
    pytest.importorskip("reasoning_gym")
    task = parse_task("thinking:problem=countdown")
    item = task.item(0, 3000, TOKENS)
    numbers = [int(n) for n in item.context.split("numbers: ")[1].split("\n")[0].rstrip(".").split(", ")]
    target = round(eval(item.answers[0]))  # noqa: S307
    assert task.score(item, f"The answer is {target}") == 0
    assert task.score(item, f"The answer is {numbers[0]} + {target - numbers[0]}") == 0
    assert task.score(item, f"The answer is {item.answers[0]} = {target}") == 1


def test_unknown_problems_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        parse_task("thinking:problem=countdwn")


def test_a_passcode_stands_in_the_thought_alone() -> None:
    task = parse_task("passcode:thought=900")
    item = task.item(1, 400, TOKENS)
    (code,) = item.answers
    assert item.answer_prefix.startswith(f"I choose the passcode {code}")
    assert item.answer_prefix.endswith("The passcode that I noted is")
    assert code not in item.context + item.question
    assert 800 < TOKENS(item.answer_prefix) < 960
    late = parse_task("passcode:thought=900,depth=1").item(1, 400, TOKENS).answer_prefix.split("\n")
    assert late[-2].startswith("I choose the passcode")
    with pytest.raises(UsageError, match="outside 0 to 1"):
        parse_task("passcode:depth=2").item(0, 400, TOKENS)


@pytest.mark.parametrize("rule", ["attention", "infokv", "h2o"])
def test_a_given_thought_is_compressed_as_if_it_were_written(rule: str) -> None:
    """The judge reads it token by token, as generation does."""
    model = loaded()
    tokens = torch.randint(4, 200, (90,), generator=torch.Generator().manual_seed(3))
    compressor = make_compressor(rule, 0.4, every=8, protect_last=8, keep_prompt=True)
    with Float64():
        found = [
            answer_while_compressing(model, [Asking(compressor, tokens[:30], tokens[30:], 0, pace)], 12, ())[0]
            for pace in (8, 1)
        ]
    paced, single = found
    assert paced.answer.text == single.answer.text
    assert paced.outcome.held == single.outcome.held
    assert paced.bytes == single.bytes
    assert paced.outcome.held < 60
