"""Rotary embeddings that depend on a sequence's length: every way of running it equals one unchunked pass."""

from __future__ import annotations

import brute_force
import pytest
import torch
from float64 import Float64
from tiny import COMMON, tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.compression import compress, make_compressor
from forward_influence.compression.fidelity import CompressedRun
from forward_influence.compression.generation import generate
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.full_run import run_in_full
from forward_influence.influence.masked import masked_influence
from forward_influence.influence.measure import forward_influence
from forward_influence.instrument.architecture import examine
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.positions import positions_of
from forward_influence.instrument.rotary_span import changes_with_length, depends_on_length, reset
from forward_influence.models.loading import Model, wrap_model
from forward_influence.selectors import final_scores, parse_selector
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import ready_rotation, record
from forward_influence.utils.tokenization import encode

#: Context and span lie on either side of the border; 43 tokens, as many as a model is examined with, lie before it.
BORDER, N, SPAN = 50, 46, 70
HALF = COMMON["hidden_size"] // COMMON["num_attention_heads"] // 2
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [1.5 + i for i in range(HALF)],
    "original_max_position_embeddings": BORDER,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
MODELS: dict[str, tuple[str, dict]] = {
    "phi3 longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": BORDER}),
    "llama longrope": ("llama", {"rope_parameters": LONG}),
    "llama dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": BORDER}),
    "qwen3 dynamic": ("qwen3", {"rope_parameters": DYNAMIC, "max_position_embeddings": BORDER}),
    "gemma3 longrope in full layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LONG, "sliding_attention": PLAIN}},
    ),
}
_made: dict[str, PreTrainedModel] = {}


def changing(name: str, **more: int) -> PreTrainedModel:
    key = f"{name}{more or ''}"
    if key not in _made:
        family, changes = MODELS[name]
        changes = changes | more
        with pytest.MonkeyPatch.context() as patch:  # dictionaries cannot be keys of its cache
            patch.setattr("tiny._cached", __import__("tiny")._cached.__wrapped__)
            _made[key] = tiny_model(family, **changes)
    return _made[key]


def tokens_of(length: int = SPAN) -> Tensor:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(5))


def one_pass(
    model: PreTrainedModel, tokens: Tensor, removed: dict[int, Tensor] | None = None, after: int = 0
) -> Tensor:
    """Logits of the model's own, unchunked, as if it were new."""
    reset(model)
    with Float64():
        logits = brute_force.logits_of_full_pass(model, tokens, removed, after=after).logits[0]
    reset(model)
    return logits


@pytest.fixture(params=list(MODELS))
def model(request) -> PreTrainedModel:
    return changing(request.param)


def selection_of(model: Model, mask_seed: int = 0) -> Selection:
    trace = record(model, tokens_of()[:N], span=SPAN)
    mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(mask_seed)) < 0.4
    return Selection(mask, trace.layers)


def test_these_models_change_at_the_border_and_plain_ones_do_not(model):
    assert depends_on_length(model)
    assert not changes_with_length(model, 20, BORDER)
    assert changes_with_length(model, 20, BORDER + 1)
    assert changes_with_length(model, 20, SPAN)
    for family in ("llama", "phi3", "gemma3_text", "gpt_neox", "gpt_oss"):
        assert not depends_on_length(tiny_model(family))
    static = {**LONG, "rope_type": "yarn", "factor": 4.0}
    yarn = {k: v for k, v in static.items() if k not in ("short_factor", "long_factor")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny._cached", __import__("tiny")._cached.__wrapped__)
        assert not depends_on_length(tiny_model("llama", rope_parameters=yarn))


def test_the_models_own_chunks_are_wrong_so_that_these_tests_can_fail(model):
    """What transformers does with a text in two chunks, which no probe of 43 tokens shows."""
    from transformers import DynamicCache

    tokens, cache = tokens_of(), DynamicCache(config=model.config)
    reset(model)
    with torch.no_grad(), Float64():
        parts = [model(part[None], past_key_values=cache).logits[0] for part in tokens.split(N)]
    assert float((torch.cat(parts) - one_pass(model, tokens)).abs().max()) > 0.05


@pytest.mark.parametrize("chunk", [1, 9, 64, 512])
def test_recording_and_the_full_run_equal_one_pass_at_every_chunk_length(model, chunk):
    wrapped, tokens = wrap_model(model), tokens_of()
    with Float64():
        trace = record(wrapped, tokens[:N], span=SPAN, chunk=chunk)
        found = run_in_full(wrapped, trace, tokens[N:], chunk, False)
        logits = wrapped.anatomy.head(found.hidden)
    torch.testing.assert_close(logits, one_pass(model, tokens)[N:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("span", [BORDER - 1, BORDER, BORDER + 1])
def test_exactly_at_the_border(model, span):
    wrapped, tokens = wrap_model(model), tokens_of(span)
    with Float64():
        trace = record(wrapped, tokens[:N], span=span, chunk=20)
        logits = wrapped.anatomy.head(run_in_full(wrapped, trace, tokens[N:], 20, False).hidden)
    torch.testing.assert_close(logits, one_pass(model, tokens)[N:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize("effect", ["total", "direct"])
def test_influence_equals_brute_force(model, effect, mode):
    wrapped, tokens = wrap_model(model), tokens_of()
    selection = selection_of(wrapped)
    removed = {layer: ~selection.kept(mode)[i] for i, layer in enumerate(selection.layers)}
    with Float64():
        trace = record(wrapped, tokens[:N], span=SPAN, chunk=20)
        [found] = forward_influence(wrapped, trace, tokens[N:], selection, mode=mode, effect=effect, chunk=9)
        masked = masked_influence(wrapped, tokens, trace, selection, mode)
    full = one_pass(model, tokens)[N:]
    if effect == "total":
        other = one_pass(model, tokens, removed, after=N)[N:]
        torch.testing.assert_close(masked.kl, found.kl, atol=1e-10, rtol=0)
    else:
        other = torch.stack([one_pass(model, tokens, removed, after=t)[t] for t in range(N, SPAN)])
    wanted = brute_force.kl_by_definition(full, other)
    assert float(wanted.max()) > 1e-3
    torch.testing.assert_close(found.kl, wanted, atol=1e-10, rtol=0)


def test_a_compressed_run_that_keeps_everything_equals_one_pass(model):
    wrapped, tokens = wrap_model(model), tokens_of()
    run = CompressedRun(wrapped, make_compressor("recent", 1000, every=7), tokens[:N], 0, 9)
    with Float64():
        logits = wrapped.anatomy.head(run(tokens[N:]))
    torch.testing.assert_close(logits, one_pass(model, tokens)[N:], atol=1e-10, rtol=0)


def test_turns_have_the_factors_of_the_span_and_go_on_with_them_beyond_it(model):
    """Turned by a, then by b, is turned by a + b, also where a + b lies beyond the span; one call on all positions."""
    wrapped, head = wrap_model(model), torch.randn(2, 1, 8, dtype=torch.float64)
    layer = wrapped.anatomy.full_layers(SPAN)[0]
    with Float64():
        rotation = ready_rotation(model, tokens_of()[:1], wrapped.anatomy.full_layers(SPAN), SPAN)
        at = {p: rotation.at(layer, torch.tensor([p]), head) for p in (0, 5, 21, SPAN - 3, SPAN + 18)}
        whole = rotation.at(layer, torch.arange(SPAN), head)
    for p in (5, 21, SPAN - 3):
        torch.testing.assert_close(at[p].cos[0], whole.cos[p], atol=1e-12, rtol=0)
    both = at[SPAN - 3].apply(head)
    one_by_one = at[21].apply(at[0].undo(both))
    torch.testing.assert_close(at[SPAN + 18].apply(head), one_by_one, atol=1e-10, rtol=0)
    short = record(wrapped, tokens_of()[:N], span=BORDER, rotation=True)
    other = short.rotation.at(layer, torch.tensor([21]), head)
    assert float((other.cos - at[21].cos).abs().max()) > 0.01


@pytest.mark.parametrize("rule", ["expected-attention", "infokv:window=8", "h2o"])
def test_rules_score_the_same_whatever_the_chunk(model, rule):
    wrapped, tokens, selector = wrap_model(model), tokens_of(), parse_selector(rule)
    needs = Needs.merge(selector.needs)
    with Float64():
        one, other = (
            final_scores(selector, record(wrapped, tokens[:N], needs, span=SPAN, first=4, last=N - 8, chunk=chunk))
            for chunk in (11, 512)
        )
    torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)


def test_a_longer_document_leaves_no_trace_in_the_next(model):
    """Dynamic scaling keeps the longest length that it has seen."""
    wrapped, tokens = wrap_model(model), tokens_of()
    trace = record(wrapped, tokens[:N], span=BORDER)
    before = trace.keys(0).clone()
    record(wrapped, tokens, span=SPAN)
    assert torch.equal(record(wrapped, tokens[:N], span=BORDER).keys(0), before)


def test_without_a_span_it_is_refused_in_words(model):
    with pytest.raises(ForwardInfluenceError, match="depends on a sequence's length; name its span"):
        Instrument(model).__enter__()
    with pytest.raises(UsageError, match=r"depends on how long a sequence gets; say so with span=N"):
        compress(model, "recent", 0.5).__enter__()
    wrapped, tokens = wrap_model(model), tokens_of()
    trace = record(wrapped, tokens[:N])
    with pytest.raises(UsageError, match=rf"has other factors; record with span={SPAN}"):
        forward_influence(wrapped, trace, tokens[N:], selection_of(wrapped))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["llama longrope", "llama dynamic", "qwen3 dynamic"])
def test_generate_uses_the_factors_of_prompt_and_answer_together(name):
    """Greedy tokens over the border are those of unchunked passes as long as all of them, one pass a token."""
    model, tokenizer, new = changing(name, vocab_size=VOCABULARY), byte_tokenizer(), 24
    prompt = "the tide turns twice a day, and ships wait"
    wrapped = wrap_model(model, tokenizer, "tiny")
    tokens = encode(tokenizer, prompt)
    assert len(tokens) < BORDER < len(tokens) + new
    shown: list[int] = list(tokens)
    for _ in range(new):
        filled = torch.tensor(shown + [3] * (len(tokens) + new - len(shown)))  # what comes later is not seen
        shown.append(int(one_pass(model, filled)[len(shown) - 1].argmax()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.generation_config, "eos_token_id", None)
        generated = generate(wrapped, prompt, make_compressor("full"), max_new_tokens=new, chat=False)
    assert generated.text == tokenizer.decode(shown[len(tokens) :], skip_special_tokens=True)


def test_dynamic_scaling_reaches_beyond_the_positions_of_training():
    assert positions_of(changing("llama dynamic").config) == 4 * BORDER
    assert wrap_model(changing("llama dynamic")).anatomy.positions == 4 * BORDER
    assert positions_of(changing("phi3 longrope").config) == COMMON["max_position_embeddings"]


def test_length_that_shows_elsewhere_than_in_the_rotary_embedding_is_refused(monkeypatch):
    """An output that is scaled once a pass gets long: 43 tokens do not show it."""
    model = tiny_model("llama", seed=3)
    layer = model.model.layers[0]

    def scaled(module, inputs, named, output):
        factor = 1.0 if int(named["position_ids"].max()) < 100 else 1.5
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    handle = layer.register_forward_hook(scaled, with_kwargs=True)
    try:
        with pytest.raises(
            UsageError, match=r"changes when a text gets \d+ tokens long, and not by its rotary embedding"
        ):
            examine(model)
    finally:
        handle.remove()
    examine(model)
