"""What each rule selected, read back from the `selections/` folder of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from forward_influence.analysis.reading.parts import digest, outline
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.storage.run import Run


@dataclass(frozen=True)
class Context:
    """The context tokens of one segment of a document.

    Attributes:
        tokens: token ids, int64 (n,).
        pieces: the decoded string of each token, n of them.
        first, stop: the candidates are the tokens first..stop-1.
    """

    tokens: NDArray[np.int64]
    pieces: list[str]
    first: int
    stop: int


@dataclass(frozen=True)
class Choice:
    """One selection of one rule in one segment (one draw of a random rule).

    Attributes:
        selector, budget, mode, seed, segment: as in the run's rows.
        selection: bool (L, H, n); in keep mode the kept entries, protected ones included.
        scores: float32 (L or 1, H or 1, n or 1), higher = selected first; None where the rule has none.
        layers: rows of `selection` (0..L-1) that were ablated.
        heads: kv heads (0..H-1) that were ablated.
    """

    selector: str
    budget: str
    mode: str
    seed: int | None
    segment: int
    selection: NDArray[np.bool_]
    scores: NDArray[np.float32] | None
    layers: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True)
class DocumentSelections:
    """Everything that was selected in one document.

    Attributes:
        document: its entry in the manifest.
        contexts: segment -> the segment's context.
        choices: one per segment, rule, budget, mode and draw, in the order measured.
    """

    document: dict[str, Any]
    contexts: dict[int, Context]
    choices: list[Choice]


def model_layers(run: Run) -> list[int]:
    """The model's indices of the layers that selections cover: row i of a selection is layer `model_layers(run)[i]`."""
    return [int(layer) for layer in run.manifest["model"]["full_layers"]]


def has_selections(run: Run) -> bool:
    """Whether any document of the run has its selections saved."""
    return any(run.selections_path(d["part"]).is_file() for d in run.documents)


def of_several(table: Callable[..., pd.DataFrame], runs: Mapping[str, Run], **options: Any) -> pd.DataFrame:
    """A table of each of several runs, `overlap.overlap` say, in one, which the column `run` tells apart.

    Args:
        runs: by name, as `curves.named` gives them.
        options: for `table`.

    Raises:
        UsageError: one of the runs holds no selections.
    """
    return pd.concat([table(run, **options).assign(run=name) for name, run in runs.items()], ignore_index=True)


def require_selections(run: Run, purpose: str) -> None:
    """Raise `UsageError`, saying how to get them, if the run has no saved selections."""
    if not has_selections(run):
        raise UsageError(
            f"{run.where} holds no selections, which {purpose} needs; measure with `save_selections` into a new `out`"
        )


def read_selections(
    run: Run,
    *,
    selectors: Sequence[str] | None = None,
    budgets: Sequence[str] | None = None,
) -> Iterator[DocumentSelections]:
    """The saved selections of a run, one document in memory at a time.

    A selection that was measured twice (total and direct effect) appears once; the rows of a per-layer sweep are joined
    into the selection that they are slices of. Documents whose part does not read back whole are left out, as
    `Run.rows` leaves them out.

    Args:
        selectors, budgets: only these (as written in the rows); None means all.

    Raises:
        ForwardInfluenceError: a selections file does not read back, or is not the one that was measured.
    """
    layers = model_layers(run)
    for document in run.documents:
        path, part = run.selections_path(document["part"]), outline(run, document)
        if part is None or not path.is_file():
            continue
        groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
        for index, row in enumerate(part.rows):
            wanted = (
                row["kind"] == "condition"
                and (selectors is None or row["selector"] in selectors)
                and (budgets is None or row["budget"] in budgets)
            )
            if wanted:
                key = (row["segment"], row["selector"], row["budget"], row["mode"], row["seed"])
                groups.setdefault(key, []).append((index, row))
        try:
            if digest(path) != part.selections:
                raise ForwardInfluenceError(_damaged(run, path, "its content differs from its digest"))
            with safe_open(path, framework="numpy") as file:
                yield _read_document(file, document, groups, layers)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ForwardInfluenceError(_damaged(run, path, f"{type(error).__name__}: {error}")) from error


def _damaged(run: Run, path: Path, why: str) -> str:
    """What is wrong with a file of selections, and that continuing the run measures its document anew."""
    command = run.manifest.get("command")
    how = f"measure the document anew with: {command}" if command else "run its `measure` command again"
    return f"{path} does not read back ({why}); {how}"


def _read_document(
    file: Any,
    document: dict[str, Any],
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]],
    layers: list[int],
) -> DocumentSelections:
    names, metadata = set(file.keys()), file.metadata()
    contexts = {}
    for segment in sorted(int(name.split("/")[1]) for name in names if name.startswith("tokens/")):
        first, stop = json.loads(metadata[f"candidates/{segment}"])
        pieces = json.loads(metadata[f"pieces/{segment}"])
        contexts[segment] = Context(file.get_tensor(f"tokens/{segment}"), pieces, first, stop)
    choices = []
    for (segment, selector, budget, mode, seed), rows in groups.items():
        seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        for index, row in rows:
            if f"selection/{index}" in names:
                seen.setdefault((tuple(row["layers"]), tuple(row["heads"])), index)
        if not seen:
            continue
        # Slices of a sweep differ in their layers; the same slice under another effect is the same selection.
        selection = np.logical_or.reduce([file.get_tensor(f"selection/{index}") for index in seen.values()])
        first_row = next(iter(seen.values()))
        scores = file.get_tensor(f"scores/{first_row}") if f"scores/{first_row}" in names else None
        ablated = sorted({layers.index(layer) for which, _ in seen for layer in which})
        heads = sorted({head for _, which in seen for head in which})
        choices.append(Choice(selector, budget, mode, seed, segment, selection, scores, tuple(ablated), tuple(heads)))
    return DocumentSelections(document, contexts, choices)
