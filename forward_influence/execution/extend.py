"""Adding rules to a run that is measured: only they are measured, and the run becomes what it would be with them.

The new rules are measured as a run of their own in RUN/.adding, which continues after any stop like any other, and
gives way when other rules are added first; then every part is put together anew there, and only when all are ready do
they take the old ones' place, the manifest last. A run stays what it was until that moment; one that was killed during
it is finished by the next process that holds it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from forward_influence.data.cutting import Cut
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.executors import Executor
from forward_influence.execution.run import Source, build_configuration, measure, model_configuration
from forward_influence.measurement.request import Request
from forward_influence.models.info import Card
from forward_influence.models.loading import Model
from forward_influence.storage.manifest import MANIFEST, configuration_hash, differences, encode_manifest
from forward_influence.storage.run import (
    ADDING,
    READY,
    Run,
    finish_adding,
    held_for_writing,
    open_run,
)
from forward_influence.utils.files import storing, write_whole
from forward_influence.utils.progress import Progress, Silent
from forward_influence.utils.versions import library_versions


def request_of(run: Run, selectors: Sequence[str], compressors: Sequence[str] = ()) -> Request:
    """The request of a run for other rules: everything else as it was.

    Raises:
        UsageError: a rule that observes from more tokens than the run protects, so that its candidates would differ.
    """
    configuration = run.configuration
    names = Request.choices()
    choices: dict[str, Any] = {name: value for name, value in configuration.items() if name in names}
    choices |= {"selectors": tuple(selectors), "compressors": tuple(compressors)}
    if not compressors:
        choices.pop("every", None)
        choices.pop("match_held", None)
    if selectors and configuration.get("match_held") and not configuration.get("budgets"):
        raise UsageError(
            f"{run.where} measures compressors that hold equally much (`match_held`) and has no budget, which rules "
            "need; measure them with another `out`"
        )
    choices = {name: tuple(value) if isinstance(value, list) else value for name, value in choices.items()}
    request = Request(**choices)
    if request.protected_last != configuration["protect_last"]:
        raise UsageError(
            f"{run.where} protects the last {configuration['protect_last']} tokens, and a new rule observes from "
            f"{request.protected_last}: candidates would differ; measure anew with `protect_last` "
            f"{request.protected_last}"
        )
    return request


def add(
    model: Model | None,
    run: Run,
    documents: Sequence[Cut],
    selectors: Sequence[str],
    *,
    compressors: Sequence[str] = (),
    executor: Executor | None = None,
    progress: Progress | None = None,
    trace_cache: int = 0,
) -> Run:
    """Measure more rules on a run's documents, under its conditions, and make them part of it.

    With the traces and baselines that were kept when the run was measured, this costs one pass over the continuation
    per document and condition.

    Args:
        documents: the run's own, cut as it cut them.
        selectors, compressors: the new ones, as typed.

    Returns:
        The run with the new rules.

    Raises:
        UsageError: other documents or weights than the run's, a rule that it has already, or one that needs other
            candidates.
        ForwardInfluenceError: the run is not finished, or a document could not be measured.
    """
    progress = progress or Silent()
    with held_for_writing(run.folder):
        run = open_run(run.where)  # as it is now that it is held
        _check(run, documents, selectors, compressors)
        request = request_of(run, selectors, compressors)
        card = _card(model, executor)
        now = {"configuration": model_configuration(card), "versions": library_versions()}
        if fields := differences(_of_model(run.manifest), now):
            raise UsageError(
                f"{run.where} was measured with another {run.configuration['model']} ({'; '.join(fields)}); nothing is "
                "added; bring that back (or name its `revision`), or measure anew"
            )
        source = Source(documents=tuple(run.configuration["documents"]), command=run.manifest.get("command", ""))
        _discard_others(run.folder / ADDING, card, build_configuration(card, documents, request, source))
        staged = measure(
            model,
            documents,
            request,
            run.folder / ADDING / "run",
            source=source,
            chunk=run.manifest["execution"]["chunk"],
            threads=run.manifest["execution"]["threads"],
            executor=executor,
            progress=progress,
            controls=False,
            compile=bool(run.manifest["execution"].get("compile")),
            trace_cache=trace_cache,
        )
        missing = [d["name"] for d in staged.documents if not staged.is_measured(d["part"])]
        if missing:
            raise ForwardInfluenceError(
                f"nothing is added yet: {missing[0]} could not be measured; the same command continues"
            )
        _assemble(run, staged)
        finish_adding(run.folder)
        for name in (d["part"] for d in run.documents):
            run.push(run.selections_path(name), run.part_path(name))
        run.push(run.folder / MANIFEST)
    return open_run(run.where)


def _of_model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with what its configuration says of the model alone."""
    kept = {key: value for key, value in manifest["configuration"].items() if key.startswith("model_")}
    return {"configuration": kept, "versions": manifest.get("versions", {})}


def _check(run: Run, documents: Sequence[Cut], selectors: Sequence[str], compressors: Sequence[str]) -> None:
    if not selectors and not compressors:
        raise UsageError("nothing to add; name a rule with `selectors` or a compressor with `compressors`")
    there = [d["fingerprint"] for d in run.documents]
    if there != [d.document.fingerprint for d in documents]:
        raise UsageError(f"the documents of {run.where} are not what they were; measure anew")
    unmeasured = [d["name"] for d in run.documents if not run.is_measured(d["part"])]
    if unmeasured:
        command = run.manifest.get("command", "its own command")
        raise ForwardInfluenceError(
            f"{run.where} is not finished ({len(unmeasured)} of {len(there)} documents are missing); first: {command}"
        )
    from forward_influence.selectors import parse_selector

    known = set(run.configuration.get("selectors", []))
    if run.configuration.get("mode") == "keep":  # there a rule and a compressor of one name have rows of one name
        known |= set(run.configuration.get("compressors", []))
    for spec in (parse_selector(text).spec for text in selectors):
        if spec in known:
            raise UsageError(f"{run.where} has {spec} already")
    for name in compressors:
        if run.configuration.get("mode") == "keep" and name in run.configuration.get("selectors", []):
            raise UsageError(
                f"{run.where} keeps what the rule {name} chooses: results would bear one name; measure anew"
            )
        if name in run.configuration.get("compressors", []):
            raise UsageError(f"{run.where} has the compressor {name} already")


def _card(model: Model | None, executor: Executor | None) -> Card:
    if model is not None:
        return Card.of(model)
    if executor is None:
        raise UsageError("nothing to measure with; give a model or an executor")
    return executor.card()


def _discard_others(adding: Path, card: Card, configuration: Mapping[str, Any]) -> None:
    """Discard what an addition that was stopped has measured, unless it is the one that goes on now, on such a device.

    Call it while the run is held for writing, when what was ready has taken its place.
    """
    try:
        there = open_run(adding / "run").manifest
        same = there["configuration_hash"] == configuration_hash(configuration)
        same = same and torch.device(there["execution"]["device"]).type == torch.device(card.device).type
    except UsageError:  # none, or it cannot be read
        same = False
    if not same and adding.exists():
        with storing(adding):
            shutil.rmtree(adding)


def grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run with rules added: what it would be, had all been measured at once."""
    joined = dict(old)
    for key in ("selectors", "compressors"):
        if both := [*old.get(key, []), *new.get(key, [])]:
            joined[key] = both
    if sources := {**old.get("rule_sources", {}), **new.get("rule_sources", {})}:
        joined["rule_sources"] = sources
    if "every" in new:
        joined["every"] = new["every"]
    return joined


def merged_rows(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[tuple[str, int]]]:
    """The rows of one document as one measurement would have written them, and where each came from.

    Per segment: the baseline, the old conditions, the new ones, the controls. Rules stand before compressors.

    Returns:
        The rows, and for each ("old" | "new", its number there).
    """
    segments = sorted({row["segment"] for row in old})
    rows: list[Mapping[str, Any]] = []
    places: list[tuple[str, int]] = []
    for segment in segments:
        mine = [(("old", i), row) for i, row in enumerate(old) if row["segment"] == segment]
        added = [
            (("new", i), row) for i, row in enumerate(new) if row["segment"] == segment and row["kind"] == "condition"
        ]
        conditions = [*(pair for pair in mine if pair[1]["kind"] == "condition"), *added]
        conditions.sort(key=lambda pair: _is_compressor(pair[1]))
        for kind in ("baseline", "condition", "control"):
            chosen = conditions if kind == "condition" else [p for p in mine if _kind(p[1]) == kind]
            places += [place for place, _ in chosen]
            rows += [row for _, row in chosen]
    return rows, places


def _kind(row: Mapping[str, Any]) -> str:
    return row["kind"] if row["kind"] in ("baseline", "condition") else "control"


def _is_compressor(row: Mapping[str, Any]) -> bool:
    return bool(json.loads(row["parameters"] or "{}").get("compressor"))


def _assemble(run: Run, staged: Run) -> None:
    """Write every part of the grown run, and its manifest, into RUN/.adding/whole, then the mark that all is there."""
    whole = run.folder / ADDING / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    configuration = grown(run.configuration, staged.configuration)
    manifest = {**run.manifest, "configuration": configuration}
    manifest["configuration_hash"] = configuration_hash(configuration)
    manifest["remarks"] = list(dict.fromkeys([*run.manifest.get("remarks", []), *staged.manifest.get("remarks", [])]))
    for document in run.documents:
        stem = document["part"]
        old, new = run.part(stem), staged.part(stem)
        assert old is not None and new is not None
        rows, places = merged_rows(old.rows, new.rows)
        selections = _merged_selections(run.selections_path(stem), staged.selections_path(stem), places)
        Run(whole, manifest).write_part(stem, rows, {}, selections)
        (whole / "timings" / f"{stem}.json").unlink()  # the run keeps its own
    write_whole(whole / MANIFEST, encode_manifest(manifest))
    write_whole(run.folder / ADDING / READY, b"")


def _merged_selections(old: Path, new: Path, places: Sequence[tuple[str, int]]) -> bytes | None:
    """Selections and scores under the numbers that their rows have in the grown part; None where none were saved."""
    if not old.exists():
        return None
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    numbers = {place: i for i, place in enumerate(places)}
    for where, path in (("old", old), ("new", new)):
        with safe_open(path, "pt") as file:
            metadata = {**(file.metadata() or {}), **metadata}
            for name in file.keys():  # noqa: SIM118
                match = re.fullmatch(r"(selection|scores)/(\d+)", name)
                if match is None:
                    tensors.setdefault(name, file.get_tensor(name))
                elif (where, int(match[2])) in numbers:
                    tensors[f"{match[1]}/{numbers[where, int(match[2])]}"] = file.get_tensor(name)
    return save({name: tensor.clone() for name, tensor in tensors.items()}, metadata=metadata)
