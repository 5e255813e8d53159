"""What our lm-evaluation-harness task files call: data sets made on the spot, and scores.

Lengths, numbers and seeds are given with the harness's `--metadata`, as in
`--metadata length=2000 items=50 item_seed=1 parameters=depth=0.5`.
"""

from __future__ import annotations

from typing import Any

from forward_influence.data.tasks.base import Item
from forward_influence.data.tasks.registry import parse_task
from forward_influence.evaluation.prompts import counter
from forward_influence.models.resolving import load_tokenizer, resolve_spec

#: Tokens per word, where there is no tokenizer to count with.
_TOKENS_PER_WORD = 4 / 3


def dataset(
    task: str,
    length: int = 1000,
    items: int = 100,
    item_seed: int = 0,
    parameters: str = "",
    tokenizer: str | None = None,
    pretrained: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Items of a task as a data set with one split, "test".

    Args:
        task: its name.
        length: tokens of context and question, counted with the model's tokenizer (estimated where it is not known).
        items: how many.
        item_seed: of the items.
        parameters: the task's own, "keys=8,depth=0.5".
        tokenizer, pretrained: whose tokenizer to count with; the harness passes the model's arguments on.
    """
    import datasets

    made = parse_task(f"{task}:{parameters}" if parameters else task)
    name = tokenizer or pretrained
    count = counter(load_tokenizer(resolve_spec(name))) if name else _estimated
    rows = [made.item(i, int(length), count, int(item_seed)).as_dict() for i in range(int(items))]
    return {"test": datasets.Dataset.from_list(rows)}


def _estimated(text: str) -> int:
    return round(len(text.split()) * _TOKENS_PER_WORD)


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The score of one response, 0 to 1."""
    item = Item(**{**doc, "answers": tuple(doc["answers"]), "evidence": tuple(doc["evidence"])})
    return {"accuracy": parse_task(item.task).score(item, results[0])}
