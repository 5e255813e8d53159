"""Conversations, fields put together and token ids: their spans, in the words of chat templates of several models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_files import tiny_tokenizer

from forward_influence.data.chat import checked_messages, reply_spans
from forward_influence.data.cutting import encoded, prepare
from forward_influence.data.documents import load_documents
from forward_influence.data.spans import SpanChoice
from forward_influence.errors import UsageError
from forward_influence.utils.tokenization import encode

#: Templates in the manner of real models; each ends a message in its own way, and two of them do something to thoughts.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "drops thoughts of earlier replies": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "begins the thought": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    ),
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "<think>Easy.</think>It is 4."},
    {"role": "user", "content": "And 3 + 4?"},
    {"role": "assistant", "content": "<think>\nThree and four\nare seven.\n</think>\n\nIt is 7, then."},
]
PARTS = [
    ("system", "Be brief."),
    ("history", "What is 2 + 2?"),
    ("user", "And 3 + 4?"),
    ("thought", "Three and four\nare seven."),
    ("answer", "It is 7, then."),
]


def tokenizer(template: str | None = "chatml", begin: bool = False) -> Any:
    made = tiny_tokenizer(begin)
    if template is not None:
        made.chat_template = TEMPLATES[template]
    return made


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def parts(document: Any, with_tokenizer: Any) -> list[tuple[str, str]]:
    """Names and texts of a document's spans, decoded from its tokens."""
    made = encoded(document, with_tokenizer)
    return [(span.name, with_tokenizer.decode(made.tokens[span.start : span.end])) for span in made.spans]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_spans_of_a_conversation(template: str, tmp_path: Path) -> None:
    [document] = load_documents(lines(tmp_path / "log.jsonl", {"messages": MESSAGES}) + ":messages")
    found = parts(document, tokenizer(template))
    assert [part for part in found if part[0] != "history" or "2 + 2" in part[1]] == PARTS
    whole = tokenizer(template).decode(encoded(document, tokenizer(template)).tokens)
    assert whole.endswith("It is 7, then.")
    assert whole.count("<think>") == (1 if "thought" in template else 2)


def test_a_conversation_reads_as_when_it_was_generated(tmp_path: Path) -> None:
    """The template's prompt, then the reply; no special token is put before it a second time."""
    [document] = load_documents(lines(tmp_path / "log.jsonl", {"messages": MESSAGES}) + ":messages")
    made = tokenizer("llama 3", begin=True)
    prompt = made.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True, tokenize=False)
    assert encoded(document, made).tokens == encode(made, prompt + MESSAGES[-1]["content"])
    assert encoded(document, made).leading == []


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_a_thought_under_a_key_of_its_own_is_a_thought(key: str, tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "It is 7, then.", key: "Three and four\nare seven."}
    parted = [*MESSAGES[:-1], reply]
    documents = load_documents(lines(tmp_path / "log.jsonl", {"m": MESSAGES}, {"m": parted}) + ":m")
    assert documents[0].fingerprint == documents[1].fingerprint
    assert parts(documents[1], tokenizer()) == parts(documents[0], tokenizer())


def test_conversations_without_a_thought_or_a_reply(tmp_path: Path) -> None:
    plain = [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}, {"role": "assistant", "content": "Hello."}]
    cut_off = [plain[0], {"role": "assistant", "content": "<think>Let me see"}]
    documents = load_documents(lines(tmp_path / "log.jsonl", {"m": plain}, {"m": plain[:1]}, {"m": cut_off}) + ":m")
    found = [parts(document, tokenizer()) for document in documents]
    assert found == [
        [("user", "Hi."), ("answer", "Hello.")],
        [("user", "Hi.")],
        [("user", "Hi."), ("thought", "Let me see")],
    ]


def test_fields_put_together(tmp_path: Path) -> None:
    record = {"q": {"text": "Two plus two?"}, "reply": "<think>Count.</think> Four it is.", "plain": "No thought."}
    path = lines(tmp_path / "x.jsonl", record)
    [thinking] = load_documents(f"{path}:q.text+reply")
    assert thinking.text == "Two plus two?\n\n<think>Count.</think> Four it is."
    assert parts(thinking, tokenizer(None)) == [
        ("text", "Two plus two?"),
        ("thought", "Count."),
        ("answer", "Four it is."),
    ]
    [plain] = load_documents(f"{path}:q.text+plain")
    assert [span.name for span in plain.spans] == ["text", "plain"]
    begun = tokenizer(None, begin=True)
    cut = prepare([plain], begun, 0, 0, spans=SpanChoice.parse("plain", "prompt")).documents[0]
    assert cut.segments[0].tolist() == [1, *encode(begun, plain.text)]
    measured = cut.layout.spans[1]
    assert begun.decode(cut.segments[0][measured.start : measured.end]) == "No thought."


def test_tokens_that_lie_across_an_end_belong_to_the_first_span(tmp_path: Path) -> None:
    """ "the" is one token here: of "t" + "he" it belongs to neither more than to the other."""
    [document] = load_documents(lines(tmp_path / "x.jsonl", {"a": "no t", "b": " he"}) + ":a+b")
    found = encoded(document, tokenizer(None)).spans
    assert found[0].end <= found[1].start


def test_token_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    [document] = load_documents(lines(tmp_path / "x.jsonl", {"ids": list(range(10, 40))}) + ":ids")
    cut = prepare([document], tokenizer(None, begin=True), 20, 10).documents[0]
    assert cut.segments[0].tolist() == list(range(10, 40))
    with pytest.raises(UsageError, match="it has none"):
        prepare([document], tokenizer(), 0, 0, spans=SpanChoice.parse("answer"))


def test_parquet_is_read_as_lines_are(tmp_path: Path) -> None:
    import pandas as pd

    records = [{"messages": MESSAGES, "answer": {"text": "one"}, "id": "a"}, {"messages": MESSAGES[:2], "answer": None}]
    pd.DataFrame(records).to_parquet(tmp_path / "log.parquet")
    spec = lines(tmp_path / "log.jsonl", *records)
    here, there = (load_documents(f"{path}:messages") for path in (tmp_path / "log.parquet", spec))
    assert [(d.name, d.fingerprint) for d in here] == [(d.name, d.fingerprint) for d in there]
    with pytest.raises(
        UsageError, match=r"log.parquet:1 has no field 'messags' \(did you mean 'messages'\?\); its fields: messages"
    ):
        load_documents(f"{tmp_path / 'log.parquet'}:messags")
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(UsageError, match=r"no.parquet is no parquet file"):
        load_documents(f"{tmp_path / 'no.parquet'}:messages")
    with pytest.raises(UsageError, match=r"say which field of log.parquet holds the text"):
        load_documents(str(tmp_path / "log.parquet"))


@pytest.mark.parametrize(
    ("record", "field", "match"),
    [
        ({"a": {"b": 1}}, "a.c", r"x.jsonl:1, 'a' has no field 'c'; its fields: b"),
        ({"a": "t"}, "a.b", r"x.jsonl:1, 'a' has no field 'b'"),
        ({"prompt": "p"}, "prompt+response", r"x.jsonl:1 has no field 'response'; its fields: prompt"),
        ({"prompt": "p", "n": 3}, "prompt+n", "'n' is a int; fields that are put together hold texts"),
        ({"m": [{"content": "x"}]}, "m", "message 0 has no role"),
        ({"m": [{"role": "user", "content": None}]}, "m", r"message 0 \(user\) has no content"),
        ({"m": [{"role": "user", "content": [{"image": 1}]}]}, "m", "message 0 has parts that are no text"),
        ({"m": [1, "x"]}, "m", "is a list, not a text, a list of messages or of token ids"),
    ],
)
def test_records_that_hold_no_document_say_where_and_why(record: Any, field: str, match: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", record)
    with pytest.raises(UsageError, match=match) as caught:
        load_documents(f"{path}:{field}")
    assert "\n" not in str(caught.value)


def test_models_without_a_template_or_with_one_that_refuses(tmp_path: Path) -> None:
    [document] = load_documents(lines(tmp_path / "log.jsonl", {"m": MESSAGES}) + ":m")
    with pytest.raises(UsageError, match="this model has no chat template"):
        encoded(document, tokenizer(None))
    strict = tokenizer()
    strict.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UsageError, match="chat template refuses the messages: System role not supported"):
        encoded(document, strict)


def test_long_documents_and_missing_spans_are_skipped_by_name(tmp_path: Path) -> None:
    long = [*MESSAGES[:-1], {"role": "assistant", "content": "<think>" + "much " * 99 + "</think>Well."}]
    spec = lines(tmp_path / "log.jsonl", {"m": MESSAGES}, {"m": MESSAGES[:2]}, {"m": long}) + ":m"
    choice = SpanChoice.parse("answer", "prompt+thought", "thought")
    found = prepare(load_documents(spec), tokenizer(), 0, 0, spans=choice, longest=300)
    assert [cut.document.name for cut in found.documents] == ["log-1"]
    assert [skipped.name for skipped in found.skipped] == ["log-2", "log-3"]
    assert found.skipped[0].reason == "no span 'answer' (`measure_on`); it has system, user"
    assert found.skipped[1].reason.endswith("but the model was made for 300 positions")


def test_replies() -> None:
    assert reply_spans("Just so.", 5)[0].start == 5
    assert [s.name for s in reply_spans("<think>\n\n</think>\n\nYes.")] == ["answer"]
    with pytest.raises(UsageError, match="no list of messages"):
        checked_messages([])


def test_the_traces_that_come_with_the_package() -> None:
    traces = load_documents("reasoning-traces")
    assert len({trace.fingerprint for trace in traces}) == len(traces) == 24
    assert {trace.metadata["correct"] for trace in traces} == {"yes", "no"}
    for trace in traces:
        assert [span.name for span in encoded(trace, tokenizer()).spans] == ["system", "user", "thought", "answer"]
