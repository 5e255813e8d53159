"""Compression inside an unmodified generate: what is held, where tokens stand, what they see."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_model
from visible_sets import full_pass, generated, prompt, settings, watching

from forward_influence.compression import NAMED, Stats, compress, compressor_names, make_compressor
from forward_influence.instrument.instrument import NAME

PROMPT, NEW, EVERY, LAST = 70, 46, 10, 8  # as visible_sets generates


def judged(model, tokens, snapshots, heads: int = 2) -> torch.Tensor:
    """Logits of each step by one full pass; the last token was written, but never read."""
    read = tokens[:-1]
    return full_pass(model, read, snapshots.visible(len(read), heads)).logits[PROMPT - 1 :]


CASES = [
    ("infokv", "rule"),
    ("infokv", "layers"),
    ("infokv:layers=adaptive", "rule"),
    ("infokv", "heads"),
    ("adakv", None),
    ("attention", "pyramid"),
    ("h2o", None),
    ("h2o", "heads"),
    ("tova", "layers"),
    ("rkv", None),
    ("rpc", None),
    ("streamingllm", None),
    ("expected-attention", "heads"),
    ("random", None),
    ("random-protected", None),
    ("observed-attention", "layers"),
    ("keydiff", "heads"),
    ("knorm:per=token", None),
    ("surprisal", "heads"),
    ("entropy:alignment=next", "layers"),
    ("mix:0.9*attention+0.1*entropy", "layers"),
    ("position-matched", "heads"),
    ("prompt-recent", None),
    ("compactor:chunk=8", "heads"),
    ("triattention", "heads"),
    ("lazy-eviction:alpha=0.05,window=8", "heads"),
    ("criticalkv:of=attention(window=8,heads=adaptive)", None),
    ("criticalkv:of=knorm", "heads"),
    ("chunkkv:of=knorm,length=5", "layers"),
    ("vase", "layers"),
]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_every_query_sees_what_is_held_at_its_right_position(name, scheme):
    """Logits of each step against a full float64 pass with the visible sets written out, through four compressions."""
    model = tiny_model("llama")
    with compress(model, name, budget=0.4, every=EVERY, scheme=scheme, protect_last=LAST) as cache:
        tokens, logits, snapshots = generated(model, cache)
    assert cache.stats.compressions >= 4
    assert cache.stats.held.double().mean() < len(tokens) - 1 - 4, "something was evicted"
    wanted = judged(model, tokens, snapshots)
    torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt_neox", "phi3"])
@pytest.mark.parametrize("scheme", ["uniform", "layers", "heads"])
def test_other_architectures(family, scheme):
    model = tiny_model(family)
    with compress(model, "infokv", budget=0.4, every=EVERY, scheme=scheme, protect_last=LAST) as cache:
        tokens, logits, snapshots = generated(model, cache)
    assert cache.stats.compressions == 5
    wanted = judged(model, tokens, snapshots, 4 if family == "gpt_neox" else 2)
    torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=0)


def test_a_long_prompt_is_read_in_chunks_and_nothing_changes(monkeypatch):
    """The prompt in one call, chunk by chunk inside: logits of every prompt token, then compressed decoding."""
    monkeypatch.setattr("forward_influence.compression.passes.CHUNK", 16)
    model = tiny_model("llama")
    tokens = prompt(61)[0]
    with (
        torch.no_grad(),
        compress(model, "infokv", budget=0.3, protect_last=LAST, every=4) as cache,
        watching(model, cache) as snapshots,
    ):
        whole = model(tokens[None, :50], past_key_values=cache).logits[0]
        parts = [model(t[None], past_key_values=cache).logits[0] for t in tokens[50:].split(4)]
    assert [seen for seen, _ in snapshots.steps] == [50, 54, 58, 61]
    wanted = full_pass(model, tokens, snapshots.visible(61, 2)).logits
    torch.testing.assert_close(torch.cat([whole, *parts]), wanted, atol=1e-9, rtol=0)
    assert [e.seen for e in cache.stats.events] == [50, 54, 58]


def test_question_after_a_context_compressed_unevenly():
    """Several tokens at once over layers of which some hold everything and others little."""
    model = tiny_model("llama")
    tokens = prompt(80)[0]
    with (
        torch.no_grad(),
        compress(model, "infokv:layers=adaptive", budget=0.9, protect_last=2) as cache,
        watching(model, cache) as snapshots,
    ):
        parts = [model(t[None], past_key_values=cache).logits[0] for t in tokens.split((60, 20))]
    held = [len(rows[0]) for rows in snapshots.steps[0][1].values()]
    assert len(set(held)) > 1
    wanted = full_pass(model, tokens, snapshots.visible(80, 2)).logits
    torch.testing.assert_close(torch.cat(parts), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("name", ["full", "infokv", "h2o", "attention:heads=adaptive"])
def test_budget_one_is_plain_generate_token_for_token(family, name):
    model = tiny_model(family)
    plain = model.generate(prompt(), **settings())
    with compress(model, name, budget=1.0, every=EVERY) as cache:
        ours = model.generate(prompt(), past_key_values=cache, **settings())
    assert ours.tolist() == plain.tolist()
    assert cache.stats.held.unique().tolist() == [PROMPT + NEW - 1]
    torch.manual_seed(5)
    sampling = {**settings(), "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    plain = model.generate(prompt(), **sampling)
    torch.manual_seed(5)
    with compress(model, name, budget="1.0", every=EVERY) as cache:
        assert model.generate(prompt(), past_key_values=cache, **sampling).tolist() == plain.tolist()


def held_at(stats: Stats) -> list[tuple[int, list[list[int]]]]:
    return [(event.seen, event.held.tolist()) for event in stats.events]


#: These have budgets of another kind, look ahead, or compress a prompt only.
OTHERS = ("full", "rpc", "random-protected", "prompt-recent", "oracle", "kvzip", "kvzip-plus")


@pytest.mark.parametrize("name", [n for n in compressor_names() if n not in OTHERS])
@pytest.mark.parametrize("budget", ["0.3", "24"])
def test_held_is_exactly_what_the_budget_says(name, budget):
    """After every compression: in every layer and head where budgets are uniform, on average where they are not."""
    spec = {"mix": "mix:0.5*attention+0.5*entropy", "product": "product:attention*entropy"}.get(name, name)
    model = tiny_model("llama")
    with compress(model, spec, budget=budget, every=EVERY, protect_last=LAST) as cache:
        model.generate(prompt(), past_key_values=cache, **settings())
    assert [event.seen for event in cache.stats.events] == [70, 80, 90, 100, 110]
    even = name not in ("adakv", "expected-attention-adakv")
    for event in cache.stats.events:
        kept = math.floor(0.3 * event.seen + 1e-9) if budget == "0.3" else 24
        assert int(event.held.sum()) == kept * 6
        if even:
            assert event.held.unique().tolist() == [kept]
    assert (cache.stats.held == cache.stats.events[-1].held + 115 - 110).all()


@pytest.mark.parametrize("scheme", ["pyramid", "layers", "heads", "recent", "uniform"])
@pytest.mark.parametrize("name", ["infokv", "knorm"])
def test_schemes_share_the_same_total(name, scheme):
    model = tiny_model("llama", num_hidden_layers=4)
    with compress(model, name, budget=0.5, every=EVERY, scheme=scheme, protect_first=2, protect_last=2) as cache:
        model.generate(prompt(), past_key_values=cache, **settings())
    for event in cache.stats.events:
        kept = event.seen // 2
        assert int(event.held.sum()) == kept * 8
        assert int(event.held.min()) >= 5, "pinned tokens and one more"
        by_layer = event.held.sum(1).tolist()
        if scheme in ("recent", "uniform"):
            assert event.held.unique().tolist() == [kept]
        if scheme == "heads":
            assert by_layer == [2 * kept] * 4
        if scheme in ("pyramid", "layers"):
            assert (event.held[:, 0] == event.held[:, 1]).all()
    uneven = cache.stats.events[0].held
    if scheme == "pyramid":
        assert uneven[:, 0].tolist() == sorted(uneven[:, 0].tolist(), reverse=True)
        assert uneven[0, 0] > uneven[-1, 0] + 10
    if scheme in ("layers", "heads"):
        assert len(uneven.unique()) > 1


@pytest.mark.parametrize(
    ("prefill", "every", "seen"),
    [(True, None, [70]), (True, 20, [70, 90, 110]), (False, 20, [90, 110]), (False, 45, [115]), (False, 46, [])],
)
def test_schedules(prefill, every, seen):
    model = tiny_model("llama")
    with compress(model, "attention", budget=0.5, prefill=prefill, every=every, protect_last=LAST) as cache:
        model.generate(prompt(), past_key_values=cache, **settings())
    assert held_at(cache.stats) == [(s, [[s // 2] * 2] * 3) for s in seen]


def test_pinned_tokens_are_always_held():
    model = tiny_model("llama")
    with compress(model, "knorm", budget=30, every=5, protect_first=3, protect_last=12) as cache:
        _, _, snapshots = generated(model, cache)
    compressed = [s for s in snapshots.steps if s[0] in {e.seen for e in cache.stats.events}]
    assert len(compressed) == 10
    for seen, held in compressed:
        for heads in held.values():
            for positions in heads:
                assert positions == sorted(set(positions))
                assert positions[:3] == [0, 1, 2]
                assert positions[-12:] == list(range(seen - 12, seen))


def test_streaming_still_holds_its_sinks_after_the_tenth_compression():
    model = tiny_model("llama")
    with compress(model, "streamingllm", budget=20, every=4, protect_first=0) as cache:
        generated(model, cache)
    assert cache.stats.compressions == 12
    for layer in cache.layers:
        kept = layer.positions()[:, :20].tolist()
        assert kept == [[0, 1, 2, 3, *range(98, 114)]] * 2


def test_rpc_keeps_the_prompt_whole_on_its_own_schedule():
    """held = prompt + (i+1) P / c + R, here P = 12, c = 3, R = 5."""
    model = tiny_model("llama")
    with compress(model, "rpc:window=5", budget=1 / 3, every=12) as cache:
        _, _, snapshots = generated(model, cache, new=50)
    assert [e.seen for e in cache.stats.events] == [70, 82, 94, 106, 118]
    assert [e.held.unique().tolist() for e in cache.stats.events] == [[70], [79], [83], [87], [91]]
    for seen, held in snapshots.steps:
        for heads in held.values():
            assert all(positions[:70] == list(range(70)) for positions in heads)
            assert all(positions[-5:] == list(range(seen - 5, seen)) for positions in heads)


def test_random_protected_keeps_the_prompt_and_draws_anew():
    model = tiny_model("llama")
    found = []
    for seed in (0, 0, 1):
        with compress(model, "random-protected", budget=0.5, every=10, seed=seed) as cache:
            generated(model, cache)
        found.append([layer.positions().tolist() for layer in cache.layers])
        assert cache.stats.events[-1].held.unique().tolist() == [70 + 20]
        assert all(row[:70] == list(range(70)) for layer in found[-1] for row in layer)
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0][0] != found[0][1], "layers draw for themselves"


@pytest.mark.parametrize("name", ["infokv", "attention", "rkv", "rpc", "pyramid", "mix:0.5*attention+0.5*entropy"])
def test_a_small_cache_shrinks_the_window_instead_of_failing(name):
    model = tiny_model("llama")
    for budget in (1, 2, 3, 9, 20):
        with compress(model, name, budget=budget, every=3) as cache:
            tokens, logits, snapshots = generated(model, cache, new=20)
        if name != "rpc":
            assert [e.held.unique().tolist() for e in cache.stats.events] == [[budget]] * 7
        wanted = judged(model, tokens, snapshots)
        torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=0)
    pins = make_compressor(name if name != "rpc" else "attention", 20).pinned(20, PROMPT)
    assert pins == (4, 10)


@pytest.mark.parametrize("scheme", ["uniform", "recent"])
@pytest.mark.parametrize("per", ["entry", "layer", "token"])
def test_infokv_with_alpha_one_is_the_attention_compressor(scheme, per):
    model = tiny_model("llama")
    found = []
    for name in (f"infokv:alpha=1,per={per}", f"attention:per={per}"):
        with compress(model, name, budget=0.4, every=EVERY, scheme=scheme, protect_last=LAST) as cache:
            tokens, _, snapshots = generated(model, cache)
        found.append((tokens.tolist(), snapshots.steps))
    assert found[0] == found[1]
    assert cache.stats.compressions == 5


def test_nothing_leaks_between_two_uses():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    plain = model.generate(prompt(), **settings())

    def use(seed: int) -> tuple:
        with compress(model, "infokv", budget=0.4, every=EVERY, protect_last=LAST) as cache:
            out = model.generate(prompt(seed=seed), past_key_values=cache, **settings())
        return out.tolist(), held_at(cache.stats), [layer.positions().tolist() for layer in cache.layers]

    first = use(1)
    assert use(2) != first
    assert use(1) == first
    assert model.generate(prompt(), **settings()).tolist() == plain.tolist()
    assert model.config._attn_implementation == before != NAME
    assert hooks == {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}


@pytest.mark.parametrize("name", ["infokv", "h2o", "entropy", "attention"])
def test_memory_of_signals_is_bounded_by_what_is_held(name):
    """After the last compression no signal is held of a token that no layer and head holds."""
    model = tiny_model("llama")
    with compress(model, name, budget=20, every=5, protect_last=4) as cache:
        model.generate(prompt(), past_key_values=cache, **settings(new=81))
        recorder = cache._rows.rows[0].recorder
        held = {int(p) for layer in cache.layers for p in layer.positions().flatten()}
        columns, recordings = recorder.columns, recorder.recordings
        assert len(columns._known(recorder.seen)) == len(held)
        assert {columns.column(n).shape[-1] for n in list(columns._columns)} == {len(held)}
        assert set(recordings) == {need.removesuffix(":64") for need in cache.compressor.signals}
        if "window" in recordings:
            assert all(rows._store.shape[1] <= 128 for rows in recordings["window"]._last.values())
        if "accumulated_attention" in recordings:
            totals = recordings["accumulated_attention"].totals.values()
            assert [total.shape for total in totals] == [(2, cache.layers[0].held)] * len(cache.layers)


def test_published_compressors_have_names_and_a_line_each():
    assert {"snapkv", "pyramidkv", "adakv", "streamingllm", "h2o", "rpc", "random-protected", "full"} <= set(NAMED)
    assert {"infokv", "rkv", "tova", "expected-attention", "random"} <= set(compressor_names())
    assert all(named.about for named in NAMED.values())


def test_a_pyramid_that_falls_back_says_so():
    model = tiny_model("llama")
    for name, scheme in (("pyramidkv", None), ("attention", "pyramid")):
        with compress(model, name, budget=0.3, every=20, scheme=scheme) as cache:
            model.generate(prompt(), past_key_values=cache, **settings())
        assert len(cache.stats.remarks) == cache.stats.compressions == 3
        assert "so every layer holds 21" in cache.stats.remarks[0]
