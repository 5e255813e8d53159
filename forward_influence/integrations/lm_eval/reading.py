"""What of a harness request is compressed, and what is read after that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from forward_influence.errors import UsageError
from forward_influence.evaluation.prompts import cut, cut_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from forward_influence.evaluation.prompts import Prompt

QUESTION = "question"
#: A document with this field beside its question has what leads to the answer told apart (ours have).
LEAD = "answer_prefix"


def request_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    document: Any,
    protocol: str,
    field: str | None = None,
    special: bool = False,
) -> Prompt:
    """A request's text as a prompt in three parts, the same as in `evaluate` where the question can be found.

    Args:
        document: of the task, from which the text was made.
        protocol: "seen" or "unseen".
        field: of the document, that holds the question; None: `question`, for seen only where the document also says
            what leads to the answer. Where it is not known the whole text counts as context but for its last token.
        special: with the tokenizer's special tokens around the text.

    Raises:
        UsageError: the protocol or `field` asks for the question, and the text does not hold it.
    """
    named = document if isinstance(document, Mapping) else {}
    needed = protocol == "unseen" or field is not None
    question = named.get(field or QUESTION) if needed or LEAD in named else None
    at = text.rfind(question) if isinstance(question, str) and question.strip() else -1
    if at > 0 or (at == 0 and protocol == "seen"):
        return cut(tokenizer, text, at, at + len(str(question)), special)
    if needed:
        raise UsageError(
            f"the prompt of this task does not hold its document's {field or QUESTION!r} after a context; use "
            "protocol=seen without question_field, or name the field with question_field=..."
        )
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    return cut_at(ids, len(ids) - 1, len(ids) - 1)


def rolling_windows(
    tokens: Sequence[int], prefix: int, size: int, context: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(context, scored) token ids of a whole text; every token is scored once.

    Args:
        prefix: what the text begins with.
        size: tokens that are read at once.
        context: tokens that come before those that are scored. 1: the harness's own windows, in which nothing can be
            compressed. More: the first `context` tokens have only `prefix` before them, every later window as many
            tokens of the text, at least.
    """
    tokens = list(tokens)
    if context == 1:
        yield from map(make_disjoint_window, get_rolling_token_windows(tokens, prefix, size, 1))
        return
    if tokens:
        yield [prefix], tokens[:context]
    step = size - context + 1  # the last token scored is not read
    for start in range(context, len(tokens), step):
        yield tokens[start - context : start], tokens[start : start + step]
