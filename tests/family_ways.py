"""The ways in which a family is used, against full float64 passes: (largest difference, how large the effect is).

`family_table.verdict` is about removal before a continuation; here are the direct effect, `--verify`, a run under a
compressor, and generation under one.
"""

from __future__ import annotations

import brute_force
import tiny_data
import torch
from families import tiny_family
from family_table import M, N
from float64 import Float64
from torch import Tensor
from visible_sets import Snapshots, generated, watching

from forward_influence.compression import compress
from forward_influence.compression.contenders import Contender
from forward_influence.compression.fidelity import CompressedRun
from forward_influence.influence.measure import forward_influence
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.models.loading import Model, wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

#: Tokens of the prompt and generated ones; compressed after the prompt and after every ten.
PROMPT, NEW, EVERY, LAST = 44, 24, 10, 4


def _tokens(count: int = N + M) -> Tensor:
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(5))


def direct(name: str) -> tuple[float, float]:
    """The direct effect: full passes up to a token, of which that token alone does not see what is removed."""
    with Float64():
        model = wrap_model(tiny_family(name))
        tokens = _tokens()
        trace = record(model, tokens[:N], span=N + M, chunk=13)
        mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
        removed = dict(zip(trace.layers, mask, strict=True))
        where = torch.tensor([0, 1, 9, M - 1])
        selection = Selection(mask, trace.layers)
        [found] = forward_influence(model, trace, tokens[N:], selection, effect="direct", positions=where, chunk=9)
        wanted = []
        for t in (N + where).tolist():
            p, q = (
                brute_force.logits_of_full_pass(model.model, tokens[: t + 1], gone, after=t).logits[0, -1:]
                for gone in (None, removed)
            )
            wanted.append(brute_force.kl_by_definition(p, q)[0])
    kl = torch.stack(wanted)
    return float((found.kl - kl).abs().max()), float(kl.max())


def verified(name: str) -> tuple[float, float]:
    """What `--verify` finds for rules that read attention, keys and the model's own predictions."""
    with Float64():
        model = wrap_model(tiny_family(name))
        [document] = tiny_data.documents(1, N + M)
        rules = ("infokv:window=8", "keydiff", "h2o", "random:per=token")
        sizes = {"context": N, "continuation": M, "protect_last": 8, "budgets": ("0.4",), "draws": 1}
        found = [
            checked
            for seed in range(3)  # a condition each is drawn to be checked
            for checked in measure_document(
                model, document, Request(selectors=rules, verify=True, seed=seed, **sizes), chunk=11
            ).timings["verified"]
        ]
    return max(one["largest_difference"] for one in found), min(one["largest_kl"] for one in found)


def compressed_run(name: str) -> tuple[float, float]:
    """A continuation read under a compressor in chunks, against token by token judged by one full pass."""
    with Float64(), torch.no_grad():
        model = wrap_model(tiny_family(name))
        tokens = _tokens()
        compressor = Contender("adakv", "0.5", EVERY, protect_last=LAST).compressor
        found = model.anatomy.head(CompressedRun(model, compressor, tokens[:N], 0, chunk=4)(tokens[N:]))
        raw = model.model
        with compress(raw, compressor, span=N + M) as cache, watching(raw, cache) as snapshots:
            for part in (tokens[:N], *tokens[N:].split(1)):
                seen = cache.get_seq_length()
                raw(part[None], past_key_values=cache, position_ids=torch.arange(seen, seen + len(part))[None])
        assert cache.stats.compressions >= 3
        return _compared(model, tokens, snapshots, found, N)


def generation(name: str) -> tuple[float, float]:
    """An unmodified `generate` under a compressor, each step's logits against one full pass."""
    with Float64():
        model = wrap_model(tiny_family(name))
        with compress(model.model, "infokv", budget=0.5, every=EVERY, protect_last=LAST) as cache:
            tokens, logits, snapshots = generated(model.model, cache, PROMPT, NEW)
        assert cache.stats.compressions >= 3
        return _compared(model, tokens[:-1], snapshots, logits, PROMPT - 1)


def _compared(model: Model, tokens: Tensor, snapshots: Snapshots, found: Tensor, start: int) -> tuple[float, float]:
    """How far logits after tokens from `start` on are from those of a full pass, and those from the full cache's."""
    sets = snapshots.visible(len(tokens), model.anatomy.kv_heads)

    def visible(layer: int, kv: int, length: int) -> Tensor | None:
        return sets[layer][min(kv, len(sets[layer]) - 1)] if layer in sets else None

    wanted = brute_force.logits_of_full_pass(model.model, tokens, visible=visible).logits[0, start:]
    full = brute_force.logits_of_full_pass(model.model, tokens).logits[0, start:]
    return float((found - wanted).abs().max()), float((full - wanted).abs().max())


WAYS = {"direct": direct, "verify": verified, "compressed run": compressed_run, "generate": generation}
