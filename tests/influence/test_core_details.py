"""Details of the engine's core that mutants brought to light, see docs/mutants.md: what other tests pass over."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_cache import filled
from test_divergence import kl_divergence, pairs
from test_influence import M, N, random_selection, setup_case

from forward_influence.compression.fidelity import Compression
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.influence import divergence, measure, refusals
from forward_influence.influence.ablation import Removal, removal, shuffled
from forward_influence.influence.comparison import Influence, compare_hidden
from forward_influence.influence.divergence import Reference, Shift
from forward_influence.influence.effects import effect_of
from forward_influence.influence.full_run import Baseline, Continuation, run_in_full
from forward_influence.influence.masked import masked_direct_influence, masked_influence
from forward_influence.influence.measure import forward_influence, measure_ablations
from forward_influence.instrument.cache import SelectiveCache, masked
from forward_influence.instrument.selective_layer import MaskedLayer, SelectiveLayer, indices
from forward_influence.selectors.selection import FEWEST_TO_CHOOSE, Budget, Candidates, Selection
from forward_influence.utils import numerics
from forward_influence.utils.numerics import rows_in_cache, slices


def double(count: int) -> torch.Tensor:
    return torch.zeros(1, 2, count, 3, dtype=torch.float64)


# divergence


def truth(p, q):
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(-1)


def test_a_word_that_p_rules_out_adds_nothing():
    p, q = torch.randn(3, 20), torch.randn(3, 20)
    p[1, 7] = float("-inf")
    torch.testing.assert_close(kl_divergence(p, q).double(), truth(p, q), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 1000])
def test_rows_that_leave_float32s_range_are_redone_where_they_are(monkeypatch, rows_at_a_time):
    """Near ones and far ones, in the first block of rows and in later ones; targets are those of the same rows."""
    monkeypatch.setattr(numerics, "_CACHE_BYTES", rows_at_a_time * 30 * 4)
    p, q = (logits.float() for logits in pairs(9, 30, 0.02))
    for row in (1, 4, 8):
        p[row, 5] = q[row, 5] = -150.0
    q[4, 6] += 30
    q[8, 5] -= 40
    targets = torch.arange(9)
    targets[8] = -1
    found = Reference(p.clone(), targets).compare(q.clone())
    torch.testing.assert_close(found.kl.double(), truth(p, q), atol=1e-9, rtol=1e-4)
    delta = (p.double().log_softmax(-1) - q.double().log_softmax(-1))[torch.arange(8), targets[:8]]
    torch.testing.assert_close(found.nll_delta[:8].double(), delta, atol=1e-5, rtol=1e-5)
    assert torch.isnan(found.nll_delta[8])
    assert torch.equal(found.top1_changed, p.argmax(-1) != q.argmax(-1))


def test_mass_that_q_has_where_p_has_none_in_float32_is_counted():
    p = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))
    p[1, 5] = float(p[1].logsumexp(-1)) - 104  # its exponential is 0 in float32, and e^87.5 is a number still
    q = p.clone()
    q[1, 5] += 87.5
    found = kl_divergence(p, q).double()
    assert float(truth(p, q)[1]) > 5e-8
    torch.testing.assert_close(found, truth(p, q), atol=1e-11, rtol=1e-3)


def test_without_a_lossy_row_no_logits_are_copied():
    p, q = (logits.float() for logits in pairs(4, 30, 0.1))
    assert not Reference(p.clone(), torch.full((4,), -1))._any_lossy
    p[2, 3] = -79.0 + float(p[2].logsumexp(-1))
    assert not Reference(p.clone(), torch.full((4,), -1))._any_lossy
    p[2, 3] -= 2
    assert Reference(p.clone(), torch.full((4,), -1))._any_lossy
    assert not Reference(p.double(), torch.full((4,), -1))._any_lossy
    assert q.shape == p.shape


def test_infinite_logits_of_q_do_not_come_out_as_a_number():
    p, q = torch.zeros(2, 5), torch.zeros(2, 5)
    q[1, 2] = float("-inf")
    found = kl_divergence(p, q)
    assert float(found[0]) == 0
    assert not torch.isfinite(found[1])


def test_what_is_compiled_sums_as_what_is_not():
    """The arithmetic itself, which `--compile` hands to the compiler; tests/instrument/test_compile.py compiles it."""
    p, q = pairs(6, 25, 0.5)
    reference = Reference(p.clone(), torch.arange(6))
    reference._negative_entropy += 0.01  # so that something is left over for r
    given = (reference.log_p, reference.p, reference._negative_entropy, reference.top1)
    found = divergence._sums_of(q.clone(), *given)
    for one, other in zip(found, reference._sums(slice(0, 6), q.clone())[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_fewer_rows_than_the_references_are_its_first():
    p, q = pairs(6, 25, 0.5)
    whole = Reference(p.clone(), torch.arange(6)).compare(q.clone())
    part = Reference(p.clone(), torch.arange(6)).compare(q[:4].clone())
    for name in ("kl", "nll_delta", "top1_changed"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:4])


def test_given_memory_may_be_larger_and_holds_the_probabilities():
    p, q = pairs(4, 11, 0.3)
    memory = torch.empty(9, 11, dtype=torch.float64)
    found = Reference(p.clone(), torch.arange(4), memory).compare(q.clone())
    torch.testing.assert_close(memory[:4], p.softmax(-1))
    torch.testing.assert_close(found.kl, kl_divergence(p, q))


def test_how_many_rows_fit_a_cache():
    assert rows_in_cache(torch.empty(10, 1024)) == (1 << 21) // 4096
    assert rows_in_cache(torch.empty(10, 1024, dtype=torch.float64)) == (1 << 21) // 8192
    assert rows_in_cache(torch.empty(1, 10_000_000)) == 1
    assert rows_in_cache(torch.empty(10, 1024, device="meta")) == 10
    assert rows_in_cache(torch.empty(0, 1024, device="meta")) == 1
    assert slices(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert divergence._argmax(torch.empty(2, 5, device="meta")).shape == (2,)


@pytest.mark.parametrize(
    "made",
    [
        Shift(torch.zeros(1), torch.zeros(1), torch.zeros(1)),
        Influence(torch.zeros(1), torch.zeros(1), torch.zeros(1)),
        Removal("a", 3, branch=lambda room: None),
        Baseline(torch.zeros(1)),
        Budget("0.2", 0.2, True),
        Candidates(10, 1, 9),
        Selection(torch.zeros(1, 1, 1, dtype=torch.bool), (0,)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_results_and_choices_cannot_be_changed(made):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, None)


# selection


@pytest.mark.parametrize("text", ["1.0", "1.5", "0", "-3", "0.0", "nan", "inf", "-inf", "", "x"])
def test_budgets_that_are_none(text):
    with pytest.raises(UsageError, match="budget"):
        Budget.parse(text)
    if text != "1.0":
        with pytest.raises(UsageError, match="budget"):
            Budget.parse(text, whole=True)


def test_counts_have_a_sign_at_most():
    assert not Budget.parse("+7").is_fraction
    assert Budget.parse("+7").count(100) == 7
    assert Budget.parse("1").count(100) == 1
    assert Budget.parse("0.3").count(10) == 3, "0.3 * 10 is 3 whatever floats make of it"


def test_what_can_be_protected():
    assert Candidates.of(10, 0, 0).count == 10
    assert Candidates.of(10, 4, 5) == Candidates(10, 4, 5)
    for first, last in ((-1, 0), (0, -1), (5, 5), (10, 0)):
        with pytest.raises(UsageError, match="protect"):
            Candidates.of(10, first, last)


def test_the_borders_of_what_can_be_chosen():
    candidates = Candidates.of(100, 4, 16)
    assert (candidates.count, candidates.protected) == (80, 20)
    assert candidates.to_choose(Budget.parse(80), "drop") == 80
    with pytest.raises(UsageError, match=r"asks for 81 of 80 candidates \(100 context tokens, 20 protected\)"):
        candidates.to_choose(Budget.parse(81), "drop")
    fewest = 20 + FEWEST_TO_CHOOSE
    assert candidates.to_choose(Budget.parse(fewest), "keep") == FEWEST_TO_CHOOSE
    with pytest.raises(UsageError, match="fewer than 32 are left"):
        candidates.to_choose(Budget.parse(fewest - 1), "keep")
    assert candidates.to_choose(Budget.parse(100), "keep") == 80
    with pytest.raises(UsageError, match="give fewer than all"):
        candidates.to_choose(Budget.parse(101), "keep")


def test_counts_are_per_layer_and_head():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 1, :3] = mask[1, 2, 0] = True
    assert Selection(mask, (0, 1)).counts.tolist() == [[0, 3, 0], [0, 0, 1]]


def test_the_grain_of_a_choice_by_its_outcome():
    mask = torch.zeros(3, 2, 5, dtype=torch.bool)
    assert Selection(mask, (0, 1, 2)).grain == "token"
    mask[0, :, 1] = mask[2, :, 1] = True
    assert Selection(mask, (0, 1, 2)).grain == "token", "layers that select nothing are left out"
    mask[1, 0, 1] = True
    assert Selection(mask, (0, 1, 2)).grain == "token", "and heads"
    mask[1, :, 1], mask[1, :, 2] = False, True
    assert Selection(mask, (0, 1, 2)).grain == "layer"
    mask[1, 0, 3] = True
    assert Selection(mask, (0, 1, 2)).grain == "entry"
    assert Selection(mask[:1], (0,)).grain == Selection(mask[2:], (2,)).grain == "token", "a layer by itself"


# cache


def test_a_layer_that_has_seen_nothing():
    layer = SelectiveLayer()
    assert layer.positions().shape == (0, 0)
    assert layer.bytes() == 0
    layer.crop(0)
    assert (layer.seen, layer.held, layer.room) == (0, 0, 0)
    assert (layer.is_sliding, layer.is_compileable, layer.is_croppable) == (False, False, False)
    assert layer.get_max_length() == layer.get_max_cache_shape() == -1
    assert layer.gates() is None
    layer.batch_repeat_interleave(1)
    for wrong in (0, 2):
        with pytest.raises(UsageError, match="one sequence"):
            layer.batch_repeat_interleave(wrong)


def test_memory_is_taken_once_and_grows_a_few_tokens_at_a_time():
    layer = filled()
    assert layer.bytes() == 2 * 2 * 6 * 3 * 8
    layer.update(double(1), double(1))
    assert layer.bytes() == 2 * 2 * (7 + 64) * 3 * 8
    where = layer._key_store.data_ptr()
    for _ in range(64):
        layer.update(double(1), double(1))
    assert layer._key_store.data_ptr() == where
    assert (layer.seen, layer.held) == (71, 71)
    assert layer.keys[0, 1, :6, 0].tolist() == [6, 7, 8, 9, 10, 11]
    assert layer.values[0, 1, :6, 0].tolist() == [106, 107, 108, 109, 110, 111]
    roomy = SelectiveLayer(room=20)
    roomy.update(double(6), double(6))
    assert roomy.bytes() == 2 * 2 * 20 * 3 * 8
    roomy.reset()
    assert (roomy.seen, roomy.bytes(), roomy.room) == (0, 0, 20)


def test_a_layer_brings_a_mask_where_the_models_own_would_not_do():
    layer = filled()
    assert layer.own_mask(2) == (False, None)
    swapped = layer.branch(torch.tensor([[1, 0, 2, 3, 4, 5]] * 2), None, 4)
    swapped.update(double(2), double(2))
    own, mask = swapped.own_mask(2)
    assert own
    assert mask is not None
    assert mask[0, 0].tolist() == [[True] * 7 + [False], [True] * 8]
    layer = layer.branch(*indices(torch.tensor([[1, 1, 1, 0, 0, 0]] * 2, dtype=torch.bool)), 0)
    layer.update(double(1), double(1))
    assert layer.own_mask(1) == (True, None)
    layer.update(double(2), double(2))
    own, mask = layer.own_mask(3)
    assert own
    assert mask is not None
    assert mask.shape == (1, 1, 3, 6)


def test_ragged_heads_hide_padding_from_several_queries():
    layer = filled()
    layer = layer.branch(*indices(torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)), 2)
    layer.update(double(2), double(2))
    own, mask = layer.own_mask(2)
    assert own
    assert mask is not None
    assert mask[0].tolist() == [
        [[True, True, True, True, False], [True] * 5],
        [[False, False, True, True, False], [False, False, True, True, True]],
    ]
    again = layer.branch(None, None, 1)
    assert again.positions().tolist() == layer.positions().tolist() == [[0, 1, 2, 6, 7], [-1, -1, 5, 6, 7]]
    assert torch.equal(again.holes, layer.holes)
    assert again.bytes() == 2 * 2 * 6 * 3 * 8


def test_crop_from_either_end():
    layer = filled()
    layer.crop(-1)
    assert layer.keys.shape[-2] == layer.values.shape[-2] == 5
    layer.crop(3)  # to three tokens
    assert (layer.seen, layer.held, layer.keys.shape[-2]) == (3, 3, 3)
    layer.crop(0)
    assert layer.seen == 3
    layer = layer.branch(*indices(torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)), 2)
    layer.update(double(2), double(2))
    with pytest.raises(UsageError, match="before its last eviction"):
        layer.crop(-3)
    layer.crop(-2)
    assert (layer.seen, layer.held) == (3, 2)


def test_a_masked_layer_hides_from_late_tokens_only():
    layer = MaskedLayer()
    layer.hidden, layer.after = torch.tensor([[True, False, False, False], [False, True, False, False]]), 2
    layer.update(double(3), double(3))
    own, mask = layer.own_mask(3)
    assert own
    assert mask is not None
    assert mask[0].tolist() == [
        [[True, False, False], [True, True, False], [False, True, True]],
        [[True, False, False], [True, True, False], [True, False, True]],
    ]


def test_masks_are_as_many_as_full_layers():
    config = setup_case("gemma3_text")[0].model.config
    none = torch.zeros(2, N, dtype=torch.bool)
    assert [type(layer) for layer in masked(config, N + M, [none, none], 3).layers[1:]] == [MaskedLayer] * 2
    for wrong in ([none], [none] * 3):
        with pytest.raises(ValueError, match="zip"):
            masked(config, N + M, wrong, 3)


def test_bytes_of_a_cache_with_windows():
    model, _, trace = setup_case("gemma3_text")
    cache = trace.cache
    by_hand = sum(2 * layer.keys.numel() * 8 for layer in cache.layers if not isinstance(layer, SelectiveLayer))
    by_hand += sum(layer.bytes() for layer in cache.layers if isinstance(layer, SelectiveLayer))
    assert cache.bytes() == by_hand > 0
    assert SelectiveCache(model.model.config).bytes() == 0
    assert cache.full_layers() == (1, 2)
    assert SelectiveCache(model.model.config, span=16).full_layers() == (0, 1, 2)
    assert SelectiveCache(model.model.config, span=17).full_layers() == (1, 2)


def test_branches_of_windows_are_their_own():
    model, tokens, trace = setup_case("gemma3_text")
    before = trace.cache.layers[0].keys.clone()
    [_] = forward_influence(model, trace, tokens[N:], random_selection(trace))
    assert torch.equal(trace.cache.layers[0].keys, before)


# influence


@pytest.mark.parametrize("more", [-1, 1])
def test_selections_of_another_shape_are_refused(more):
    trace = setup_case("llama")[2]
    fits = random_selection(trace)
    tokens = torch.ones(*fits.mask.shape[:2], trace.n + more, dtype=torch.bool)
    for other in (Selection(tokens, fits.layers), Selection(fits.mask, fits.layers[::-1])):
        with pytest.raises(UsageError, match="does not fit"):
            removal(trace, other, "drop", M)


def test_masked_roads_agree_with_removal():
    model, tokens, trace = setup_case("llama")
    selection = random_selection(trace)
    distances = torch.tensor([0, 3, M - 1])
    found = masked_direct_influence(model, tokens, trace, selection, distances)
    [wanted] = forward_influence(model, trace, tokens[N:], selection, effect="direct", positions=distances)
    assert found.shape == (3,)
    torch.testing.assert_close(found, wanted.kl, atol=1e-12, rtol=0)
    whole = masked_influence(model, tokens, trace, selection, "keep")
    [total] = forward_influence(model, trace, tokens[N:], selection, mode="keep")
    torch.testing.assert_close(whole.kl, total.kl, atol=1e-12, rtol=0)
    torch.testing.assert_close(whole.nll_delta[:-1], total.nll_delta[:-1], atol=1e-12, rtol=0)
    assert torch.isnan(whole.nll_delta[-1])


@pytest.mark.parametrize(("held", "groups"), [(1 << 29, [3]), (1, [1, 1, 1]), (2 * M * 32 * 8, [2, 1])])
def test_conditions_that_fit_are_compared_together(monkeypatch, held, groups):
    model, tokens, trace = setup_case("llama")
    chosen = [random_selection(trace, seed) for seed in range(3)]
    wanted = forward_influence(model, trace, tokens[N:], chosen)
    assert measure.HIDDEN_BYTES == 1 << 29
    sizes, honest = [], measure._compare

    def counted(head, full, hidden, *others):
        sizes.append(len(hidden))
        return honest(head, full, hidden, *others)

    monkeypatch.setattr(measure, "_compare", counted)
    monkeypatch.setattr(measure, "HIDDEN_BYTES", held)
    nll, found = measure_ablations(
        model, trace, tokens[N:], [removal(trace, s, "drop", M, str(i)) for i, s in enumerate(chosen)]
    )
    assert sizes == groups
    assert all(torch.equal(one.kl, other.kl) for one, other in zip(found, wanted, strict=True))
    assert torch.equal(nll[:-1], measure_ablations(model, trace, tokens[N:], [])[0][:-1])


def test_positions_run_no_further_than_the_last():
    model, tokens, trace = setup_case("llama")
    asked = []
    full = run_in_full(model, trace, tokens[N:], 64, False)

    def states(continuation):
        asked.append(len(continuation))
        return full.hidden[: len(continuation)] + 0.01

    states.context = tokens[:5]
    positions = torch.tensor([1, 4])
    ablation = Compression("own", M, positions=positions, run=states)
    _, [found] = measure_ablations(model, trace, tokens[N:], [ablation], baseline=full)
    assert asked == [5]
    assert found.kl.shape == (2,)
    assert ablation.runs == M + 5
    for name, count in (("total", M), ("direct", 2)):
        assert shuffled(trace, M, effect=effect_of(name), positions=positions).runs == count
    assert ablation.distances().tolist() == [1, 4]
    assert dataclasses.replace(ablation, positions=None).distances().tolist() == list(range(M))


def test_states_that_are_not_finite_are_placed():
    """Where the states come from a run of its own they are taken at their word; else shorter runs look for them."""
    model, tokens, trace = setup_case("llama")
    asked = []
    full = run_in_full(model, trace, tokens[N:], 64, False)

    def states(continuation):
        asked.append(len(continuation))
        found = full.hidden.clone()
        found[4:] = float("nan")
        return found

    states.context = tokens[:N]

    with pytest.raises(ForwardInfluenceError, match=r"own: NaN or infinite logits at distance 4;"):
        measure_ablations(model, trace, tokens[N:], [Compression("own", M, run=states)], baseline=full)
    assert asked == [M]
    finite = removal(trace, random_selection(trace), "drop", M)
    assert refusals.first_bad(Continuation(model, trace, tokens[N:], 64), finite) == M - 1, (
        "nothing found: the last that was run"
    )


@pytest.mark.parametrize("wrong", [[0, M], [M], [-1, 2], [2, 1], [1, 1], []])
def test_positions_beyond_the_continuation_are_refused(wrong):
    model, tokens, trace = setup_case("llama")
    positions = torch.tensor(wrong, dtype=torch.int64)
    with pytest.raises(UsageError, match="positions must be distances"):
        forward_influence(model, trace, tokens[N:], random_selection(trace), positions=positions)


def test_total_effect_at_positions_is_that_of_everywhere():
    model, tokens, trace = setup_case("gemma2")
    selection, positions = random_selection(trace), torch.tensor([0, 5, 11])
    [some] = forward_influence(model, trace, tokens[N:], selection, positions=positions, chunk=4)
    [all_of_it] = forward_influence(model, trace, tokens[N:], selection)
    for name in ("kl", "nll_delta"):
        torch.testing.assert_close(getattr(some, name), getattr(all_of_it, name)[positions], atol=1e-12, rtol=0)
    [last] = forward_influence(model, trace, tokens[N:], selection, positions=torch.tensor([0, M - 1]))
    assert torch.isnan(last.nll_delta[-1])


def test_the_full_cache_that_gives_nan_is_named_with_its_distance():
    model, tokens, trace = setup_case("llama", torch.float32)
    weight = model.model.get_input_embeddings().weight
    before = weight.clone()
    strange = int(tokens[N + 6])
    assert strange not in tokens[: N + 6].tolist()
    try:
        weight[strange] = float("nan")
        with pytest.raises(ForwardInfluenceError, match="the full cache gives NaN or infinite logits at distance 6"):
            measure_ablations(model, trace, tokens[N:], [])
    finally:
        weight.copy_(before)


def test_nothing_of_a_block_is_lost_and_equal_rows_are_exactly_zero():
    model, *_ = setup_case("llama", torch.float32)
    head = model.anatomy.head
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(7, 32, generator=generator)
    other = full + 0.1 * torch.randn(7, 32, generator=generator)
    other[3] = full[3]
    targets = torch.tensor([5, 6, 7, 8, 9, 10, -1])
    nll, [wanted] = compare_hidden(head, full, [other], targets)
    for block in (1, 2, 3, 7, 50):
        again, [found, short] = compare_hidden(head, full, [other, other[:4]], targets, block)
        torch.testing.assert_close(again, nll, equal_nan=True)
        torch.testing.assert_close(found.kl, wanted.kl)
        torch.testing.assert_close(found.nll_delta, wanted.nll_delta, equal_nan=True)
        assert torch.equal(found.top1_changed, wanted.top1_changed)
        torch.testing.assert_close(short.kl, wanted.kl[:4])
    assert (float(wanted.kl[3]), float(wanted.nll_delta[3]), bool(wanted.top1_changed[3])) == (0, 0, False)
    assert bool((wanted.kl[[0, 1, 2, 4, 5, 6]] > 0).all())
    with torch.no_grad():
        log_p, log_q = (head(states).double().log_softmax(-1) for states in (full, other))
    torch.testing.assert_close(wanted.kl.double(), (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nll[:6].double(), -log_p[torch.arange(6), targets[:6]], atol=1e-5, rtol=1e-5)


def test_the_span_of_a_model_is_its_border():
    model, tokens, trace = setup_case("llama")
    edge = dataclasses.replace(model.anatomy, positions=N + M)
    refusals.check_span(dataclasses.replace(model, anatomy=edge), trace, M)
    with pytest.raises(UsageError, match=f"have {N + M + 1} tokens, but the model was made for {N + M}"):
        refusals.check_span(dataclasses.replace(model, anatomy=edge), trace, M + 1)
    assert len(tokens) == N + M


def test_an_order_for_the_floor_is_seeded_and_direct_only_when_asked():
    _, _, trace = setup_case("llama")
    one, again, other = (shuffled(trace, M, seed) for seed in (0, 0, 1))
    orders = [a.branch(0).layers[0].positions()[0].tolist() for a in (one, again, other)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(N)) != orders[0]
    assert (one.effect.name, one.empty, one.positions) == ("total", True, None)
    assert shuffled(trace, M, effect=effect_of("direct")).effect.name == "direct"
    made = removal(trace, random_selection(trace), "drop", M)
    assert (made.effect.name, made.empty, made.label, made.runs) == ("total", False, "selection", M)
    with pytest.raises(UsageError, match="effect 'indirect' is unknown; it is total or direct"):
        forward_influence(*setup_case("llama")[:1], trace, torch.ones(3, dtype=torch.int64), [], effect="indirect")


def test_positions_in_rows_are_refused():
    model, tokens, trace = setup_case("llama")
    with pytest.raises(UsageError, match="ascending, each once"):
        forward_influence(model, trace, tokens[N:], random_selection(trace), positions=torch.tensor([[0], [1]]))


def test_progress_counts_what_runs():
    model, tokens, trace = setup_case("llama")
    counted: list[tuple[int, str]] = []

    class Counting:
        def begin(self, total_tokens, what): ...
        def advance(self, tokens, what):
            counted.append((tokens, what))

        def message(self, text): ...
        def end(self): ...

    measure_ablations(
        model, trace, tokens[N:], [removal(trace, random_selection(trace), "drop", 10, "a")], progress=Counting()
    )
    assert counted == [(M, "full cache"), (7, "a"), (3, "comparing")]
