"""Models that give words which do not exist a logit of minus infinity: measured, or refused in words."""

from __future__ import annotations

import copy

import brute_force
import numpy as np
import pytest
import tiny_data
import torch
from test_divergence import by_words
from tiny import tiny_model
from torch import nn

from forward_influence.compression import compress
from forward_influence.errors import ForwardInfluenceError
from forward_influence.execution.run import measure
from forward_influence.influence.measure import forward_influence
from forward_influence.instrument.lm_head import LinearHead, ReplayedHead
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

N, M = 40, 23
WORDS = 90  # of 97


def padded_by_bias():
    """The head's bias rules out the last words: logits are still linear in the hidden states."""
    raw = copy.deepcopy(tiny_model("llama"))
    head = nn.Linear(32, 97, bias=True, dtype=torch.float64)
    head.weight.data.copy_(raw.lm_head.weight)
    head.bias.data.copy_(torch.linspace(-1, 1, 97, dtype=torch.float64))
    head.bias.data[WORDS:] = -torch.inf
    raw.lm_head = head
    return raw.requires_grad_(False)


def padded_by_code():
    """The model's forward rules them out, so that its own code is replayed."""
    raw = copy.deepcopy(tiny_model("llama"))

    def cut(module, inputs, logits):
        return logits.index_fill(-1, torch.arange(WORDS, 97), -torch.inf)

    raw.lm_head.register_forward_hook(cut)
    return raw


def few_at_a_time():
    """Which words are possible depends on the text: all but the 80 most likely are ruled out."""
    raw = copy.deepcopy(tiny_model("llama"))

    def cut(module, inputs, logits):
        return logits.masked_fill(logits < logits.topk(80, -1).values[..., -1:], -torch.inf)

    raw.lm_head.register_forward_hook(cut)
    return raw


@pytest.mark.parametrize(("make", "head"), [(padded_by_bias, LinearHead), (padded_by_code, ReplayedHead)])
def test_influence_equals_brute_force(make, head):
    model = wrap_model(make())
    assert isinstance(model.anatomy.head, head)
    tokens = torch.randint(3, WORDS, (N + M,), generator=torch.Generator().manual_seed(5))
    trace = record(model, tokens[:N], Needs.merge({"entropy:0", "surprisal"}), span=N + M, chunk=13)
    mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    [found] = forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers), chunk=9)
    removed = dict(zip(trace.layers, mask, strict=True))
    p = brute_force.logits_of_full_pass(model.model, tokens).logits[0, N:].numpy()
    q = brute_force.logits_of_full_pass(model.model, tokens, removed, after=N).logits[0, N:].numpy()
    assert np.isneginf(p[:, WORDS:]).all() and np.isfinite(p[:, :WORDS]).all()
    wanted = [by_words(*rows) for rows in zip(p, q, strict=True)]
    np.testing.assert_allclose(found.kl.numpy(), wanted, atol=1e-10)
    context = brute_force.logits_of_full_pass(model.model, tokens[:N]).logits[0].log_softmax(-1)[:, :WORDS]
    torch.testing.assert_close(trace.surprisal[1:], -context[:-1].gather(1, tokens[1:N, None])[:, 0])
    entropies = -(context.exp() * context).sum(-1)
    torch.testing.assert_close(trace.entropy_of(0)[1:], entropies[:-1])


def test_a_text_with_a_word_that_the_model_never_writes_is_refused_in_words():
    model = wrap_model(padded_by_bias())
    tokens = torch.randint(3, WORDS, (N + M,), generator=torch.Generator().manual_seed(5))
    tokens[N + 7] = 95
    trace = record(model, tokens[:N], span=N + M)
    mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    with pytest.raises(ForwardInfluenceError, match="token 7 is 95, a word that the model never writes"):
        forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers))


def test_words_that_become_impossible_are_refused_in_words():
    model = wrap_model(few_at_a_time())
    tokens = torch.randint(3, WORDS, (N + M,), generator=torch.Generator().manual_seed(5))
    reference = brute_force.logits_of_full_pass(model.model, tokens).logits[0, :-1]
    for i in range(N, N + M - 1):  # a text of words that the full cache thinks possible
        tokens[i + 1] = int(reference[i].argmax())
        reference = brute_force.logits_of_full_pass(model.model, tokens).logits[0, :-1]
    trace = record(model, tokens[:N], span=N + M)
    mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    p = brute_force.logits_of_full_pass(model.model, tokens).logits[0, N:].numpy()
    removed = dict(zip(trace.layers, mask, strict=True))
    q = brute_force.logits_of_full_pass(model.model, tokens, removed, after=N).logits[0, N:].numpy()
    first = [np.isinf(by_words(*rows)) for rows in zip(p, q, strict=True)].index(True)
    with pytest.raises(ForwardInfluenceError, match=f"KL is infinite at distance {first}, where words"):
        forward_influence(model, trace, tokens[N:], Selection(mask, trace.layers))


@pytest.mark.parametrize("make", [padded_by_bias, padded_by_code])
def test_every_way_to_measure_gives_numbers(make, tmp_path):
    model = wrap_model(make(), spec="padded")
    documents = tiny_data.documents(2, 100)
    for document in documents:
        document.segments[0].clamp_(max=WORDS - 1)
    rules = ("entropy", "surprisal", "infokv:window=8", "oracle", "oracle:by=fisher,samples=2", "random")
    request = Request(selectors=rules, context=60, continuation=40, protect_last=8, effect="both", verify=True)
    run = measure(model, documents, request, tmp_path / "run")
    assert len(run.measured()) == 2
    rows = [row for row in run.rows() if row["kind"] == "condition"]
    assert {row["selector"].partition(":")[0] for row in rows} >= {"entropy", "oracle"}
    assert all(np.isfinite(row["kl"]).all() and row["kl"].max() > 0 for row in rows)
    sizes = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.9",)}
    kept = Request(compressors=("infokv:window=8", "h2o"), selectors=(), mode="keep", **sizes)
    run = measure(model, documents, kept, tmp_path / "kept")
    assert all(np.isfinite(row["kl"]).all() for row in run.rows() if row["kl"] is not None)


def test_compressing_while_it_generates():
    model = wrap_model(padded_by_bias())
    with torch.no_grad(), compress(model, "infokv:window=8", budget=0.5, every=8) as cache:
        out = model.model.generate(torch.arange(3, 70)[None], past_key_values=cache, max_new_tokens=20, do_sample=True)
    assert int(out.max()) < WORDS
    assert int(cache.stats.held.max()) < 87
