"""Measuring one document: the unit that is done, written, lost or done again as a whole."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from forward_influence.ahead import look_ahead
from forward_influence.choosing import Choice, choose_all
from forward_influence.conditions import (
    NOISE_POSITIONS,
    POSITIVE_POSITIONS,
    CompressorCondition,
    Condition,
    derived_seed,
    expand,
    expand_compressors,
    measured_positions,
)
from forward_influence.errors import ForwardInfluenceError
from forward_influence.fidelity import CompressedRun
from forward_influence.influence import (
    Ablation,
    Influence,
    masked_direct_influence,
    masked_influence,
    measure_ablations,
    removal,
    shuffled,
)
from forward_influence.models import Model
from forward_influence.progress import Labelled, Progress, Silent
from forward_influence.recording import record
from forward_influence.request import Request
from forward_influence.runs import SCHEMA
from forward_influence.selection import Candidates, Selection
from forward_influence.trace import Trace

#: How many positions of a direct effect `--verify` computes again: each takes a full pass.
_VERIFIED_POSITIONS = 4

#: What rounding explains of a difference between two ways to one KL: dtype -> (nats, share of the KL). For float32 and
#: float64 far above what is seen (4e-5 of the KL in float32), for 16 bits what docs/testing.md measured.
VERIFY_TOLERANCES = {
    "float64": (1e-10, 1e-8),
    "float32": (1e-5, 1e-3),
    "bfloat16": (0.05, 0.15),
    "float16": (0.01, 0.03),
}


class Named(Protocol):
    """A document's name and content fingerprint."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


class CutDocument(Protocol):
    """A document cut to token ids, as `forward_influence.data.prepare` gives it."""

    @property
    def document(self) -> Named: ...

    @property
    def segments(self) -> tuple[Tensor, ...]: ...


@dataclass
class Measured:
    """A document's results.

    Attributes:
        rows: one per condition and control, keys as in `runs.SCHEMA`.
        timings: seconds by part of the work, and what `--verify` found.
        tensors, metadata: what a selections file holds; empty unless asked for.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def measure_document(
    model: Model, document: CutDocument, request: Request, *, chunk: int = 512, progress: Progress | None = None
) -> Measured:
    """All conditions and controls on one document.

    Raises:
        ForwardInfluenceError: NaN logits, an ablation that changes nothing, a failed verification.
        UsageError: a rule that returns the wrong thing.
    """
    progress = Labelled(progress or Silent(), f"{document.document.name}: ")
    measured = Measured()
    started = time.perf_counter()
    for segment, tokens in enumerate(document.segments):
        _measure_segment(model, document.document, segment, tokens, request, chunk, progress, measured)
    measured.timings["seconds"] = time.perf_counter() - started
    return measured


def _measure_segment(
    model: Model,
    document: Named,
    segment: int,
    tokens: Tensor,
    request: Request,
    chunk: int,
    progress: Progress,
    measured: Measured,
) -> None:
    context = tokens[: request.context]
    clock = _Clock()
    if request.continuation_from == "generate":
        seed = derived_seed(request.seed, document.fingerprint, segment, "continuation")
        continuation = generate_continuation(model, context, request.continuation, request.temperature, seed)
        progress.advance(len(continuation), "generating")
        clock.lap("generate")
    else:
        continuation = tokens[request.context : request.span]
    candidates = request.candidates
    trace = record(
        model,
        context,
        request.needs,
        span=request.span,
        first=candidates.first,
        last=candidates.last,
        chunk=chunk,
        rotation=request.rerotate,
        progress=progress,
    )
    if trace.last_hidden is not None and not bool(torch.isfinite(trace.last_hidden).all()):
        raise ForwardInfluenceError(
            f"{document.name}: its context makes the model's states NaN or infinite (segment {segment}); "
            "try --dtype float32, or leave this document out"
        )
    clock.lap("context")
    if request.needs.looks_ahead:
        seed = derived_seed(request.seed, document.fingerprint, segment, "labels")
        trace.future = look_ahead(model, trace, continuation, request.needs, seed, progress=progress)
        clock.lap("gradients")
    conditions = expand(request, document.fingerprint, segment, trace.layers)
    first_row = len(measured.rows) + 1  # the segment's baseline row comes first
    choices = choose_all(trace, conditions, request, candidates, first_row)
    for text in choices.messages(clock.laps["context"]):
        progress.message(text)
    measured.timings.setdefault("rules", []).append(choices.seconds)
    measured.tensors |= choices.tensors
    clock.lap("select")
    positions = measured_positions(request, len(continuation), document.fingerprint, segment)
    ablations = [
        removal(
            trace,
            choice.part.removed,
            "drop",
            len(continuation),
            f"{document.name}: {condition.label}",
            positions,
            condition.effect == "direct",
            request.rerotate,
        )
        for condition, choice in zip(conditions, choices.found, strict=True)
    ]
    compressed = [
        (c, CompressedRun(model, c.contender.compressor, context, c.seed, chunk))
        for c in expand_compressors(request, document.fingerprint, segment)
    ]
    ablations += [
        Ablation(f"{document.name}: {c.label}", None, len(continuation), positions=positions, hidden=run)
        for c, run in compressed
    ]
    controls = _controls(trace, candidates, len(continuation), request.effects) if segment == 0 else []
    nll, influences = measure_ablations(
        model, trace, continuation, [*ablations, *(c.ablation for c in controls)], chunk=chunk, progress=progress
    )
    clock.lap("continuation")
    base = {"document": document.name, "segment": segment, "context": len(context), "continuation": len(continuation)}
    measured.rows.append(_row(base, "baseline", nll=nll.float().numpy()))
    for condition, choice, influence in zip(conditions, choices.found, influences, strict=False):
        row = _described(condition, choice, request, positions)
        measured.rows.append(_row(base, "condition", **row, **_arrays(influence)))
    for (compressor, run), influence in zip(compressed, influences[len(conditions) :], strict=False):
        row = _described_compressor(compressor, run, trace, positions)
        measured.rows.append(_row(base, "condition", **row, **_arrays(influence)))
    for control, influence in zip(controls, influences[len(ablations) :], strict=True):
        measured.rows.append(_row(base, control.kind, **control.described(trace), **_arrays(influence)))
    if request.save_selections:
        _save_tokens(model, trace, segment, candidates, measured)
        measured.tensors[f"continuation/{segment}"] = continuation.cpu()
    if request.verify:
        tokens = torch.cat([context, continuation.to(context.device)])
        where = derived_seed(request.seed, document.fingerprint, segment, "verify") % len(conditions)
        removed, influence = choices.found[where].part.removed, influences[where]
        _verify(model, tokens, trace, conditions[where], removed, influence, positions, document.name, measured)
        clock.lap("verify")
    measured.timings.setdefault("segments", []).append(clock.laps)


@dataclass(frozen=True)
class _Control:
    """A control of a document: what is ablated, and as which kind of row it is written."""

    kind: str
    ablation: Ablation
    selection: Selection

    def described(self, trace: Trace) -> dict[str, Any]:
        return {
            "selector": self.kind,
            "selected": self.selection.counts.flatten().tolist(),
            "mode": "drop",
            "effect": "direct" if self.ablation.direct else "total",
            "layers": list(trace.layers),
            "heads": list(range(trace.kv_heads)),
            "distance": list(range(self.ablation.length)),
        }


def _controls(trace: Trace, candidates: Candidates, m: int, effects: Sequence[str]) -> list[_Control]:
    """The noise floor and the positive control, of each effect that is measured."""
    everything = torch.zeros(trace.shape, dtype=torch.bool, device=trace.tokens.device)
    nothing = Selection(everything.clone(), trace.layers)
    everything[..., candidates.first : candidates.last] = True
    all_candidates = Selection(everything, trace.layers)
    controls = []
    for direct in (effect == "direct" for effect in effects):
        floor = shuffled(trace, min(NOISE_POSITIONS, m), direct=direct)
        most = min(POSITIVE_POSITIONS, m)
        positive = removal(trace, all_candidates, "drop", most, "dropping all candidates", direct=direct)
        controls += [
            _Control("noise_floor", floor, nothing),
            _Control("positive_control", positive, all_candidates),
        ]
    return controls


def _row(base: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(SCHEMA.names), **base, "kind": kind, **values}


def _described(condition: Condition, choice: Choice, request: Request, positions: Tensor | None) -> dict[str, Any]:
    part, grain = choice.part, choice.whole.grain
    parameters = {**condition.rule.parameters, **choice.notes, "grain": grain}
    return {
        "selector": condition.rule.spec,
        # with the grain that came out: a comparison has to name it, and `per` does not tell that entropy is coherent
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
        "budget": condition.budget.text,
        "selected": part.selection.counts.flatten().tolist(),
        "mode": request.mode,
        "effect": condition.effect,
        "seed": condition.draw,
        "layers": list(part.layers),
        "heads": list(part.heads),
        "distance": None if positions is None else positions.tolist(),
    }


def _described_compressor(
    condition: CompressorCondition, run: CompressedRun, trace: Trace, positions: Tensor | None
) -> dict[str, Any]:
    assert run.held is not None
    compressor = condition.contender.compressor
    made = {"compressor": True, "every": compressor.schedule.every, "scheme": compressor.scheme}
    return {
        "selector": condition.contender.name,
        "parameters": json.dumps({**compressor.rule.parameters, **made}, sort_keys=True, default=str),
        "budget": condition.contender.budget,
        "selected": run.held.flatten().tolist(),
        "mode": "keep",
        "effect": "total",
        "seed": condition.draw,
        "layers": list(trace.layers),
        "heads": list(range(trace.kv_heads)),
        "distance": None if positions is None else positions.tolist(),
    }


def _arrays(influence: Influence) -> dict[str, Any]:
    return {
        "kl": influence.kl.float().numpy(),
        "nll_delta": influence.nll_delta.float().numpy(),
        "top1_changed": influence.top1_changed.numpy(),
    }


def _save_tokens(model: Model, trace: Trace, segment: int, candidates: Candidates, measured: Measured) -> None:
    ids = trace.tokens.cpu()
    measured.tensors[f"tokens/{segment}"] = ids
    decode = getattr(model.tokenizer, "decode", None)
    pieces = [decode([i]) if decode else str(i) for i in ids.tolist()]
    measured.metadata[f"pieces/{segment}"] = json.dumps(pieces)
    measured.metadata[f"candidates/{segment}"] = json.dumps([candidates.first, candidates.last])


def _verify(
    model: Model,
    tokens: Tensor,
    trace: Trace,
    condition: Condition,
    removed: Selection,
    influence: Influence,
    positions: Tensor | None,
    name: str,
    measured: Measured,
) -> None:
    """One condition, chosen by the document, against a masked full pass; a direct one at a few positions."""
    distances = torch.arange(len(tokens) - trace.n) if positions is None else positions
    here = influence.kl.double()
    if condition.effect == "direct":
        some = torch.linspace(0, len(distances) - 1, min(_VERIFIED_POSITIONS, len(distances))).long()
        here = here[some]
        there = masked_direct_influence(model, tokens, trace, removed, distances[some]).double()
    else:
        there = masked_influence(model, tokens, trace, removed, "drop").kl.double()[distances]
    least, share = VERIFY_TOLERANCES[str(model.dtype).removeprefix("torch.")]
    difference = (here - there).abs()
    of_rounding = float((difference / (least + share * there)).max())
    measured.timings.setdefault("verified", []).append(
        {
            "condition": condition.label,
            "largest_difference": float(difference.max()),
            "largest_kl": float(there.max()),
            "of_what_rounding_explains": of_rounding,
        }
    )
    if not of_rounding <= 1:
        raise ForwardInfluenceError(
            f"{name}: {condition.label} differs from a masked full pass by up to {float(difference.max()):.2g} nats, "
            f"{of_rounding:.2g} times what rounding explains; please report this"
        )


def generate_continuation(model: Model, context: Tensor, m: int, temperature: float, seed: int) -> Tensor:
    """What the model itself writes after a context: (m,) token ids, exactly m (it may not stop early).

    Sampled from the whole distribution at `temperature`; greedy for 0.
    """
    ids = context[None].to(model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    own = model.model.generation_config
    # in place of the model's own, from which `generate` would fill in penalties, beams and whatever bends distributions
    model.model.generation_config = GenerationConfig(
        eos_token_id=getattr(own, "eos_token_id", None),
        pad_token_id=getattr(own, "pad_token_id", None) or 0,
        max_new_tokens=m,
        min_new_tokens=m,
        **sampling,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            output = model.model.generate(ids, attention_mask=torch.ones_like(ids))  # type: ignore[operator]
    finally:
        model.model.generation_config = own
    return output[0, len(context) :]


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
