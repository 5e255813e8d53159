"""A task's item as token ids, cut where the question begins, so that a cache can be compressed before or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.tokenizing import encode, leading_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: When the question is known: before the context is compressed, or only after.
PROTOCOLS = ("seen", "unseen")


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt in three parts. They are tokenised apart, so that both protocols read the same tokens.

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


def wants_chat(tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> bool:
    """Whether to use a chat template: as asked, or where there is one.

    Raises:
        UsageError: chat is asked for and there is no template.
    """
    there = bool(getattr(tokenizer, "chat_template", None))
    if chat and not there:
        raise UsageError("this model has no chat template; leave --chat out, or choose an instruction-tuned model")
    return there if chat is None else chat


def counter(tokenizer: PreTrainedTokenizerBase) -> Any:
    """text -> tokens, which tasks measure their length with."""
    return lambda text: len(encode(tokenizer, text))


def make_prompt(
    tokenizer: PreTrainedTokenizerBase, context: str, question: str, answer_prefix: str = "", chat: bool = False
) -> Prompt:
    """A context and a question as a prompt: one user's message with `chat`, plain text without.

    Args:
        answer_prefix: the words that the answer begins with; the response goes on from there.

    Raises:
        UsageError: the chat template does not hold the question as it was written.
    """
    if chat:
        message = [{"role": "user", "content": f"{context}\n\n{question}"}]
        text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        at = text.rfind(question)
        if at < 0:
            raise UsageError("the chat template changes the question: where it begins is unknown; use --no-chat")
        leading, before, after = [], text[:at], text[at + len(question) :] + answer_prefix
    else:
        leading, before, after = leading_tokens(tokenizer), f"{context}\n\n", f"\n{answer_prefix}"
    first = torch.tensor(leading + encode(tokenizer, before), dtype=torch.int64)
    return Prompt(first, *(torch.tensor(encode(tokenizer, part), dtype=torch.int64) for part in (question, after)))
