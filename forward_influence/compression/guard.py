"""Looking at a call of `generate` before it runs with a compressed cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from forward_influence.compression.rows import Rows
from forward_influence.models.generation_settings import in_force, settled


class _Noted(StoppingCriteria):
    """A criterion whose verdicts are told to the sequences of a batch: those that have ended cost nothing more."""

    def __init__(self, criterion: Any, rows: Rows) -> None:
        self._criterion, self._rows = criterion, rows

    def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
        """(rows,) bool: which sequences are complete."""
        verdict = self._criterion(input_ids, scores, **others)
        if isinstance(verdict, Tensor) and verdict.shape == (len(self._rows.rows),):
            self._rows.ended(verdict)
        return verdict


class _EndTokens(StoppingCriteria):
    """Whether the last token is one of these."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
        """(rows,) bool."""
        return torch.isin(input_ids[:, -1], self._tokens.to(input_ids.device))


@contextmanager
def guarded(model: PreTrainedModel, rows: Rows) -> Iterator[None]:
    """Within the block, the model's `generate` refuses settings that cannot be with a compressed cache, in words.

    torch has hooks for forward passes and none for `generate`, whose settings no forward pass shows; so a function that
    checks them and then calls the model's own stands in its place, and goes with the block.
    """
    own = getattr(model, "generate", None)
    if own is None:  # a model that cannot write can still be read with
        yield
        return
    before = vars(model).get("generate")

    @functools.wraps(own)
    def generate(*args: Any, **named: Any) -> Any:
        given = _by_name(own, args, named)
        rows.refuse_ended()
        added = settled(model, given)
        if "stopping_criteria" in named or "stopping_criteria" not in given:
            added |= _watched(model, given, rows)
        return own(*args, **{**named, **added})

    model.generate = generate  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


def _watched(model: PreTrainedModel, given: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """What to add to a call of `generate` so that sequences of a batch leave when they have ended.

    Args:
        given: the arguments of the call by their names. A single sequence ends with the call.
    """
    names = ("input_ids", "inputs", "inputs_embeds")
    first = next((given[name] for name in names if given.get(name) is not None), None)
    if first is None or len(first) * (in_force(model, given, "num_return_sequences") or 1) == 1:
        return {}
    ends, stops = in_force(model, given, "eos_token_id"), in_force(model, given, "stop_strings")
    own = [_Noted(criterion, rows) for criterion in given.get("stopping_criteria") or []]
    added = criteria(rows, ends, stops, given.get("tokenizer"))
    return {"stopping_criteria": StoppingCriteriaList([*own, *added])}


def criteria(rows: Rows, ends: Any, stops: Any, tokenizer: Any) -> StoppingCriteriaList:
    """What ends a text, watched.

    Args:
        ends: token ids, one or several, or None.
        stops: texts, one or several, or None.
    """
    found: list[Any] = []
    if ends is not None:
        found.append(_EndTokens(torch.as_tensor(ends).flatten()))
    if stops is not None and tokenizer is not None:
        found.append(StopStringCriteria(tokenizer, stops))
    return StoppingCriteriaList(_Noted(criterion, rows) for criterion in found)


def _by_name(function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names; those that it cannot take are left to itself to refuse."""
    names = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return {**dict(zip(names, args, strict=False)), **named}
