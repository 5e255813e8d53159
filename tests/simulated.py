"""Run folders of known effect, for tests and benchmarks of the analysis: no model is involved.

KL at distance d of a rule on a document is `level * shape(d) * document effect * noise`, every factor known:

    power         (d + 1) ** -rate
    exponential   exp(-d / rate)
    flat          1
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from forward_influence.storage.run import SCHEMA, Run, create_or_continue

WORDS = [
    "the",
    " of",
    " and",
    " nation",
    " people",
    " Congress",
    " 1862",
    ",",
    ".",
    "\n",
    "ing",
    " <b>bold</b>",
    " free",
]
RANDOM_RULES = ("random", "position-matched")


@dataclass(frozen=True)
class Decay:
    """The planted curve of one rule: `kind` is power, exponential or flat; `rate` an exponent or a length in tokens."""

    kind: str = "power"
    level: float = 0.5
    rate: float = 0.5

    def at(self, distance: np.ndarray) -> np.ndarray:
        """Expected KL at each distance, before document effects: (m,)."""
        shapes = {
            "power": lambda d: (d + 1.0) ** -self.rate,
            "exponential": lambda d: np.exp(-d / self.rate),
            "flat": lambda d: np.ones(len(d)),
        }
        return self.level * shapes[self.kind](np.asarray(distance, dtype=float))

    def mean(self, low: int, high: int) -> float:
        """Mean over the positions low..high-1."""
        return float(self.at(np.arange(low, high)).mean())


DEFAULT_RULES: dict[str, Decay] = {
    "attention": Decay("power", 1.0, 0.9),
    "entropy": Decay("power", 0.3, 0.5),
    "random": Decay("power", 0.2, 0.6),
}


@dataclass(frozen=True)
class Scenario:
    """What a simulated run consists of; see `simulate`."""

    rules: Mapping[str, Decay]
    documents: int = 8
    context: int = 256
    continuation: int = 1024
    segments: int = 1
    draws: int = 5
    budgets: Sequence[str] = ("0.2",)
    mode: str = "drop"
    effects: Sequence[str] = ("total",)
    document_spread: float = 0.4
    rule_spread: float = 0.2
    gaussian: bool = False
    noise: float = 0.5
    floor: float = 1e-6
    direct_share: float = 0.6
    layers: int = 2
    heads: int = 2
    seed: int = 0
    positions_per_bin: int | None = None
    save_selections: bool = False
    authors: Sequence[str] | None = None
    measured: int | None = None


def effects_of_documents(rng: np.random.Generator, spread: float, size: Any, gaussian: bool) -> np.ndarray:
    """Factors around 1: log-normal with sd `spread` of the log, or Gaussian with sd `spread`, kept above 0.05."""
    z = rng.standard_normal(size)
    return np.maximum(1.0 + spread * z, 0.05) if gaussian else np.exp(spread * z)


def simulate(
    folder: Path, rules: Mapping[str, Decay] | None = None, *, manifest: Mapping[str, Any] | None = None, **fields: Any
) -> Run:
    """Write a run folder and return it opened.

    Args:
        rules: planted curve by selector spec, such as {"attention": Decay("power", 1.0, 0.9)}.
        manifest: {"configuration": {...}, "model": {...}}, laid over what would be written.
        fields: of `Scenario`; `measured=k` leaves all but the first k documents unmeasured.
    """
    scenario = Scenario(rules=rules if rules is not None else DEFAULT_RULES, **fields)
    names = [f"speech {i:03d}" for i in range(scenario.documents)]
    documents: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        entry: dict[str, Any] = {
            "name": name,
            "fingerprint": f"{i:064x}",
            "tokens": scenario.segments * (scenario.context + scenario.continuation),
            "part": f"speech-{i:03d}",
            "segments": scenario.segments,
        }
        if scenario.authors is not None:
            entry["author"] = scenario.authors[i % len(scenario.authors)]
        documents.append(entry)
    run = create_or_continue(folder, _manifest(folder, scenario, documents, manifest or {}))
    for i, document in enumerate(documents[: scenario.measured]):
        rng = np.random.default_rng([scenario.seed, i])
        rows = _rows(rng, scenario, document["name"])
        selections = _selections(rng, scenario, rows) if scenario.save_selections else None
        run.write_part(document["part"], rows, {"seconds": 1.0}, selections)
    return run


def _manifest(folder: Path, s: Scenario, documents: list[dict[str, Any]], over: Mapping[str, Any]) -> dict[str, Any]:
    configuration = {
        "model": "simulated",
        "documents": "simulated",
        "sample": None,
        "max_documents": s.documents,
        "selectors": list(s.rules),
        "budgets": list(s.budgets),
        "context": s.context,
        "continuation": s.continuation,
        "segments": s.segments,
        "continuation_from": "text",
        "mode": s.mode,
        "effect": "both" if len(s.effects) == 2 else s.effects[0],
        "protect_first": 4,
        "protect_last": 64,
        "seed": s.seed,
        "dtype": "float32",
        "positions_per_bin": s.positions_per_bin,
        "layers": None,
        "heads": None,
        "draws": s.draws,
        "temperature": None,
        "save_selections": s.save_selections,
        "per_layer": False,
        "rerotate": False,
        **over.get("configuration", {}),
    }
    model = {
        "spec": "simulated",
        "class": "SimulatedForCausalLM",
        "layers": s.layers,
        "full_layers": list(range(s.layers)),
        "query_heads": s.heads * 2,
        "kv_heads": s.heads,
        "head_size": 16,
        "hidden": 64,
        "positions": 32768,
        "vocabulary": 1000,
        "dtype": "float32",
        "device": "cpu",
        "fingerprint": "f" * 64,
        "provenance": {"source": "simulated", "note": None},
        **over.get("model", {}),
    }
    return {
        "configuration": configuration,
        "model": model,
        "documents": documents,
        "skipped": [{"name": "short speech", "reason": "too short: 90 tokens"}],
        "versions": {"forward_influence": "0.1.0", "python": "3.11"},
        "execution": {"chunk": 512, "threads": 1, "device": "cpu"},
        "command": f"forward-influence measure --model simulated --documents simulated --out {folder}",
        "created": "2026-01-01T00:00:00+00:00",
    }


def _row(s: Scenario, document: str, segment: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row.update(document=document, segment=segment, context=s.context, continuation=s.continuation)
    row.update(values)
    return row


def _parameters(selector: str) -> dict[str, Any]:
    given = dict(part.split("=", 1) for part in selector.partition(":")[2].split(",") if "=" in part)
    grain = "token" if selector.partition(":")[0] in ("entropy", "surprisal", "recent", "first") else "entry"
    extra = {"of": "attention", "of_spec": "attention"} if selector.startswith("position-matched") else {}
    return {"per": "entry", **extra, **given, "grain": given.get("per", grain)}


def _sampled(rng: np.random.Generator, s: Scenario) -> np.ndarray | None:
    if s.positions_per_bin is None:
        return None
    starts = range(0, s.continuation, 128)
    picked = [
        rng.choice(np.arange(a, min(a + 128, s.continuation)), s.positions_per_bin, replace=False) for a in starts
    ]
    return np.sort(np.concatenate(picked)).astype(np.int32)


def _rows(rng: np.random.Generator, s: Scenario, document: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    shared = effects_of_documents(rng, s.document_spread, (), s.gaussian)
    own = {rule: effects_of_documents(rng, s.rule_spread, (), s.gaussian) for rule in s.rules}
    for segment in range(s.segments):
        nll = rng.gamma(2.0, 1.5, s.continuation).astype(np.float32)
        nll[-1] = np.nan
        rows.append(_row(s, document, segment, kind="baseline", nll=nll))
        noise = np.abs(rng.normal(s.floor, s.floor / 10, 256)).astype(np.float32)
        rows.append(_control(s, document, segment, "noise_floor", s.mode, noise))
        dropped = rng.gamma(9.0, 1.0, 64).astype(np.float32)
        rows.append(_control(s, document, segment, "positive_control", "drop", dropped))
        sampled = _sampled(rng, s)
        for rule, decay in s.rules.items():
            for budget in s.budgets:
                for effect in s.effects:
                    factor = float(shared * own[rule]) * (s.direct_share if effect == "direct" else 1.0)
                    rows += _condition(rng, s, document, segment, rule, decay, budget, effect, factor, sampled)
    return rows


def _control(s: Scenario, document: str, segment: int, kind: str, mode: str, kl: np.ndarray) -> dict[str, Any]:
    """A control over as many of the first positions as there are values, or as there are positions."""
    kl = kl[: s.continuation]
    measured = {"kl": kl, "nll_delta": np.zeros_like(kl), "top1_changed": np.zeros(len(kl), dtype=bool)}
    where = {"distance": np.arange(len(kl), dtype=np.int32), "mode": mode, "effect": "total"}
    return _row(s, document, segment, kind=kind, **where, **measured)


def _condition(
    rng: np.random.Generator,
    s: Scenario,
    document: str,
    segment: int,
    rule: str,
    decay: Decay,
    budget: str,
    effect: str,
    factor: float,
    sampled: np.ndarray | None,
) -> list[dict[str, Any]]:
    distance = np.arange(s.continuation) if sampled is None else sampled
    scale = float(budget) / 0.2 if "." in budget else 1.0
    expected = factor * scale * decay.at(distance)
    seeds: Sequence[int | None] = range(s.draws) if rule.startswith(RANDOM_RULES) else [None]
    fraction = float(budget) if "." in budget else int(budget) / s.context
    rows = []
    for seed in seeds:
        noise = np.exp(s.noise * rng.standard_normal(len(distance)) - s.noise**2 / 2)
        kl = (expected * noise + s.floor).astype(np.float32)  # rounding adds the floor
        rows.append(
            _row(
                s,
                document,
                segment,
                kind="condition",
                selector=rule,
                parameters=json.dumps({**_parameters(rule), **({"overlap": 0.3} if "matched" in rule else {})}),
                budget=budget,
                selected=np.full(s.layers * s.heads, int(fraction * s.context), dtype=np.int32),
                mode=s.mode,
                effect=effect,
                seed=seed,
                layers=np.arange(s.layers, dtype=np.int32),
                heads=np.arange(s.heads, dtype=np.int32),
                distance=sampled,
                kl=kl,
                nll_delta=_with_gap(kl * rng.standard_normal(len(kl)), distance, s.continuation),
                top1_changed=rng.random(len(kl)) < np.minimum(kl, 0.9),
            )
        )
    return rows


def _with_gap(values: np.ndarray, distance: np.ndarray, continuation: int) -> np.ndarray:
    out = values.astype(np.float32)
    out[distance == continuation - 1] = np.nan
    return out


def _selections(rng: np.random.Generator, s: Scenario, rows: list[dict[str, Any]]) -> bytes:
    """A selections file whose tokens are random words; entropy leans to late positions, attention to the first half."""
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    n, last = s.context, s.context - 64
    for segment in range(s.segments):
        tokens = rng.integers(0, len(WORDS), n)
        tensors[f"tokens/{segment}"] = tokens.astype(np.int64)
        metadata[f"pieces/{segment}"] = json.dumps([WORDS[t] for t in tokens])
        metadata[f"candidates/{segment}"] = json.dumps([4, last])
    for index, row in enumerate(rows):
        if row["kind"] != "condition":
            continue
        coherent = row["selector"].startswith("entropy")
        scores = rng.random((1, 1, n) if coherent else (s.layers, s.heads, n)).astype(np.float32)
        scores += np.linspace(0, 0.5 if coherent else -0.5, n, dtype=np.float32)
        selection = np.zeros((s.layers, s.heads, n), dtype=bool)
        best = np.argsort(-scores[..., 4:last], axis=-1, kind="stable")[..., : int(row["selected"][0])] + 4
        np.put_along_axis(selection, np.broadcast_to(best, (s.layers, s.heads, best.shape[-1])), True, axis=-1)
        tensors[f"selection/{index}"] = selection
        tensors[f"scores/{index}"] = scores
    return save(tensors, metadata=metadata)


#: How the log ratio of two rules rises through 0 at `truth`: as of two power laws, or as of an exponential one that
#: falls beside a flat one.
RISES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "power laws": lambda d, truth: 0.4 * (np.log1p(d) - np.log1p(truth)),
    "exponential": lambda d, truth: (d - truth) / 600,
}


def crossing_documents(
    rng: np.random.Generator, rises: str, truth: float, edges: np.ndarray, documents: int, *, gaussian: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """KL of two rules in bins, two arrays (documents, bins), the first of which exceeds the second from `truth` on.

    Position by position: documents differ by a factor (sd of log 0.3), in how fast it changes (0.1 per e-fold of
    distance), and by what wanders with distance (0.3); each position of each rule has noise of its own (log-normal, sd
    1).

    Args:
        rises: one of `RISES`.
        edges: of the bins, (bins + 1,).
        gaussian: documents' factors are Gaussian, their logs skewed (and shifted, so that their mean stays 0).
    """
    m = int(edges[-1])
    d = np.arange(m)
    factor = np.log(effects_of_documents(rng, 0.3, (documents, 1), gaussian)) - (GAUSSIAN_LOG if gaussian else 0.0)
    tilt = 0.1 * rng.standard_normal((documents, 1)) * (np.log1p(d) - np.log1p(min(truth, m)))
    knots = np.linspace(0, np.log1p(m), 16)
    wander = np.stack([np.interp(np.log1p(d), knots, 0.3 * rng.standard_normal(16)) for _ in range(documents)])
    log_ratio = (RISES[rises](d, truth) + factor + tilt + wander).astype(np.float32)
    noise = np.exp(rng.standard_normal((2, documents, m), dtype=np.float32))
    a, b = noise[0] * np.exp(log_ratio), noise[1]
    counts = np.diff(edges)
    return np.add.reduceat(a, edges[:-1], axis=1) / counts, np.add.reduceat(b, edges[:-1], axis=1) / counts


#: Mean log of a Gaussian factor of mean 1 and sd 0.3, as `effects_of_documents` draws it.
GAUSSIAN_LOG = float(np.log(effects_of_documents(np.random.default_rng(99), 0.3, 4_000_000, True)).mean())
