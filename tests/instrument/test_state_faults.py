"""Six faults that a hybrid's code could have, put in on purpose: each must be seen by the comparison with full passes.

A comparison that a fault slips through proves nothing of the families that pass it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from brute_force import kl_by_definition, logits_of_full_pass
from families import tiny_family
from family_table import PROVEN, M, N, verdict
from float64 import Float64
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from forward_influence.instrument import beside, layer_kinds, rebuilt_states, states
from forward_influence.instrument.compat import named_cache
from forward_influence.instrument.layer_kinds import SelectiveIndexedLayer
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.steps import Steps

Patch = pytest.MonkeyPatch
#: What a family that is computed rightly differs by is below 1e-12; a fault must show as more than this.
SEEN = 1e-6


def _copying(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Whoever copies states gets what `change` makes of each tensor."""
    right = states.copy_states

    def wrong(source: Any, target: Any) -> None:
        right(source, target)
        for name in ("conv_states", "recurrent_states"):
            held = getattr(source, name)
            setattr(target, name, {k: None if t is None else change(t) for k, t in held.items()})

    for module in (layer_kinds, beside, rebuilt_states):
        patch.setattr(module, "copy_states", wrong)


def states_not_copied(patch: Patch) -> None:
    """A branch writes into the states of the context."""
    _copying(patch, lambda state: state)


def states_zeroed(patch: Patch) -> None:
    """A branch starts from nothing."""
    _copying(patch, torch.zeros_like)


def several_tokens_to_mamba(patch: Patch) -> None:
    """A chunk of several tokens follows a scan that starts from nothing in each."""
    right = Steps.lengths
    patch.setattr(Steps, "lengths", lambda self, *sizes: right(Steps(), *sizes))


def a_token_left_alone(patch: Patch) -> None:
    """The last token comes alone, whose time step is then not clamped."""
    right = Steps.lengths
    patch.setattr(Steps, "lengths", lambda self, *sizes: right(Steps(single=self.single), *sizes))


def index_keys_stay(patch: Patch) -> None:
    """The indexer's keys are not gathered with the entries: it picks by the keys of other tokens."""

    def wrong(self: Any, index: Any, holes: Any, room: int) -> Any:
        other = SelectiveLayer.branch(self, index, holes, room)
        keys = self.indexer_keys
        other.indexer_keys = None if keys is None else keys[:, : other.held].clone()
        return other

    patch.setattr(SelectiveIndexedLayer, "branch", wrong)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (states_not_copied, "qwen3_5"),
        (states_not_copied, "falcon_h1"),
        (states_zeroed, "qwen3_5"),
        (states_zeroed, "lfm2"),
        (several_tokens_to_mamba, "jamba"),
        (a_token_left_alone, "nemotron_h:limited time steps"),
        (index_keys_stay, "deepseek_v32"),
        (index_keys_stay, "glm_moe_dsa:shared indexers"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_fault_is_seen(fault: Callable[[Patch], None], name: str, monkeypatch: Patch) -> None:
    right = verdict(name)
    assert right.state == PROVEN and right.difference < 1e-10
    fault(monkeypatch)
    found = verdict(name)
    assert found.state != PROVEN or found.difference > SEEN, f"{found.state}, {found.difference}"


def _lost(name: str) -> float:
    """The largest KL (nats) of a continuation that follows a context whose recurrent states were lost."""
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    with Float64(), torch.no_grad():
        model = tiny_family(name)
        wanted = logits_of_full_pass(model, tokens).logits[0, N:]
        context = DynamicCache(config=model.config.get_text_config(decoder=True))
        model(tokens[None, :N], use_cache=True, **named_cache(model, context))
        for layer in context.layers:
            for kind, state in states.states(layer).items():
                if kind.startswith("recurrent"):
                    state.zero_()
        places = torch.arange(N, N + M)[None]
        found = model(tokens[None, N:], use_cache=True, position_ids=places, **named_cache(model, context))
    return float(kl_by_definition(wanted, found.logits[0]).max())


def _forget(model: PreTrainedModel) -> None:
    """States that forget within a token or two, as random decays may have it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                parameter.fill_(3)


@pytest.mark.parametrize("name", ["qwen3_5", "bamba", "jamba"])
def test_tiny_states_that_forget_would_hide_a_loss(name: str, monkeypatch: Patch) -> None:
    """The threshold is that of `test_tiny_states_remember_what_they_read`, which this fault must not pass."""
    assert _lost(name) > 0.05
    monkeypatch.setattr(families, "_remember", _forget)
    assert _lost(name) < 0.05
