"""What a measurement is about to do, in words: documents that fit, budgets as numbers of tokens, and what would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forward_influence.data.cutting import Prepared
from forward_influence.errors import UsageError
from forward_influence.measurement.request import Request

#: Shorter lengths are offered in whole multiples of this, or as they are where they are below it.
_STEP = 32


@dataclass(frozen=True)
class Lengths:
    """Other lengths of a segment, and how many of the documents are long enough for them."""

    context: int
    continuation: int
    documents: int


def fitting(request: Request, prepared: Prepared, wanted: Sequence[int]) -> list[Lengths]:
    """The longest lengths, in the request's proportion, that so many documents are long enough for.

    Nothing where spans decide, for numbers of documents that fit already or that there are not, and where so short a
    context leaves nothing to choose.

    Args:
        prepared: with all documents looked at, so that every length is known.
        wanted: numbers of documents, ascending.
    """
    if request.spans is not None or prepared.unseen:
        return []
    short = [skipped.length for skipped in prepared.skipped if skipped.length is not None]
    lengths = sorted([*(document.length for document in prepared.documents), *short], reverse=True)
    found: list[Lengths] = []
    for count in wanted:
        if not len(prepared.documents) < count <= len(lengths):
            continue
        share = lengths[count - 1] / request.segments / request.span
        context, continuation = (_rounded(share * n) for n in (request.context, request.continuation))
        if _can_be_measured(request, context, continuation):
            fit = sum(length >= request.segments * (context + continuation) for length in lengths)
            found.append(Lengths(context, continuation, fit))
    return found


def _rounded(tokens: float) -> int:
    """Down to a whole multiple of `_STEP`."""
    return int(tokens // _STEP * _STEP) if tokens >= _STEP else int(tokens)


def _can_be_measured(request: Request, context: int, continuation: int) -> bool:
    try:
        replace(request, context=context, continuation=continuation)
    except UsageError:
        return False
    return True


def documents_in_words(request: Request, prepared: Prepared, others: Sequence[Lengths]) -> str:
    """How many documents are measured, how many were too short, and how many would fit at other lengths."""
    taken = len(prepared.documents)
    if request.spans is not None:
        return f"{taken} of {taken + len(prepared.skipped)} have the spans" + _unseen(prepared)
    short = sum(skipped.length is not None for skipped in prepared.skipped)
    lengths = f"{request.context:,} + {request.continuation:,} tokens"
    if request.segments > 1:
        lengths = f"{request.segments} segments of {lengths}"
    said = f"{taken} of {taken + short} are long enough for {lengths}" if short else f"{taken} with {lengths} each"
    said += "".join(f"; {other.documents} would be for {other.context:,} + {other.continuation:,}" for other in others)
    return said + _unseen(prepared)


def _unseen(prepared: Prepared) -> str:
    return f"; {prepared.unseen:,} more are left out" if prepared.unseen else ""


def budgets_in_words(request: Request) -> list[str]:
    """Each budget as what it comes to: how many tokens are dropped or kept, and of what."""
    if request.is_unplaced:
        return [f"{budget.text}: {_of_spans(budget.is_fraction, request.mode)}" for budget in request.parsed_budgets]
    return [*_of_rules(request), *_of_compressors(request)]


def _of_spans(fraction: bool, mode: str) -> str:
    share = "that share" if fraction else "so many"
    return f"{mode}s {share} of each document's candidates, per layer and head"


def _of_rules(request: Request) -> list[str]:
    if not request.rules:
        return []
    candidates, found = request.candidates, []
    whole = "candidates" if candidates.of_spans else "context tokens"
    for budget in request.parsed_budgets:
        chosen = candidates.to_choose(budget, request.mode)
        if request.mode == "drop":
            of = candidates.count if candidates.of_spans else candidates.n
            said = f"drops {chosen:,} of {candidates.count:,} candidates per layer and head"
            said += f" ({chosen / of:.0%} of the {of:,} {whole})"
        else:
            kept = chosen + candidates.protected
            said = f"keeps {kept:,} of {candidates.n:,} context tokens per layer and head"
            said += f", the {candidates.protected:,} protected ones included"
        found.append(f"{budget.text}: {said}")
    return found


def _of_compressors(request: Request) -> list[str]:
    """What compressors hold after the context, those together that hold equally much."""
    named: dict[str, list[str]] = {}
    for contender in request.contenders:
        held = contender.compressor.kept(request.context, request.context)
        said = f"{contender.budget}: holds {held:,} of {request.context:,} context tokens per layer and head"
        named.setdefault(said, []).append(contender.name)
    return [f"{said} ({', '.join(names)})" for said, names in named.items()]
