"""The engine against brute force in float64, on tiny random models of several architectures."""

from __future__ import annotations

import brute_force
import pytest
import torch
from tiny import FAMILIES, PROMISED, tiny_model

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence.ablation import Removal, removal, shuffled
from forward_influence.influence.masked import masked_influence
from forward_influence.influence.measure import forward_influence, measure_ablations
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

N, M = 40, 23


def setup_case(family: str, dtype: torch.dtype = torch.float64, chunk: int = 13, **changes):
    model = wrap_model(tiny_model(family, dtype, **changes))
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 97, (N + M,), generator=generator)
    trace = record(model, tokens[:N], span=N + M, chunk=chunk)
    return model, tokens, trace


def random_selection(trace, seed: int = 0, equal: bool = False) -> Selection:
    generator = torch.Generator().manual_seed(seed)
    if equal:
        order = torch.rand(trace.shape, generator=generator).argsort(-1)
        return Selection(order < 11, trace.layers)
    return Selection(torch.rand(trace.shape, generator=generator) < 0.4, trace.layers)


def removed_by(selection: Selection, mode: str) -> dict[int, torch.Tensor]:
    return {layer: ~selection.kept(mode)[i] for i, layer in enumerate(selection.layers)}


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal-counts", "ragged"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_brute_force(family, equal, mode):
    model, tokens, trace = setup_case(family)
    selection = random_selection(trace, equal=equal)
    kl, nll_delta, top1 = brute_force.influence(model.model, tokens, N, removed_by(selection, mode))
    [found] = forward_influence(model, trace, tokens[N:], selection, mode=mode, chunk=9)
    assert float(kl.max()) > 1e-3, "the reference itself must see an effect"
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.nll_delta[:-1], nll_delta, atol=1e-10, rtol=0)
    assert torch.isnan(found.nll_delta[-1])
    assert torch.equal(found.top1_changed, top1)


def test_gemma3_ablates_only_full_layers():
    _, _, trace = setup_case("gemma3_text")
    assert trace.layers == (1, 2)


def test_mistral_window_that_covers_the_sequence_is_no_window():
    model, tokens, trace = setup_case("mistral", sliding_window=N + M)
    assert trace.layers == (0, 1, 2)
    selection = random_selection(trace)
    kl, _, _ = brute_force.influence(model.model, tokens, N, removed_by(selection, "drop"))
    [found] = forward_influence(model, trace, tokens[N:], selection)
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)


def test_model_with_only_short_windows_is_refused():
    model = wrap_model(tiny_model("mistral", sliding_window=16))
    with pytest.raises(UsageError, match="sliding window"):
        record(model, torch.arange(3, 43), span=N + M)


@pytest.mark.parametrize("family", PROMISED)
def test_empty_selection_is_exactly_zero_and_shuffled_order_is_rounding(family):
    model, tokens, trace = setup_case(family)
    empty = Selection(torch.zeros(trace.shape, dtype=torch.bool), trace.layers)
    [found] = forward_influence(model, trace, tokens[N:], empty)
    assert found.kl.tolist() == [0.0] * M
    assert found.nll_delta[:-1].tolist() == [0.0] * (M - 1)
    assert not found.top1_changed.any()
    _, [floor] = measure_ablations(model, trace, tokens[N:], [shuffled(trace, M)])
    assert float(floor.kl.max()) < 1e-20


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_chunks_and_order_of_conditions_change_nothing(family):
    model, tokens, trace = setup_case(family)
    selections = [random_selection(trace, seed) for seed in range(3)]
    results = forward_influence(model, trace, tokens[N:], selections, chunk=5)
    _, _, other_trace = setup_case(family, chunk=64)
    backwards = forward_influence(model, other_trace, tokens[N:], selections[::-1], chunk=64)[::-1]
    for one, two in zip(results, backwards, strict=True):
        torch.testing.assert_close(one.kl, two.kl, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", PROMISED)
def test_float32_within_1e_5_of_float64(family):
    model, tokens, trace = setup_case(family)
    narrow, _, narrow_trace = setup_case(family, torch.float32)
    selection = random_selection(trace)
    [wide] = forward_influence(model, trace, tokens[N:], selection)
    [found] = forward_influence(narrow, narrow_trace, tokens[N:], selection)
    torch.testing.assert_close(found.kl.double(), wide.kl, atol=1e-5, rtol=0)


def test_a_context_recorded_for_less_than_is_measured_is_refused_where_a_window_lies_between():
    """A window that covers what was announced counts as none: then it must cover what comes, too."""
    model = wrap_model(tiny_model("mistral", sliding_window=50))
    tokens = torch.randint(3, 97, (63,), generator=torch.Generator().manual_seed(4))
    nothing = Selection(torch.zeros(3, 2, 40, dtype=torch.bool), (0, 1, 2))
    with pytest.raises(UsageError, match=r"recorded for 40 tokens, .* are 63, .*; record with span=63"):
        forward_influence(model, record(model, tokens[:40]), tokens[40:], nothing)
    # announced, no layer is full at 63 tokens; at 45 all are, and the same selection is measured
    with pytest.raises(UsageError, match="every layer has a sliding window"):
        record(model, tokens[:40], span=63)
    forward_influence(model, record(model, tokens[:40]), tokens[40:45], nothing)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 2, 3], "is a list; give a tensor"),
        (torch.zeros(2, 3, dtype=torch.int64), r"shape \(2, 3\)"),
        (torch.zeros(0, dtype=torch.int64), r"shape \(0,\)"),
        (torch.rand(5), "float32"),
        (torch.zeros(600, dtype=torch.int64), "600 tokens, but the model was made for 512"),
    ],
)
def test_tokens_that_are_none_are_refused_in_words(tokens, words):
    with pytest.raises(UsageError, match=words):
        record(wrap_model(tiny_model("llama")), tokens)


def test_what_is_not_a_model_and_positions_that_are_none_are_refused_in_words():
    model, tokens, trace = setup_case("llama")
    with pytest.raises(UsageError, match="use load_model or wrap_model"):
        record(model.model, tokens)
    selection = random_selection(trace)
    for wrong in ([3, 1], [0, 0], [M], [-1], []):
        with pytest.raises(UsageError, match="ascending, each once"):
            forward_influence(model, trace, tokens[N:], selection, positions=torch.tensor(wrong, dtype=torch.int64))
    with pytest.raises(UsageError, match="the continuation has shape"):
        forward_influence(model, trace, tokens[:0], selection)


def test_inference_mode_is_no_obstacle():
    model, tokens, trace = setup_case("gemma2")
    [wanted] = forward_influence(model, trace, tokens[N:], random_selection(trace))
    with torch.inference_mode():
        again = record(model, tokens[:N], span=len(tokens))
        [found] = forward_influence(model, again, tokens[N:], random_selection(again))
    assert torch.equal(found.kl, wanted.kl)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_masked_pass_agrees(family):
    model, tokens, trace = setup_case(family)
    selection = random_selection(trace)
    [found] = forward_influence(model, trace, tokens[N:], selection)
    other = masked_influence(model, tokens, trace, selection, "drop")
    torch.testing.assert_close(found.kl, other.kl, atol=1e-12, rtol=0)


def test_shorter_ablation_equals_the_beginning_of_a_longer_one():
    model, tokens, trace = setup_case("llama")
    selection = random_selection(trace)
    both = [removal(trace, selection, "drop", length, str(length)) for length in (M, 7)]
    _, [long, short] = measure_ablations(model, trace, tokens[N:], both, chunk=4)
    assert short.kl.shape == (7,)
    torch.testing.assert_close(short.kl, long.kl[:7], atol=1e-12, rtol=0)


def test_baseline_nll_is_the_models_own():
    model, tokens, trace = setup_case("qwen3")
    nll, _ = measure_ablations(model, trace, tokens[N:], [])
    logits = brute_force.logits_of_full_pass(model.model, tokens).logits[0, N:-1]
    wanted = torch.nn.functional.cross_entropy(logits, tokens[N + 1 :], reduction="none")
    torch.testing.assert_close(nll[:-1], wanted, atol=1e-10, rtol=0)
    assert torch.isnan(nll[-1])


def test_an_ablation_that_changes_nothing_is_an_error():
    model, tokens, trace = setup_case("llama")
    idle = Removal("idle", M, branch=lambda room: trace.cache.branch(None, room))
    with pytest.raises(ForwardInfluenceError, match="idle: the ablation left every logit untouched"):
        measure_ablations(model, trace, tokens[N:], [idle])


def test_nan_logits_are_named_with_condition_and_position():
    model, tokens, trace = setup_case("llama")

    def poisoned(room):
        cache = trace.cache.branch(None, room)
        cache.layers[1].values[..., 0, :] = float("nan")
        return cache

    with pytest.raises(ForwardInfluenceError, match="poisoned: NaN or infinite logits at distance 0"):
        measure_ablations(model, trace, tokens[N:], [Removal("poisoned", M, branch=poisoned)])


def test_selection_of_another_shape_is_refused():
    model, tokens, trace = setup_case("llama")
    wrong = Selection(torch.zeros(3, 2, N - 1, dtype=torch.bool), trace.layers)
    with pytest.raises(UsageError, match="does not fit"):
        forward_influence(model, trace, tokens[N:], wrong)
    with pytest.raises(UsageError, match="mode 'swap' is unknown"):
        forward_influence(model, trace, tokens[N:], random_selection(trace), mode="swap")
