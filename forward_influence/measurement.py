"""Documents x conditions -> a run folder, a document at a time; a stopped run goes on where it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forward_influence.conditions import check_slices, document_tokens
from forward_influence.document import CutDocument
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.executors import Executor, LocalExecutor
from forward_influence.models import Model
from forward_influence.progress import Progress, Silent
from forward_influence.request import Request
from forward_influence.runs import (
    MANIFEST,
    Run,
    configuration_hash,
    create_or_continue,
    differing_fields,
    open_run,
    part_stem,
)

DEFAULT_CHUNK = 512


@dataclass(frozen=True)
class Source:
    """Where a run's documents come from, for its manifest.

    Attributes:
        documents: specifications as typed.
        sample, max_documents: as asked for.
        skipped: (name, reason) of documents that were not measured.
        command: the command that started the run.
    """

    documents: tuple[str, ...] = ()
    sample: str | None = None
    max_documents: int | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    command: str = ""


def build_manifest(
    model: Model, documents: Sequence[CutDocument], request: Request, source: Source, chunk: int, threads: int
) -> dict[str, Any]:
    """Everything that a run's folder says about it beside results."""
    entries = [
        {
            "name": d.document.name,
            "fingerprint": d.document.fingerprint,
            "tokens": getattr(d, "length", len(d.segments[0])),
            "part": part_stem(d.document.name, d.document.fingerprint),
            "segments": len(d.segments),
            **{k: v for k, v in getattr(d.document, "metadata", {}).items() if k not in ("name", "part")},
        }
        for d in documents
    ]
    return {
        "configuration": build_configuration(model, documents, request, source),
        "model": describe_model(model, request.span),
        "documents": entries,
        "remarks": list(request.remarks),
        "skipped": [{"name": name, "reason": reason} for name, reason in source.skipped],
        "versions": versions(),
        "execution": {"chunk": chunk, "threads": threads, "device": str(model.device)},
        "command": source.command or shlex.join(["forward-influence", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def request_configuration(
    spec: str, documents: Sequence[CutDocument], request: Request, source: Source
) -> dict[str, Any]:
    """What decides a run's result columns, as far as it is known before the weights are loaded."""
    return {
        "model": spec,
        "documents": list(source.documents),
        "document_fingerprints": [d.document.fingerprint for d in documents],
        "sample": source.sample,
        "max_documents": source.max_documents,
        **request.configuration(),
    }


def build_configuration(
    model: Model, documents: Sequence[CutDocument], request: Request, source: Source
) -> dict[str, Any]:
    """What decides a run's result columns; running the same again continues it, anything else is another run."""
    return {
        "model_fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        **request_configuration(model.spec, documents, request, source),
    }


def refuse_other_run(out: str | os.PathLike[str], wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run of another configuration, as far as that shows before the model is loaded.

    Raises:
        UsageError: with the differing fields.
    """
    path = Path(out)
    if not (path / MANIFEST).exists():
        return
    run = open_run(path)
    there = run.configuration
    if run.is_abandoned():
        return
    if fields := differing_fields({key: there.get(key) for key in wanted}, wanted):
        raise UsageError(f"{path} holds a run of another configuration ({'; '.join(fields)}); choose another --out")


def default_folder(model: Model, documents: Sequence[CutDocument], request: Request, source: Source) -> Path:
    """runs/MODEL-DOCUMENTS-HASH: the same request always means the same folder, so that it continues by itself."""
    digest = configuration_hash(build_configuration(model, documents, request, source))
    words = [Path(model.spec).name, *(Path(spec).name for spec in source.documents)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:60]
    return Path("runs") / f"{readable}-{digest[:8]}"


def describe_model(model: Model, span: int) -> dict[str, Any]:
    """What a manifest says about a model."""
    anatomy = model.anatomy
    special = {}
    if model.tokenizer is not None:
        special = {k: str(v) for k, v in model.tokenizer.special_tokens_map.items()}
    return {
        "spec": model.spec,
        "class": type(model.model).__name__,
        "layers": anatomy.layers,
        "full_layers": list(anatomy.full_layers(span)),
        "windows": list(anatomy.windows),
        "query_heads": anatomy.query_heads,
        "kv_heads": anatomy.kv_heads,
        "head_size": anatomy.head_size,
        "hidden": anatomy.hidden,
        "positions": anatomy.positions,
        "vocabulary": anatomy.vocabulary,
        "head": type(anatomy.head).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "fingerprint": model.fingerprint,
        "provenance": dict(model.provenance),
        "tokenizer": type(model.tokenizer).__name__ if model.tokenizer is not None else None,
        "special_tokens": special,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import numpy
    import transformers

    from forward_influence import __version__

    return {
        "forward_influence": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }


def measure(
    model: Model,
    documents: Sequence[CutDocument],
    request: Request,
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    chunk: int = DEFAULT_CHUNK,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Run:
    """Measure every condition of `request` on every document and write a run folder.

    Running the same again continues it: documents that are measured stay as they are.

    Args:
        documents: cut to tokens, from `forward_influence.data.prepare`.
        out: the run folder; made if it is not there.
        chunk: tokens per forward pass; a continued run takes the one it was begun with, and the threads too.
        executor: where documents are measured; default this process.

    Returns:
        The run.

    Raises:
        UsageError: the folder holds another configuration; a span beyond the model's positions; a rule that fails.
        ForwardInfluenceError: no document could be measured.
    """
    progress = progress or Silent()
    request.check_positions(model.anatomy.positions, model.spec)
    layers = model.anatomy.full_layers(request.span)
    check_slices(request, layers, model.anatomy.kv_heads)
    manifest = build_manifest(model, documents, request, source or Source(), chunk, torch.get_num_threads())
    run = create_or_continue(out, manifest)
    execution = run.manifest["execution"]
    if executor is None and torch.device(execution["device"]).type != model.device.type:
        raise UsageError(
            f"{run.folder} was begun on {execution['device']}, whose rounding is another than {model.device}'s; "
            "continue it there, or choose another --out"
        )
    by_stem = {part_stem(d.document.name, d.document.fingerprint): d for d in documents}
    with run.locked():
        pending = [stem for stem in by_stem if not _done(run, stem, progress)]
        tokens = len(pending) * document_tokens(request, layers)
        progress.begin(tokens, f"measuring {len(pending)} documents")
        for remark in request.remarks:
            progress.message(remark)
        threads = torch.get_num_threads()
        torch.set_num_threads(execution["threads"])
        failures: dict[str, str] = {}
        try:
            work = executor or LocalExecutor(model)
            for stem, error in work.run(run, {s: by_stem[s] for s in pending}, request, execution["chunk"], progress):
                if error is not None:
                    failures[stem] = error
                    progress.message(f"{by_stem[stem].document.name} could not be measured: {error}")
        finally:
            torch.set_num_threads(threads)
            progress.end()
    if failures and len(failures) == len(by_stem):
        raise ForwardInfluenceError(f"no document could be measured; the first: {next(iter(failures.values()))}")
    if failures:
        names = ", ".join(by_stem[s].document.name for s in failures)
        progress.message(f"{len(failures)} of {len(by_stem)} documents could not be measured: {names}")
    return run


def _done(run: Run, stem: str, progress: Progress) -> bool:
    if run.is_measured(stem):
        return True
    if Path(run.part_path(stem)).exists():
        progress.message(f"part {stem} does not read back and is measured again")
    return False
