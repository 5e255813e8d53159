"""The data behind a report's token view, packed small: what each rule selects in each document, token by token."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forward_influence.analysis.reading.parts import measured
from forward_influence.analysis.reading.selections import (
    Choice,
    Context,
    DocumentSelections,
    has_selections,
    model_layers,
    read_selections,
)
from forward_influence.analysis.statistics.ranks import ranks
from forward_influence.storage.run import Run

#: How finely score ranks are kept, from the finest: per layer and head, per layer (mean over heads), or one per token.
GRAINS = ("entry", "layer", "token")
_GRAIN_NOTE = {"entry": "", "layer": " (mean over heads)", "token": " (mean over layers and heads)"}


@dataclass(frozen=True)
class TokenView:
    """The packed token view.

    Attributes:
        names: what each packed document is called.
        data: JSON text for the page: {"documents": [{"name", "packed"}]}, safe inside a <script> element.
        notes: sentences on what was left out to keep within the size.
    """

    names: list[str]
    data: str
    notes: list[str]


def choice_label(choice: Choice, several_budgets: bool, several_modes: bool) -> str:
    """What the page calls a rule's selection: its name, and budget and mode where these vary within the run."""
    extra = [choice.budget] if several_budgets else []
    extra += [choice.mode] if several_modes else []
    extra += [f"draw {choice.seed}"] if choice.seed is not None else []
    return " · ".join([choice.selector, *extra])


def packed_bits(selection: NDArray[np.bool_]) -> tuple[list[int], bytes]:
    """A selection (L, H, n) as bits, eight a byte, first bit highest; dimensions that repeat are stored once.

    Returns:
        [L or 1, H or 1], and the bytes.
    """
    if (selection == selection[:, :1]).all():
        selection = selection[:, :1]
        if (selection == selection[:1]).all():
            selection = selection[:1]
    return list(selection.shape[:2]), np.packbits(selection.reshape(-1)).tobytes()


def rank_bytes(scores: NDArray[np.float32], context: Context, grain: str) -> tuple[list[int], bytes, str]:
    """Which part of the candidates each token scores above, in 255ths, uint8; 0 for tokens that are no candidates.

    Args:
        scores: (L or 1, H or 1, n).
        grain: one of `GRAINS`; ranks are taken per (layer, head) and then averaged to it.

    Returns:
        [L or 1, H or 1], the bytes, and the grain that came out (a score without heads or layers has no finer one).
    """
    inside = scores[..., context.first : context.stop]
    below = (ranks(inside) - 1) / max(inside.shape[-1] - 1, 1)
    if grain != "entry":
        below = below.mean(1, keepdims=True)
    if grain == "token":
        below = below.mean(0, keepdims=True)
    parts = np.zeros((*below.shape[:2], scores.shape[-1]), dtype=np.uint8)
    parts[..., context.first : context.stop] = np.round(below * 255).astype(np.uint8)
    averaged = "entry" if parts.shape == scores.shape else "layer" if parts.shape[0] > 1 else "token"
    return list(parts.shape[:2]), parts.tobytes(), averaged


def bfloat16_bytes(values: NDArray[np.floating]) -> bytes:
    """Float32 rounded to its upper 16 bits (two to three significant digits), little-endian; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded[~np.isfinite(np.asarray(values, dtype=np.float32))] = 0x7FC0
    return rounded.tobytes()


def _score_note(scores: NDArray[np.float32]) -> str:
    """Over what the one score per token that is kept is a mean: scores are (L or 1, H or 1, n)."""
    over = [name for name, size in zip(("layers", "heads"), scores.shape, strict=False) if size > 1]
    return f" (mean over all {' and '.join(over)})" if over else " (the same in every layer and head)"


def pack_segment(document: DocumentSelections, segment: int, layers: Sequence[int], grain: str) -> str | None:
    """One segment of a document as base64 of a zlib stream: header length (uint32), JSON header, arrays; None if empty.

    Of a random rule the first draw is kept.
    """
    context = document.contexts[segment]
    choices: dict[tuple[str, str, str], Choice] = {}
    for choice in document.choices:
        if choice.segment == segment:
            choices.setdefault((choice.selector, choice.budget, choice.mode), choice)
    if not choices:
        return None
    budgets, modes = ({key[i] for key in choices} for i in (1, 2))
    body = bytearray()
    rules: list[dict[str, Any]] = []
    for choice in choices.values():
        shape, data = packed_bits(choice.selection)
        rule: dict[str, Any] = {
            "label": choice_label(choice, len(budgets) > 1, len(modes) > 1),
            "layers": choice.layers,
            "heads": choice.heads,
            "selection": {"shape": shape, "offset": len(body)},
            "rank": None,
            "raw": None,
        }
        body += data
        if choice.scores is not None and choice.scores.shape[-1] == len(context.tokens):
            shape, data, averaged = rank_bytes(choice.scores, context, grain)
            rule["rank"] = {"shape": shape, "offset": len(body), "grain": _GRAIN_NOTE[averaged]}
            body += data
            rule["raw"] = {"offset": len(body), "grain": _score_note(choice.scores)}
            with np.errstate(invalid="ignore"):
                body += bfloat16_bytes(choice.scores.mean((0, 1), dtype=np.float64))
        rules.append(rule)
    header = {
        "pieces": context.pieces,
        "first": context.first,
        "stop": context.stop,
        "layers": list(layers),
        "rules": rules,
    }
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    return base64.b64encode(zlib.compress(len(head).to_bytes(4, "little") + head + bytes(body), 9)).decode()


def script_json(value: Any) -> str:
    """JSON that is safe inside a <script> element: no "<", ">" or "&" is left for the HTML parser."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def token_view(runs: Mapping[str, Run], limit: int) -> TokenView | None:
    """Pack the saved selections of all runs (by name) into at most `limit` characters; None if no run has any.

    Ranks are kept as finely as fits; when even one rank per token does not fit, the last documents are left out.
    """
    with_selections = {name: run for name, run in runs.items() if has_selections(run)}
    if not with_selections:
        return None
    for grain in GRAINS[_first_grain(list(with_selections.values()), limit) :]:
        packed, complete = _pack_all(with_selections, grain, limit)
        if complete:
            break
    notes = []
    if grain == "layer":
        notes.append("To keep the page small, score ranks are means over the heads of a layer.")
    elif grain == "token":
        notes.append("To keep the page small, score ranks are means over layers and heads.")
    if not complete:
        total = sum(_contexts(run) for run in with_selections.values())
        notes.append(f"To keep the page small, {len(packed)} of {total} contexts are shown.")
    if not packed:
        return None
    documents = [{"name": name, "packed": text} for name, text in packed]
    return TokenView([name for name, _ in packed], script_json({"documents": documents}), notes)


def _contexts(run: Run) -> int:
    return sum(d.get("segments", 1) for d in measured(run))


def _first_grain(runs: Sequence[Run], limit: int) -> int:
    """The finest grain worth trying, an index of `GRAINS`, judged by the first context of each run."""
    for index, grain in enumerate(GRAINS[:-1]):
        size = 0
        for run in runs:
            first = next(read_selections(run), None)
            text = first and pack_segment(first, min(first.contexts), model_layers(run), grain)
            size += len(text or "") * _contexts(run)
        if size <= limit:
            return index
    return len(GRAINS) - 1


def _pack_all(runs: Mapping[str, Run], grain: str, limit: int) -> tuple[list[tuple[str, str]], bool]:
    """(name, packed) of every context in order, until `limit` is reached; whether all of them fitted."""
    packed: list[tuple[str, str]] = []
    size = 0
    for label, run in runs.items():
        layers = model_layers(run)
        for document in read_selections(run):
            for segment in document.contexts:
                text = pack_segment(document, segment, layers, grain)
                if text is None:
                    continue
                name = document.document["name"]
                name = f"{label}: {name}" if len(runs) > 1 else name
                name += f", segment {segment + 1}" if len(document.contexts) > 1 else ""
                size += len(text) + len(name) + 40
                if size > limit:
                    return packed, False
                packed.append((name, text))
    return packed, True
