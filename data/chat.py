"""Conversations: messages as a model reads them, through its chat template, and where their parts lie in that text.

The last reply is written behind the template's own prompt for it, as it was when a model wrote it: templates drop or
move the thoughts of replies that they render. A thought is what stands between <think> and </think> at the beginning of
a reply, or under a key of its own (`reasoning_content`, `reasoning`), as servers return it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forward_influence.data.spans import Span
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGIN, END = "<think>", "</think>"
_THOUGHT_KEYS = ("reasoning_content", "reasoning")
_ASSISTANT = ("assistant", "model")
_THOUGHT = re.compile(rf"\s*(?:{BEGIN})?(?P<thought>.*?){END}", re.DOTALL)

Message = Mapping[str, str]


def checked_messages(value: Any) -> tuple[dict[str, str], ...]:
    """Messages with role and content, a thought under a key of its own put into the content.

    Raises:
        UsageError: they are none (what is wrong with which).
    """
    if not isinstance(value, list) or not value:
        raise UsageError("no list of messages")
    return tuple(_message(number, message) for number, message in enumerate(value))


def _message(number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"message {number} has no role")
    content = message.get("content")
    if isinstance(content, list):  # parts, as of several media
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(parts) != len(content):
            raise UsageError(f"message {number} has parts that are no text")
        content = "".join(parts)
    thought = next((message[key] for key in _THOUGHT_KEYS if isinstance(message.get(key), str)), "")
    if not isinstance(content, str) and not thought:
        raise UsageError(f"message {number} ({message['role']}) has no content that is a text")
    text = content if isinstance(content, str) else ""
    if thought.strip() and END not in text:
        text = f"{BEGIN}\n{thought.strip()}\n{END}\n\n{text}"
    return {"role": message["role"], "content": text}


def is_messages(value: Any) -> bool:
    """Whether a field holds a conversation rather than token ids."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def reply_spans(text: str, start: int = 0, whole: str = "answer") -> list[Span]:
    """Thought and answer of a reply that begins at character `start`; without a thought, all of it under `whole`."""
    found = _THOUGHT.match(text)
    if found is None:
        if text.lstrip().startswith(BEGIN):  # it ended before the thought did
            begin = text.index(BEGIN) + len(BEGIN)
            return _without_blanks(text, start, [("thought", begin, len(text))])
        return _without_blanks(text, start, [(whole, 0, len(text))])
    return _without_blanks(text, start, [("thought", *found.span("thought")), ("answer", found.end(), len(text))])


def _without_blanks(text: str, start: int, parts: Sequence[tuple[str, int, int]]) -> list[Span]:
    spans = []
    for name, begin, end in parts:
        piece = text[begin:end]
        if piece.strip():
            left, right = len(piece) - len(piece.lstrip()), len(piece.rstrip())
            spans.append(Span(name, start + begin + left, start + begin + right))
    return spans


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """A conversation as the model reads it, and its spans in characters.

    Raises:
        UsageError: the model has no chat template, or its template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "this model has no chat template, which messages need; take an instruction-tuned model, or give texts: "
            "file.jsonl:prompt+response"
        )
    replied = messages[-1]["role"] in _ASSISTANT
    before = list(messages[:-1]) if replied else list(messages)
    try:
        text = (
            str(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=replied)) if before else ""
        )
    except Exception as error:  # templates raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the model's chat template refuses the messages: {reason}") from error
    spans = _placed(text, before)
    if replied:
        reply = messages[-1]["content"]
        if text.rstrip().endswith(BEGIN):  # some templates begin the thought themselves
            reply = reply.lstrip().removeprefix(BEGIN).lstrip()
            opened = text.rindex(BEGIN)
            spans += reply_spans(text[opened:] + reply, opened)
        else:
            spans += reply_spans(reply, len(text))
        text += reply
    return text, spans


def _placed(text: str, messages: Sequence[Message]) -> list[Span]:
    """Where the contents of messages lie in a rendered text, in order; those that a template changed are left out."""
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    spans, at = [], 0
    for number, message in enumerate(messages):
        content = message["content"].strip()
        start = text.find(content, at) if content else -1
        if start < 0:
            continue
        at = start + len(content)
        role = message["role"]
        name = role if number >= last_user or role in ("system", "developer") else "history"
        spans.append(Span("system" if name == "developer" else name, start, at))
    return spans
