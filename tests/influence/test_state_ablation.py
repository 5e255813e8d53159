"""Removal from states, against one pass over everything in which the modules' own padding mask hides the tokens."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import brute_force
import pytest
import tiny_data
import torch
from families import tiny_family
from family_table import M, N
from float64 import Float64

from forward_influence.analysis.measures.summary import notes
from forward_influence.analysis.report.about import about
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.ablation import removal
from forward_influence.influence.measure import forward_influence, measure_ablations
from forward_influence.influence.state_ablation import from_states_too
from forward_influence.instrument.rebuilt_states import rebuilt_states, state_modules
from forward_influence.instrument.states import states
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

#: One of each kind of state: delta-net, Mamba 2, Mamba 1, convolutions, beside entries in one layer, with latents.
NAMES = ("qwen3_next", "granitemoehybrid", "jamba", "lfm2_moe", "falcon_h1", "kimi_linear", "zamba2", "zaya", "bamba")


def _setup(name: str):
    model = wrap_model(tiny_family(name))
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    trace = record(model, tokens[:N], span=N + M, chunk=13)
    removed = torch.rand(N, generator=torch.Generator().manual_seed(7)) < 0.3
    mask = removed.expand(trace.shape).clone()
    return model, tokens, trace, removed, Selection(mask, trace.layers)


@contextmanager
def padded(model, removed: torch.Tensor):
    """State modules give continuation tokens what they would if removed tokens were padding; context tokens as ever."""
    busy = False

    def hook(module, inputs, named, output):
        nonlocal busy
        if busy:
            return output
        call = inspect.signature(module.forward).bind_partial(*inputs, **named)
        length = call.arguments["hidden_states"].shape[1]
        shown = torch.ones(1, length)
        shown[0, : len(removed)] = (~removed).double()
        name = "conv_mask" if "conv_mask" in inspect.signature(module.forward).parameters else "attention_mask"
        call.arguments[name] = shown
        busy = True
        other = module(*call.args, **call.kwargs)
        busy = False

        def joined(a, b):
            return torch.cat([a[:, :N], b[:, N:]], 1)

        return tuple(map(joined, output, other)) if isinstance(output, tuple) else joined(output, other)

    modules = [module for module in model.modules() if _writes(module)]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _writes(module) -> bool:
    """Whether a module's own code updates a state."""
    text = inspect.getsource(type(module).forward) if hasattr(type(module), "forward") else ""
    return "update_recurrent_state(" in text or "update_conv_state(" in text


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_one_pass_with_the_modules_own_mask(name):
    with Float64():
        model, tokens, trace, removed, selection = _setup(name)
        whole = removal(trace, selection, "drop", M)
        _, [found] = measure_ablations(model, trace, tokens[N:], [from_states_too(whole, trace, selection)], chunk=11)
        [entries] = forward_influence(model, trace, tokens[N:], selection, chunk=11)
        gone = dict(zip(trace.layers, selection.mask, strict=True))
        p = brute_force.logits_of_full_pass(model.model, tokens).logits[0, N:]
        with padded(model.model, removed):
            q = brute_force.logits_of_full_pass(model.model, tokens, gone, after=N).logits[0, N:]
    kl = brute_force.kl_by_definition(p, q)
    assert float((kl - entries.kl).abs().max()) > 1e-4, "states must matter"
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_masked_states_are_what_they_were(name):
    with Float64():
        model, tokens, trace, removed, _ = _setup(name)
        nothing = rebuilt_states(model.model, tokens[:N], torch.zeros(N, dtype=torch.bool), 13, span=N + M)
        without = rebuilt_states(model.model, tokens[:N], removed, 13, span=N + M)
    for layer, same, other in zip(trace.cache.layers, nothing.layers, without.layers, strict=True):
        for key, state in states(layer).items():
            assert torch.equal(states(same)[key], state)
            if "recurrent" in key:
                assert not torch.equal(states(other)[key], state)


def test_a_run_says_so_and_is_larger_than_of_entries_alone(tmp_path):
    model = wrap_model(tiny_family("qwen3_next", torch.float32), spec="tiny")
    sizes = {"context": N, "continuation": M, "protect_last": 8, "budgets": ("0.4",)}
    runs = [
        measure(
            model, tiny_data.documents(1, N + M), Request(selectors=("random:per=token",), states=how, **sizes),
            tmp_path / how,
        )
        for how in ("keep", "ablate")
    ]  # fmt: skip
    kept, ablated = (sum(row["kl"].mean() for row in run.rows() if row["kind"] == "condition") / 5 for run in runs)
    assert ablated > 2 * kept > 0
    assert runs[1].manifest["model"]["holding"].startswith("2 of 5 layers hold entries")
    assert runs[1].configuration["states"] == "ablate"
    for run, rebuilt in zip(runs, (False, True), strict=True):
        [said] = [line for line in notes(run) if "hold entries" in line]
        assert said.startswith("2 of 5 layers hold entries; what is removed may live on in the states of the other 3")
        assert ("rebuilt" in said) == rebuilt
        assert any("hold entries" in value for _, value in about(run, "a run")["facts"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selectors": ("knorm",)}, "knorm chooses per entry; ask for it per token"),
        ({"effect": "direct"}, "leave out `effect`"),
        ({"verify": True}, "and `verify`"),
        ({"layers": (1,)}, "`layers`"),
        ({"selectors": (), "compressors": ("infokv",)}, "`rerotate` and `states`"),
    ],
)
def test_what_cannot_be_asked_together(changes, words):
    with pytest.raises(UsageError, match=words):
        Request(**{"selectors": ("random:per=token",), "states": "ablate", "context": N, "protect_last": 8, **changes})


def test_models_without_states_and_finer_selections_are_refused(tmp_path):
    request = Request(selectors=("random:per=token",), states="ablate", context=N, continuation=M, protect_last=8)
    with pytest.raises(UsageError, match="carries no states"):
        measure(tiny_data.model(), tiny_data.documents(1, N + M), request, tmp_path / "run")
    with pytest.raises(UsageError, match="carries no states"):
        state_modules(tiny_data.model().model)
    _, _, trace, _, selection = _setup("lfm2_moe")
    selection.mask[0, 0, 3] ^= True
    with pytest.raises(UsageError, match="whole tokens"):
        from_states_too(removal(trace, selection, "drop", M), trace, selection)
