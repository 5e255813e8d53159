"""Documents x conditions -> a run folder, a document at a time; a stopped run goes on where it was."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from forward_influence.data.cutting import Cut
from forward_influence.data.spans import described_layout
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.executors import Executor, LocalExecutor, Task
from forward_influence.influence.refusals import check_model
from forward_influence.influence.state_ablation import require_states
from forward_influence.measurement.planned import check_plan
from forward_influence.measurement.request import Request
from forward_influence.measurement.slices import check_slices
from forward_influence.measurement.token_counts import run_tokens
from forward_influence.models.info import Card
from forward_influence.models.loading import Model
from forward_influence.storage.manifest import MANIFEST, circumstances, configuration_hash, differing_fields
from forward_influence.storage.remote import mirror_of
from forward_influence.storage.run import (
    Run,
    create_or_continue,
    held_for_writing,
    open_run,
)
from forward_influence.storage.shards import part_stem
from forward_influence.storage.study_plan import StudyPlan, refuse_other_plan
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.versions import versions


class Stop(Protocol):
    """Decides after each document, in the run's order, whether enough are measured."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Take in a document's rows; what to note about the run if it is enough, else None."""


@dataclass(frozen=True)
class Source:
    """Where a run's documents come from, for its manifest.

    Attributes:
        documents: specifications as typed.
        sample, max_documents: as asked for.
        skipped: (name, reason) of documents that were not measured.
        command: the command that started the run.
        plan: the questions that the run is to answer, made before it.
    """

    documents: tuple[str, ...] = ()
    sample: str | None = None
    max_documents: int | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    command: str = ""
    plan: StudyPlan | None = None


def build_manifest(
    card: Card, documents: Sequence[Cut], request: Request, source: Source, chunk: int, threads: int
) -> dict[str, Any]:
    """Everything that a run's folder says about it beside results."""
    entries = [
        {
            "name": d.document.name,
            "fingerprint": d.document.fingerprint,
            "tokens": d.length,
            "part": part_stem(d.document.name, d.document.fingerprint),
            "segments": len(d.segments),
            **{k: v for k, v in d.document.metadata.items() if k not in ("name", "part")},
            **described_layout(d.layout),
        }
        for d in documents
    ]
    return {
        "configuration": build_configuration(card, documents, request, source),
        "model": card.described(request.longest(documents).span),
        "documents": entries,
        "remarks": list(request.remarks),
        "skipped": [{"name": name, "reason": reason} for name, reason in source.skipped],
        **({} if source.plan is None else {"plan_sha256": source.plan.sha256}),
        **circumstances({"chunk": chunk, "threads": threads, "device": card.device}, source.command),
    }


def request_configuration(spec: str, documents: Sequence[Cut], request: Request, source: Source) -> dict[str, Any]:
    """What decides a run's result columns, as far as it is known before the weights are loaded."""
    return {
        "model": spec,
        "documents": list(source.documents),
        "document_fingerprints": [d.document.fingerprint for d in documents],
        "sample": source.sample,
        "max_documents": source.max_documents,
        **({} if source.plan is None else {"plan": source.plan.content}),
        **request.configuration(),
    }


def model_configuration(card: Card) -> dict[str, Any]:
    """What identifies a model in a configuration."""
    return {
        "model_fingerprint": card.fingerprint,
        "model_weights": card.weights,
        "model_configuration": card.configuration,
    }


def build_configuration(card: Card, documents: Sequence[Cut], request: Request, source: Source) -> dict[str, Any]:
    """What decides a run's result columns; running the same again continues it, anything else is another run."""
    return {
        **model_configuration(card),
        "dtype": card.dtype,
        **request_configuration(card.spec, documents, request, source),
    }


def refuse_other_run(out: str | os.PathLike[str], wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run of another configuration, as far as that shows before the model is loaded.

    Raises:
        UsageError: with the differing fields.
    """
    path, mirror = mirror_of(out)
    if mirror is not None:
        mirror.pull()
    if not (path / MANIFEST).exists():
        return
    run = open_run(out)
    there = run.configuration
    if run.is_abandoned():
        return
    refuse_other_plan(path, there.get("plan"), wanted.get("plan"))
    if fields := differing_fields({key: there.get(key) for key in wanted}, wanted):
        raise UsageError(f"{path} holds a run of another configuration ({'; '.join(fields)}); choose another `out`")


def default_folder(card: Card, documents: Sequence[Cut], request: Request, source: Source) -> Path:
    """runs/MODEL-DOCUMENTS-HASH: the same request always means the same folder, so that it continues by itself.

    Whatever its plan: who changes that after the run began is told, and not given another folder.
    """
    digest = configuration_hash(build_configuration(card, documents, request, replace(source, plan=None)))
    words = [Path(card.spec).name, *(Path(spec).name for spec in source.documents)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:60]
    return Path("runs") / f"{readable}-{digest[:8]}"


def measure(
    model: Model | None,
    documents: Sequence[Cut],
    request: Request,
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    chunk: int = CHUNK,
    executor: Executor | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    controls: bool = True,
    compile: bool = False,
    trace_cache: int = 0,
    threads: int | None = None,
) -> Run:
    """Measure every condition of `request` on every document and write a run folder.

    Running the same again continues it: documents that are measured stay as they are.

    Args:
        model: None where an executor has its own.
        documents: cut to tokens, from `forward_influence.data.prepare`.
        out: the run folder, or an address like s3://bucket/run; made if it is not there.
        chunk: tokens per forward pass; a continued run takes the one it was begun with, and the threads too.
        executor: where documents are measured; default this process.
        stop: ends the run when it has seen enough documents; default: all are measured.
        controls: whether every document's noise floor and positive control are measured.
        compile: compile the divergence: worth it for many documents or large vocabularies; results differ by rounding,
            so that a continued run does as it did when it was begun.
        trace_cache: bytes of traces and baselines to keep on disk between runs; 0 for none.
        threads: of torch; default: as the executor has them, or as torch has them here.

    Returns:
        The run.

    Raises:
        UsageError: the folder holds another configuration; a span beyond the model's positions; a rule that fails.
        ForwardInfluenceError: no document could be measured.
    """
    progress = progress or Silent()
    if executor is None:
        if model is None:
            raise UsageError("nothing to measure with; give a model or an executor")
        executor = LocalExecutor(model)
    card = executor.card() if model is None else Card.of(model)
    longest = request.longest(documents)
    longest.check_positions(card.positions, card.spec)
    check_model(request.effects, request.needs, card.kinds, card.steps)
    if request.states != "keep":
        require_states(card.kinds)
    layers = card.full_layers(longest.span)
    check_slices(request, layers, card.kv_heads)
    threads = threads or getattr(executor, "threads", None) or torch.get_num_threads()
    source = source or Source()
    if source.plan is not None:
        check_plan(source.plan, request, len(documents))
    manifest = build_manifest(card, documents, request, source, chunk, threads)
    manifest["execution"]["compile"] = compile
    by_stem = {part_stem(d.document.name, d.document.fingerprint): d for d in documents}
    with held_for_writing(out):
        run = create_or_continue(out, manifest)
        _check_continued(run, card, progress)
        run.go_on()
        execution = run.manifest["execution"]
        done = {stem for stem in by_stem if _done(run, stem, progress)}
        ending = _Ending(run, list(by_stem), stop)
        if ending.reached(done):
            return run
        pending = {stem: document for stem, document in by_stem.items() if stem not in done}
        tokens = run_tokens(request, pending.values(), layers, card.sizes.itemsize)
        progress.begin(tokens, f"measuring {len(pending)} documents")
        for remark in request.remarks:
            progress.message(remark)
        task = Task(
            request, execution["chunk"], controls, bool(execution.get("compile")), trace_cache, card.fingerprint
        )
        failures: dict[str, str] = {}
        with _threads(execution["threads"]):
            work = executor.run(run, pending, task, progress)
            try:
                for stem, error in work:
                    done.add(stem)
                    if error is not None:
                        failures[stem] = error
                        progress.message(f"{by_stem[stem].document.name} could not be measured: {error}")
                    if ending.reached(done):
                        break
            finally:
                if hasattr(work, "close"):
                    work.close()  # type: ignore[attr-defined]
                progress.end()
    if failures and len(failures) == len(by_stem):
        raise ForwardInfluenceError(f"no document could be measured; the first: {next(iter(failures.values()))}")
    if failures:
        names = ", ".join(by_stem[s].document.name for s in failures)
        progress.message(f"{len(failures)} of {len(by_stem)} documents could not be measured: {names}")
    return run


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many of torch's threads: results depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Ending:
    """Asks whether enough documents are measured, in the run's order, whatever order they are measured in."""

    def __init__(self, run: Run, order: Sequence[str], stop: Stop | None) -> None:
        self._run, self._order, self._stop, self._asked = run, order, stop, 0

    def reached(self, done: set[str]) -> bool:
        """Whether the documents that are done up to the first that is not are enough; noted in the run if so."""
        if self._stop is None:
            return False
        while self._asked < len(self._order) and (stem := self._order[self._asked]) in done:
            self._asked += 1
            part = self._run.part(stem)
            found = None if part is None else self._stop.add(part.rows)
            if found is not None:
                self._run.write_stopped({**found, "documents": self._asked})
                return True
        return False


def _check_continued(run: Run, card: Card, progress: Progress) -> None:
    """A run goes on where it was begun; under other versions it says so.

    Raises:
        UsageError: it was begun on another kind of device.
    """
    begun = run.manifest["execution"]["device"]
    if torch.device(begun).type != torch.device(card.device).type:
        raise UsageError(
            f"{run.where} was begun on {begun}, whose rounding is another than {card.device}'s; continue it there, or "
            "choose another `out`"
        )
    before, now = run.manifest.get("versions", {}), versions()
    changed = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed and any(run.part_path(d["part"]).exists() for d in run.documents):
        progress.message(f"{run.where} was begun with {'; '.join(changed)}: its parts may differ by rounding")


def _done(run: Run, stem: str, progress: Progress) -> bool:
    if run.is_measured(stem):
        return True
    if run.part_path(stem).exists():
        progress.message(f"part {stem} does not read back and is measured again")
    return False
