"""Documents from the fields of a record: a text, several texts, a conversation, or token ids.

field          a text; or a list of messages, or of token ids
a.b.c          a field of a field
prompt+reply   texts put together, each a span of its name; <think> makes thought and answer of it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from forward_influence.data.chat import checked_messages, is_messages, reply_spans
from forward_influence.data.document import Document, make_document, safe
from forward_influence.data.spans import Span
from forward_influence.errors import UsageError, did_you_mean

#: Fields of a record that are kept beside its text.
_KEPT = ("author", "year", "date", "title", "id", "source")
_BETWEEN = "\n\n"


def document_of(record: Mapping[str, Any], field: str, where: str, name: str) -> Document:
    """The document that a field, or several joined by "+", hold.

    Args:
        where: file and line, for messages.

    Raises:
        UsageError: no such field (with those that there are), or something in it that is no document.
    """
    names = [field] if field in record or "+" not in field else field.split("+")
    values = [_value(record, one, where) for one in names]
    kept = {key: record[key] for key in _KEPT if key not in names and isinstance(record.get(key), str | int)}
    metadata = {key: safe(value) if isinstance(value, str) else value for key, value in kept.items()}
    try:
        if len(names) > 1:
            return _joined(names, values, name, metadata)
        return _single(values[0], names[0], name, metadata)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _value(record: Mapping[str, Any], field: str, where: str) -> Any:
    """A field, or with points in its name a field of a field."""
    if field in record:
        return record[field]
    value: Any = record
    for i, step in enumerate(parts := field.split(".")):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping) and step in value:
            value = value[step]
        else:
            inside = f"{where}, {safe('.'.join(parts[:i]))!r}" if i else where
            known = [safe(str(key)) for key in value][:20] if isinstance(value, Mapping) else []
            fields = f"; its fields: {', '.join(known)}" if known else ""
            raise UsageError(f"{inside} has no field {safe(step)!r}{did_you_mean(step, known)}{fields}")
    return value


def _single(value: Any, field: str, name: str, metadata: Mapping[str, Any]) -> Document:
    if is_messages(value):
        messages = checked_messages(value)
        text = _BETWEEN.join(message["content"] for message in messages)
        document = make_document(name, text, metadata, identity=json.dumps(messages, sort_keys=True))
        return replace(document, messages=messages)
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        document = make_document(name, "", metadata, identity=json.dumps(value))
        return replace(document, tokens=tuple(value))
    if not isinstance(value, str):
        raise UsageError(f"{safe(field)!r} is a {type(value).__name__}, not a text, a list of messages or of token ids")
    return make_document(name, value, metadata)


def _joined(names: list[str], values: list[Any], name: str, metadata: Mapping[str, Any]) -> Document:
    text = ""
    spans: list[Span] = []
    for field, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise UsageError(f"{safe(field)!r} is a {type(value).__name__}; fields that are put together hold texts")
        piece = value.replace("\r\n", "\n")
        if text and piece and not text[-1].isspace() and not piece[0].isspace():
            text += _BETWEEN
        spans += reply_spans(piece, len(text), whole=field.rpartition(".")[2])
        text += piece
    return replace(make_document(name, text, metadata), spans=tuple(spans))
