"""Measuring one document: the unit that is done, written, lost or done again as a whole."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forward_influence.attribution.lookahead import look_ahead
from forward_influence.data.cutting import Cut
from forward_influence.data.document import Document
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.full_run import Baseline, run_in_full
from forward_influence.influence.measure import measure_ablations
from forward_influence.influence.nonfinite import first_not_finite
from forward_influence.measurement.conditions import expand_compressors, expand_rules
from forward_influence.measurement.continuation import generate_continuation
from forward_influence.measurement.controls import controls_of
from forward_influence.measurement.positions import measured_positions
from forward_influence.measurement.prepared import Preparing
from forward_influence.measurement.request import Request
from forward_influence.measurement.rows import arrays, described, row_of
from forward_influence.measurement.seeds import derived_seed
from forward_influence.measurement.selection_step import choose_all
from forward_influence.measurement.span_rows import renumbered
from forward_influence.measurement.verification import verify
from forward_influence.models.loading import Model
from forward_influence.models.token_ids import checked_segments
from forward_influence.tracing.recorder import record
from forward_influence.tracing.store import (
    Tensors,
    TraceStore,
    baseline_key,
    packed,
    trace_key,
    unpacked,
    written_key,
)
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.heap import give_back
from forward_influence.utils.progress import Labelled, Progress, Silent
from forward_influence.utils.tokenization import text_pieces


@dataclass
class Measured:
    """A document's results.

    Attributes:
        rows: one per condition and control, keys as in `runs.SCHEMA`.
        timings: seconds by part of the work, and what `verify` found.
        tensors, metadata: what a selections file holds; empty unless asked for.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def measure_document(
    model: Model,
    document: Cut,
    request: Request,
    *,
    chunk: int = CHUNK,
    progress: Progress | None = None,
    store: TraceStore | None = None,
    controls: bool = True,
) -> Measured:
    """All conditions and controls on one document.

    Args:
        chunk: tokens per forward pass.
        store: keeps traces and baselines between runs.
        controls: whether to measure the noise floor and the positive control.

    Raises:
        ForwardInfluenceError: too few tokens, or ids that the model does not know; NaN logits, an ablation that changes
            nothing, a failed verification.
        UsageError: a rule that returns the wrong thing; a document without a layout where spans decide.
    """
    progress = Labelled(progress or Silent(), f"{document.document.name}: ")
    measured = Measured()
    started = time.perf_counter()
    request = _placed(request, document)
    needed = (request.context, request.continuation if request.continuation_from == "text" else 0)
    for number, tokens in enumerate(checked_segments(model, document, *needed)):
        segment = _Segment(model, document.document, number, tokens, request, chunk, progress, store)
        segment.measure(measured, controls)
    measured.timings["seconds"] = time.perf_counter() - started
    return measured


def _placed(request: Request, document: Cut) -> Request:
    """The request with the document's lengths; what they rule out concerns this document alone."""
    if not request.is_unplaced:
        return request
    try:
        return request.at(document.layout)
    except UsageError as error:
        raise ForwardInfluenceError(f"{document.document.name}: {error}") from error


class _Segment:
    """One context and its continuation.

    Args:
        number: of the segment within its document.
        tokens: (context + continuation,), fewer where the continuation is generated.
    """

    def __init__(
        self,
        model: Model,
        document: Document,
        number: int,
        tokens: Tensor,
        request: Request,
        chunk: int,
        progress: Progress,
        store: TraceStore | None,
    ) -> None:
        self.model, self.document, self.number, self.request = model, document, number, request
        self.chunk, self.progress, self.store = chunk, progress, store
        self.context, self.tokens = tokens[: request.context], tokens
        self.clock = _Clock()
        self.key = trace_key(model, self.context, request.span, chunk) if store is not None else ""
        self.kept: dict[str, Tensors] = {}  # what goes into the store when all is measured

    def measure(self, measured: Measured, with_controls: bool) -> None:
        """Add this segment's rows, timings and selections."""
        request, candidates = self.request, self.request.candidates
        trace = self._trace()
        self.clock.lap("context")
        give_back()
        continuation = self._continuation()
        if request.needs.looks_ahead:
            trace.future = self._look_ahead(trace, continuation)
            self.clock.lap("gradients")
        rules = expand_rules(request, self.document.fingerprint, self.number, trace.layers)
        first_row = len(measured.rows) + 1  # the segment's baseline row comes first
        choices = choose_all(trace, rules, request, candidates, first_row)
        for text in choices.messages(self.clock.laps["context"]):
            self.progress.message(text)
        measured.timings.setdefault("rules", []).append(choices.seconds)
        measured.tensors |= choices.tensors
        self.clock.lap("select")
        m = len(continuation)
        positions = measured_positions(request, m, self.document.fingerprint, self.number)
        preparing = Preparing(self.model, trace, request, m, positions, self.document.name, self.chunk)
        conditions = preparing.rules(rules, choices.found)
        conditions += preparing.compressors(expand_compressors(request, self.document.fingerprint, self.number))
        controls = []
        if with_controls:
            about: dict[str, Any] = {"segment": self.number, "itemsize": self.model.dtype.itemsize}
            about["everywhere"] = request.layout is None
            controls = controls_of(trace, candidates, m, request.effects, positions=positions, **about)
        everything = [*(one.ablation for one in conditions), *(control.ablation for control in controls)]
        nll, influences = measure_ablations(
            self.model,
            trace,
            continuation,
            everything,
            chunk=self.chunk,
            progress=self.progress,
            baseline=self._baseline(trace, continuation, any(a.replays for a in everything)),
        )
        self.clock.lap("continuation")
        base = {
            "document": self.document.name,
            "segment": self.number,
            "context": len(self.context),
            "continuation": m,
        }
        measured.rows.append(row_of(base, "baseline", nll=nll.float().numpy()))
        for one, influence in zip(conditions, influences, strict=False):
            row = described(one.condition, one.found(), positions)
            measured.rows.append(row_of(base, "condition", **row, **arrays(influence)))
        for control, influence in zip(controls, influences[len(conditions) :], strict=True):
            measured.rows.append(row_of(base, control.kind, **control.described(trace), **arrays(influence)))
        if request.layout is not None and positions is not None:
            measured.rows = [renumbered(row, positions) for row in measured.rows]
        if request.save_selections:
            self._save_tokens(trace, continuation, measured)
        if request.verify:
            whole = torch.cat([self.context, continuation.to(self.context.device)])
            seed = derived_seed(request.seed, self.document.fingerprint, self.number, "verify")
            where = seed % len(rules)
            removed, influence = choices.found[where].part.removed, influences[where]
            found = verify(self.model, whole, trace, rules[where], removed, influence, positions)
            measured.timings.setdefault("verified", []).append(found)
            self.clock.lap("verify")
        for key, entry in self.kept.items():
            assert self.store is not None
            self.store.put(key, entry)
        measured.timings.setdefault("segments", []).append(self.clock.laps)

    def _trace(self) -> Trace:
        """From the store, or recorded."""
        request, candidates = self.request, self.request.candidates
        if self.store is not None and (entry := self.store.get(self.key, self.model.device)) is not None:
            ends = candidates.first, candidates.last
            found = unpacked(entry, self.model, request.needs, *ends, request.rerotate)
            if found is not None:
                self.progress.advance(len(self.context), "context")
                return found
        trace = record(
            self.model,
            self.context,
            request.needs,
            span=request.span,
            first=candidates.first,
            last=candidates.last,
            chunk=self.chunk,
            rotation=request.rerotate,
            progress=self.progress,
        )
        if trace.last_hidden is not None and not bool(torch.isfinite(trace.last_hidden).all()):
            bad = first_not_finite(self.model, self.context, span=request.span)
            raise ForwardInfluenceError(
                f"{self.document.name}: token {bad} of its context (segment {self.number}) makes the model's states "
                "NaN or infinite; try `dtype` float32, or leave this document out"
            )
        if self.store is not None:
            self.kept[self.key] = packed(trace)
        return trace

    def _continuation(self) -> Tensor:
        """(m,) token ids: the document's own, or what the model writes."""
        request = self.request
        if request.continuation_from == "text":
            return self.tokens[request.context : request.span]
        seed = derived_seed(request.seed, self.document.fingerprint, self.number, "continuation")
        key = written_key(self.key, request.continuation, request.temperature, seed)
        entry = None if self.store is None else self.store.get(key, self.model.device)
        if entry is not None:
            self.progress.advance(request.continuation, "generating")
            return entry.tensors["tokens"]
        try:
            written = generate_continuation(self.model, self.context, request.continuation, request.temperature, seed)
        except ForwardInfluenceError as error:
            raise ForwardInfluenceError(f"{self.document.name}: {error}") from error
        if self.store is not None:
            self.kept[key] = Tensors({"tokens": written})
        self.progress.advance(len(written), "generating")
        self.clock.lap("generate")
        return written

    def _baseline(self, trace: Trace, continuation: Tensor, keeps: bool) -> Baseline | None:
        """The full cache's run from the store; without a store None, for it is run where it is needed."""
        if self.store is None:
            return None
        keeps = keeps and self.model.anatomy.replayable
        key = baseline_key(self.key, continuation)
        entry = self.store.get(key, self.model.device)
        count = len(trace.cache.layers)
        if entry is not None and ("keys/0" in entry.tensors or not keeps):
            tensors = entry.tensors
            pairs = [(tensors[f"keys/{i}"], tensors[f"values/{i}"]) for i in range(count)] if keeps else []
            return Baseline(tensors["hidden"], pairs)
        found = run_in_full(self.model, trace, continuation, self.chunk, keeps)
        tensors = {"hidden": found.hidden}
        for i, (keys, values) in enumerate(found.entries):
            tensors |= {f"keys/{i}": keys, f"values/{i}": values}
        if bool(torch.isfinite(found.hidden).all()):
            self.kept[key] = Tensors(tensors)
        return found

    def _look_ahead(self, trace: Trace, continuation: Tensor) -> dict[str, Tensor]:
        """Gradients of the continuation's zones, for rules that need them."""
        seed = derived_seed(self.request.seed, self.document.fingerprint, self.number, "labels")
        try:
            found = look_ahead(self.model, trace, continuation, self.request.needs, seed, progress=self.progress)
            finite = all(bool(torch.isfinite(values).all()) for values in found.values())
        except RuntimeError as error:
            if "probability tensor" not in str(error):  # what drawing labels from NaN says
                raise
            finite = False
        if not finite:
            whole = torch.cat([self.context, continuation.to(self.context.device)])
            bad = first_not_finite(self.model, whole) - trace.n
            raise ForwardInfluenceError(
                f"{self.document.name}: NaN or infinite logits at distance {bad} of the continuation; try `dtype` "
                "float32, or leave this document out"
            )
        return found

    def _save_tokens(self, trace: Trace, continuation: Tensor, measured: Measured) -> None:
        ids, candidates = trace.tokens.cpu(), self.request.candidates
        measured.tensors[f"tokens/{self.number}"] = ids
        measured.tensors[f"continuation/{self.number}"] = continuation.cpu()
        pieces = text_pieces(self.model.tokenizer, ids.tolist())
        measured.metadata[f"pieces/{self.number}"] = json.dumps(pieces)
        measured.metadata[f"candidates/{self.number}"] = json.dumps([candidates.first, candidates.last])


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
