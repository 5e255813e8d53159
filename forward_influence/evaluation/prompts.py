"""A task's item as token ids, cut where the question begins, so that a cache can be compressed before or after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.utils.tokenization import encode, encode_around, leading_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: When the question is known: before the context is compressed, or only after.
PROTOCOLS = ("seen", "unseen")


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt in three parts: together they are the ids of its whole text.

    A token that the question shares with what comes before or after it belongs to the question.

    Attributes:
        context: (c,) int64, everything before the question, with the chat template's words around it.
        question: (q,) int64, the question.
        lead: (l,) int64, at least one: what follows the question, up to where the answer begins. It is read from the
            compressed cache under both protocols; otherwise the answer's first token would come from the full one.
    """

    context: Tensor
    question: Tensor
    lead: Tensor

    def parts(self, protocol: str) -> tuple[Tensor, Tensor]:
        """What is run and compressed, and what is read after that."""
        if protocol == "seen":
            return torch.cat([self.context, self.question]), self.lead
        return self.context, torch.cat([self.question, self.lead])


def cut(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, special: bool = False) -> Prompt:
    """A prompt's whole text, tokenised once, in three parts.

    Args:
        start, end: where the question is, text[start:end].
        special: with the tokenizer's special tokens around the text.
    """
    ids, first, after = encode_around(tokenizer, text, start, end, special)
    return cut_at(ids, first, after)


def cut_at(ids: Sequence[int], first: int, after: int) -> Prompt:
    """A prompt whose question is ids[first:after]; where nothing follows, its last token is the lead."""
    after = max(0, min(after, len(ids) - 1))
    first = max(0, min(first, after))
    whole = torch.tensor(ids, dtype=torch.int64)
    return Prompt(whole[:first], whole[first:after], whole[after:])


def counter(tokenizer: PreTrainedTokenizerBase) -> Any:
    """text -> tokens, which tasks measure their length with."""
    return lambda text: len(encode(tokenizer, text))


def make_prompt(
    tokenizer: PreTrainedTokenizerBase, context: str, question: str, answer_prefix: str = "", chat: bool = False
) -> Prompt:
    """A context and a question as a prompt: one user's message with `chat`, plain text without.

    Its token ids are those of its whole text: plain `generate` over that text reads the same.

    Args:
        answer_prefix: the words that the answer begins with; the response goes on from there.

    Raises:
        UsageError: the chat template does not hold the question as it was written.
    """
    asked = f"{context}\n\n{question}" + ("" if answer_prefix else "\n")  # an answer begins on a line of its own
    if not chat:
        at = len(context) + 2
        prompt = cut(tokenizer, asked + (f"\n{answer_prefix}" if answer_prefix else ""), at, at + len(question))
        leading = torch.tensor(leading_tokens(tokenizer), dtype=torch.int64)
        return dataclasses.replace(prompt, context=torch.cat([leading, prompt.context]))
    message = [{"role": "user", "content": asked}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    at = text.rfind(question)
    if at < 0:
        raise UsageError("the chat template changes the question: where it begins is unknown; use `chat=False`")
    return cut(tokenizer, text + answer_prefix, at, at + len(question))
