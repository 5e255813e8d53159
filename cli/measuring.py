"""What `measure` does once its options are read: documents, model, run, table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from forward_influence.cli.beforehand import say, say_how_long, say_what_is_asked, say_what_would_do
from forward_influence.cli.progress import TerminalProgress, waiting
from forward_influence.cli.summary import as_values, show_summary
from forward_influence.cli.tables import as_json
from forward_influence.data.asked import Asked
from forward_influence.errors import UsageError

if TYPE_CHECKING:
    from forward_influence.cli.executing import Loading
    from forward_influence.cli.options import Given
    from forward_influence.data.cutting import Prepared
    from forward_influence.measurement.request import Request
    from forward_influence.models.info import Card
    from forward_influence.models.resolving import Resolved
    from forward_influence.storage.run import Run
    from forward_influence.storage.study_plan import StudyPlan


def measure_documents(
    request: Request,
    asked: Asked,
    out: str | None,
    until: float | None,
    loading: Loading,
    given: Given,
    plan: StudyPlan | None = None,
    json: bool = False,
) -> None:
    """Measure a request on documents, and show the table, or write it as JSON; other arguments as of `run_of`."""
    run = run_of(request, asked, out, until, loading, given, plan)
    _show(run, json)
    if request.verify:
        typer.echo(_verified(run), err=json)
    if until is not None and run.stopped is None and not json:
        typer.echo(f"until: {_not_enough(run, until)}; there are no more documents")
    if len(run.measured()) < len(run.documents):
        raise typer.Exit(1)


def run_of(
    request: Request,
    asked: Asked,
    out: str | None,
    until: float | None,
    loading: Loading,
    given: Given | None = None,
    plan: StudyPlan | None = None,
) -> Run:
    """The run of a request on documents; what it comes to is said before a model is loaded.

    Args:
        asked: the documents, as typed.
        out: the run folder or address; None for the default one.
        until: stop when every far interval is this narrow.
        given: the command's options, for the manifest, and for a better command where there are too few documents.
        plan: the questions that the run is to answer.
    """
    from forward_influence.analysis.statistics.stopping import Until
    from forward_influence.execution.run import (
        Source,
        build_configuration,
        default_folder,
        measure,
        refuse_other_run,
        request_configuration,
    )
    from forward_influence.measurement.memory import choose_chunk
    from forward_influence.measurement.planned import check_plan

    stop = None if until is None else Until(until)
    with waiting("reading documents"):
        resolved = loading.resolved()
        if request.spans is None:
            request.check_positions(resolved.positions, resolved.spec)
        prepared = cut_documents(asked, request.seed, resolved, request)
    _tell_skipped(prepared)
    longest = request.longest(prepared.documents)
    skipped = tuple((s.name, s.reason) for s in prepared.skipped)
    command = "" if given is None else given.command
    source = Source(asked.documents, asked.sample, asked.max_documents, skipped, command, plan)
    if plan is not None:
        check_plan(plan, request, len(prepared.documents))
    if out is not None:
        refuse_other_run(out, request_configuration(resolved.spec, prepared.documents, request, source))
    say_what_is_asked(request, prepared)
    if given is not None:

        def prepare(most: int) -> Prepared:
            return cut_documents(replace(asked, max_documents=most), request.seed, resolved, request)

        say_what_would_do(request, prepared, prepare, given.instead)
    model, card = loading.load(resolved)
    chunk = choose_chunk(card.sizes, card.free_bytes, longest, loading.effort.memory_limit, loading.effort.chunk)
    where = out or str(default_folder(card, prepared.documents, request, source))
    begun = _begun(where, build_configuration(card, prepared.documents, request, source))
    left = len(prepared.documents) - (0 if begun is None else len(begun.measured()))
    if begun is not None and left and loading.effort.memory_limit is not None:
        _check_memory(begun, card, longest, loading.effort.memory_limit)
    if left == 0:
        say("time", "none: all of it was measured before")
    elif loading.executor is None:
        say_how_long(card.sizes, longest, left, chunk)
    return measure(
        model,
        prepared.documents,
        request,
        where,
        source=source,
        chunk=chunk,
        executor=loading.executor,
        progress=TerminalProgress(),
        stop=stop,
        compile=loading.effort.compile,
        trace_cache=loading.effort.cache_bytes(),
    )


def planned(path: str | None, asked: Asked, until: float | None) -> tuple[StudyPlan | None, Asked]:
    """The plan in a file, and the documents as many as it asks for.

    Raises:
        UsageError: it is no plan, or another number of documents is asked for.
    """
    if path is None:
        return None, asked
    from forward_influence.storage.study_plan import read_plan

    plan = read_plan(path)
    if until is not None:
        raise UsageError(f"`until` and {path} both say on how many documents a run ends; leave out one of them")
    if asked.max_documents is not None and asked.max_documents != plan.documents:
        raise UsageError(
            f"{path} asks for {plan.documents} documents, and `max_documents` is {asked.max_documents}; leave it out"
        )
    return plan, replace(asked, max_documents=plan.documents)


def add_rules(where: str, selectors: list[str], compressors: list[str], loading: Loading, json: bool = False) -> None:
    """Add rules to a run, and show its table, or write it as JSON."""

    from forward_influence.execution.extend import add, request_of
    from forward_influence.storage.run import open_run

    run = open_run(where)
    configuration = run.configuration
    request = request_of(run, selectors, compressors)
    loading = loading.of_model(configuration["model"], configuration["dtype"])
    resolved = loading.resolved()
    asked = Asked(tuple(configuration["documents"]), configuration.get("max_documents"), configuration.get("sample"))
    prepared = prepare_documents(asked, request.seed, resolved, request)
    documents = prepared.documents[: len(run.documents)]  # of a run that stopped, those up to there
    model, card = loading.load(resolved)
    if loading.effort.memory_limit is not None:
        _check_memory(run, card, request.longest(documents), loading.effort.memory_limit)
    grown = add(
        model,
        run,
        documents,
        selectors,
        compressors=compressors,
        executor=loading.executor,
        progress=TerminalProgress(),
        trace_cache=loading.effort.cache_bytes(),
    )
    _show(grown, json)


def _begun(where: str, configuration: Mapping[str, Any]) -> Run | None:
    """The run of this configuration that lies there, whole or to be continued; None where none does."""
    from forward_influence.storage.manifest import differences
    from forward_influence.storage.run import open_run
    from forward_influence.utils.versions import versions

    try:
        run = open_run(where)
    except UsageError:  # none, or `measure` says what is wrong with it
        return None
    return None if differences(run.manifest, {"configuration": configuration, "versions": versions()}) else run


def _check_memory(run: Run, card: Card, request: Request, limit: str) -> None:
    """Refuse what the chunk that a run was begun with, which it keeps, would take beyond a limit.

    Raises:
        UsageError: with the formula's figure.
    """
    from forward_influence.measurement.memory import peak_of_request
    from forward_influence.utils.memory import in_words, parse_bytes

    allowed, chunk = parse_bytes(limit), run.manifest["execution"]["chunk"]
    peak = peak_of_request(card.sizes, request, chunk)
    if peak.total > allowed:
        raise UsageError(
            f"{run.where} was begun with a chunk of {chunk} tokens, which it keeps: this needs {in_words(peak.total)} "
            f"above the model ({peak.described()}), but {in_words(allowed)} are allowed; raise --memory-limit, or "
            "measure anew with another --out"
        )


def _show(run: Run, json: bool) -> None:
    if json:
        typer.echo(as_json(as_values(run)), nl=False)
        return
    show_summary(run)
    if run.stopped is not None:
        typer.echo(f"until: {_enough(run, run.stopped)}")
    typer.echo(f"run: {run.where}")
    typer.echo(f"picture: forward-influence plot {run.where}")


def _not_enough(run: Run, until: float) -> str:
    """Why `--until` did not end a run."""
    from forward_influence.analysis.statistics.stopping import FEWEST

    if len(run.measured()) < FEWEST:
        return f"a run is ended from its {FEWEST}th document on, this one has {len(run.measured())}"
    return f"not every far interval is within {until:g} yet"


def _enough(run: Run, stopped: Mapping[str, Any]) -> str:
    """After how many documents a run was ended, and whether that is enough for all its rules: some may be added since.

    Args:
        stopped: what the run notes about it.
    """
    from forward_influence.analysis.statistics.stopping import widths_of

    parts = (run.part(document["part"]) for document in run.documents)
    widths = widths_of((part.rows for part in parts if part is not None), stopped["level"])
    wide = {name: width for name, width in widths.items() if width > stopped["until"]}
    if wide:
        named = ", ".join(f"{name} ({_plus_minus(width)})" for name, width in wide.items())
        return (
            f"{stopped['documents']} documents were enough for the rules that the run was ended with; not within "
            f"{_plus_minus(stopped['until'])} at {stopped['level']:.0%}: {named}"
        )
    widest = _plus_minus(max(widths.values(), default=0.0))
    return (
        f"{stopped['documents']} documents are enough; the widest far interval is {widest} at {stopped['level']:.0%}, "
        "to cover 95% however often one looks"
    )


def _plus_minus(width: float) -> str:
    return f"+-{width:.1%}" if math.isfinite(width) else "no interval"


def _verified(run: Run) -> str:
    """What --verify found, in a line."""
    found = run.verified()
    if not found:
        return "verified: nothing, for every document was measured before; choose another --out to verify"
    largest = max(check["largest_difference"] for check in found)
    share = max(check["of_what_rounding_explains"] for check in found)
    return (
        f"verified: {len(found)} conditions (one per document and segment) against a masked full pass; largest "
        f"difference {largest:.1e} nats, {share:.2g} of what rounding explains"
    )


def prepare_documents(asked: Asked, seed: int, resolved: Resolved, request: Request) -> Prepared:
    """Documents in a seeded order, cut to tokens, and a word on those that are skipped."""
    prepared = cut_documents(asked, seed, resolved, request)
    _tell_skipped(prepared)
    return prepared


def cut_documents(asked: Asked, seed: int, resolved: Resolved, request: Request) -> Prepared:
    """Documents in a seeded order, cut to tokens; a generated continuation needs one token of text at most."""
    from forward_influence.data.cutting import prepare
    from forward_influence.data.documents import load_documents, sample_documents
    from forward_influence.measurement.placing import placeable
    from forward_influence.models.resolving import load_tokenizer

    ordered = sample_documents(load_documents(list(asked.documents)), asked.sample, seed)
    follows = request.continuation if request.continuation_from == "text" else 1
    return placeable(
        request,
        prepare(
            ordered,
            load_tokenizer(resolved),
            request.context,
            follows,
            request.segments,
            asked.max_documents,
            spans=request.spans,
            longest=resolved.positions,
        ),
    )


def _tell_skipped(prepared: Prepared) -> None:
    for skipped in prepared.skipped[:5]:
        typer.echo(f"skipped {skipped.name}: {skipped.reason}", err=True)
    if len(prepared.skipped) > 5:
        typer.echo(f"skipped {len(prepared.skipped) - 5} more; the manifest names them", err=True)
