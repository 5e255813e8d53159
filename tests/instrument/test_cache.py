"""The cache by itself and under model.generate."""

from __future__ import annotations

import brute_force
import pytest
import torch
from tiny import tiny_model
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.instrument import NAME, Instrument
from forward_influence.instrument.selective_layer import SelectiveLayer, indices
from forward_influence.models.loading import wrap_model
from forward_influence.tracing.recorder import record


def filled(tokens: int = 6, heads: int = 2) -> SelectiveLayer:
    layer = SelectiveLayer()
    states = torch.arange(heads * tokens, dtype=torch.float64).reshape(1, heads, tokens, 1).expand(-1, -1, -1, 3)
    layer.update(states, states + 100)
    return layer


def test_indices_are_ascending_and_padded_in_front():
    keep = torch.tensor([[True, False, True, True], [False, False, False, True]])
    order, holes = indices(keep)
    assert order.tolist() == [[0, 2, 3], [0, 0, 3]]
    assert holes is not None
    assert holes.tolist() == [[False, False, False], [True, True, False]]
    even, none = indices(torch.tensor([[True, False], [False, True]]))
    assert even.tolist() == [[0], [1]]
    assert none is None


def test_eviction_keeps_positions_and_reports_seen_and_held():
    layer = filled()
    layer = layer.branch(*indices(torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1]], dtype=torch.bool)), 0)
    assert (layer.seen, layer.held) == (6, 3)
    assert layer.positions().tolist() == [[0, 2, 5], [1, 2, 5]]
    assert layer.get_seq_length() == 6
    assert layer.get_mask_sizes(4) == (7, 3)
    assert layer.get_mask_sizes(torch.arange(4)) == (7, 3)
    assert layer.keys[0, :, :, 0].tolist() == [[0, 2, 5], [7, 8, 11]]
    assert layer.bytes() == 2 * 2 * 3 * 3 * 8, "nothing but what is kept stays allocated"
    layer.update(torch.zeros(1, 2, 2, 3, dtype=torch.float64), torch.zeros(1, 2, 2, 3, dtype=torch.float64))
    assert layer.positions().tolist() == [[0, 2, 5, 6, 7], [1, 2, 5, 6, 7]]
    layer = layer.branch(*indices(torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)), 0)
    assert layer.positions().tolist() == [[2, 7], [1, 6]]


@pytest.mark.parametrize("ragged", ["heads", "layers"])
def test_a_ragged_cache_needs_an_instrument(ragged):
    """Outside one, the model's single mask would let heads see padding: wrong logits without a word."""
    model = tiny_model("llama")
    tokens = torch.arange(3, 33)
    trace = record(wrap_model(model), tokens, span=40)
    keep = torch.ones(trace.shape, dtype=torch.bool)
    keep[0, 0, :10] = False
    if ragged == "layers":
        keep[0, 1, :10] = False
    with pytest.raises(UsageError, match="run the model inside `with Instrument"), torch.no_grad():
        model(tokens[None, :4], past_key_values=trace.cache.branch(keep, room=8))
    even = torch.rand(trace.shape, generator=torch.Generator().manual_seed(1)).argsort(-1) < 12
    with torch.no_grad():
        found = model(tokens[None, :4], past_key_values=trace.cache.branch(even, room=8)).logits
        with Instrument(model, cache=(cache := trace.cache.branch(even, room=8))):
            wanted = model(tokens[None, :4], past_key_values=cache).logits
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_ragged_heads_mark_padding():
    layer = filled()
    layer = layer.branch(*indices(torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)), 0)
    assert layer.positions().tolist() == [[0, 1, 2, 3], [-1, -1, -1, 5]]
    own, mask = layer.own_mask(1)
    assert own
    assert mask is not None
    assert mask[0, :, 0].tolist() == [[True] * 4, [False, False, False, True]]


def test_a_branch_leaves_the_original_alone():
    layer = filled()
    other = layer.branch(torch.tensor([[0, 1], [4, 5]]), None, room=3)
    other.update(torch.full((1, 2, 1, 3), 9.0, dtype=torch.float64), torch.zeros(1, 2, 1, 3, dtype=torch.float64))
    assert (layer.seen, layer.held, other.seen, other.held) == (6, 6, 7, 3)
    assert float(layer.keys.max()) == 11.0


def test_crop_goes_back_only_to_the_last_eviction():
    layer = filled()
    layer.crop(-2)
    assert (layer.seen, layer.held) == (4, 4)
    layer = layer.branch(*indices(torch.ones(2, 4, dtype=torch.bool)), 0)
    with pytest.raises(UsageError, match="before its last eviction"):
        layer.crop(-1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda layer: layer.reorder_cache(torch.tensor([0])), "beam search"),
        (lambda layer: layer.batch_repeat_interleave(2), "one sequence"),
        (lambda layer: layer.batch_select_indices(torch.tensor([0])), "one sequence"),
        (lambda layer: layer.update(torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 3)), "one sequence"),
        (lambda layer: SelectiveLayer().branch(None, None, 0), "seen nothing"),
    ],
)
def test_what_needs_several_sequences_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call(filled())


def test_assisted_decoding_is_refused():
    with pytest.raises(UsageError, match="prompt lookup"):
        SelectiveCache(tiny_model("llama").config).crop(-1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("ragged", [False, True])
def test_generate_equals_greedy_decoding_under_the_same_mask(family, ragged):
    model = tiny_model(family)
    tokens = torch.randint(3, 97, (30,), generator=torch.Generator().manual_seed(1))
    trace = record(wrap_model(model), tokens[:-1], span=60)
    generator = torch.Generator().manual_seed(2)
    if ragged:
        keep = torch.rand(trace.shape, generator=generator) < 0.5
    else:
        keep = torch.rand(trace.shape, generator=generator).argsort(-1) < 12
    cache = trace.cache.branch(keep, room=0)
    with Instrument(model, cache=cache):
        written = model.generate(
            tokens[None],
            attention_mask=torch.ones(1, 30, dtype=torch.int64),
            past_key_values=cache,
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
        )[0]
    removed = {layer: ~keep[i] for i, layer in enumerate(trace.layers)}
    greedy = tokens.clone()
    for _ in range(12):
        logits = brute_force.logits_of_full_pass(model, greedy, removed, after=29).logits[0, -1]
        logits[2] = float("-inf")  # min_new_tokens forbids the end
        greedy = torch.cat([greedy, logits.argmax()[None]])
    assert written.tolist() == greedy.tolist()


def test_unregistered_mask_would_be_wrong_and_ours_is_registered():
    with Instrument(tiny_model("llama")):
        assert AttentionMaskInterface()[NAME] is sdpa_mask
    assert not any(word in NAME for word in ("sdpa", "flash", "flex"))
