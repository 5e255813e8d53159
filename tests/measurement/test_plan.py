"""The cost model against counts made by hand, and the plan command."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from forward_influence.errors import UsageError
from forward_influence.measurement.costs import (
    compared_operations,
    counted,
    document_operations,
    plan,
)
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import document_tokens
from forward_influence.models.sizes import Sizes, forward_operations, head_operations

SIZES = Sizes(layers=2, query_heads=4, kv_heads=2, head_size=8, hidden=32, intermediate=48, vocabulary=97)
SMALL = {"context": 60, "continuation": 40, "protect_last": 8}


def test_operations_of_a_pass_counted_token_by_token():
    per_layer = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    total = sum(2 * (per_layer + 2 * 2 * 4 * 8 * (10 + i + 1)) for i in range(5))
    assert forward_operations(SIZES, 10, 5) == total
    assert head_operations(SIZES, 5) == 2 * 32 * 97 * 5


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": 2},
        {"effect": "both", "positions_per_bin": 5, "bin_width": 10},
        {"per_layer": True},
        {"continuation_from": "generate"},
        {"selectors": ("oracle:far",)},
        {"selectors": (), "compressors": ("infokv",), "every": 10},
    ],
)
def test_tokens_are_those_that_progress_counts(changes):
    request = Request(**{"selectors": ("recent", "random"), "draws": 3, **SMALL, **changes})
    found = plan(SIZES, request, 7)
    assert found.tokens == 7 * document_tokens(request, (0, 1))
    assert found.hours is None


def test_conditions_are_counted():
    assert plan(SIZES, Request(selectors=("recent", "random"), draws=3, **SMALL), 1).conditions == 4
    assert plan(SIZES, Request(selectors=(), compressors=("infokv", "random"), **SMALL), 1).conditions == 6


def test_sampled_positions_and_direct_effects_are_cheaper_and_oracles_dearer():
    def cost(**changes) -> float:
        return document_operations(SIZES, Request(**{"selectors": ("recent",), **SMALL, **changes}))

    sampled = {"positions_per_bin": 4, "bin_width": 20}
    assert cost(effect="direct", **sampled) < cost(**sampled) < cost()
    assert cost(effect="both") > 1.5 * cost()
    assert cost(selectors=("oracle:far,by=fisher",)) > 3 * cost() > cost(selectors=("oracle:far",)) > cost()
    passes = [cost(selectors=("recent", "first", "knorm")[:count]) for count in (1, 2, 3)]
    one = forward_operations(SIZES, 60, 40) + compared_operations(SIZES, 40)
    assert passes[2] - passes[1] == pytest.approx(passes[1] - passes[0]) == pytest.approx(one)


def _weights(config) -> tuple[int, int]:
    sizes = counted(Sizes.of(config), config)
    return sizes.model_bytes // 4, sizes.body_parameters


@pytest.mark.parametrize(
    ("family", "weights"),
    [("gpt2", 124_439_808), ("gpt_neox", 20_554_567_680), ("llama", 6_738_415_616)],
)
def test_weights_are_those_of_the_model(family, weights):
    found, body = _weights(AutoConfig.for_model(family))
    assert found == weights
    assert 0.68 * weights < body < weights


def test_a_token_passes_the_experts_chosen_for_it():
    config = AutoConfig.for_model(
        "mixtral", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    attention, expert, router, norms = 32 * 8 * (2 * 4 + 2 * 2), 3 * 32 * 48, 8 * 32, 2 * 32
    layer = attention + router + norms
    weights, body = _weights(config)
    assert weights == 2 * (layer + 8 * expert) + 32 + 2 * 97 * 32
    assert body == 2 * (layer + 2 * expert) + 32


@pytest.mark.parametrize(("family", "billions", "active"), [("mixtral", 46.7, 12.6), ("gpt_oss", 116.8, 4.6)])
def test_mixtures_of_experts_are_counted_whole_and_computed_in_part(family, billions, active):
    weights, body = _weights(AutoConfig.for_model(family))
    assert weights / 1e9 == pytest.approx(billions, rel=0.01)
    assert body / 1e9 == pytest.approx(active, rel=0.05)


def test_weights_come_from_the_formula_where_no_model_can_be_made(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no such model")

    config = AutoConfig.for_model("llama")
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", fail)
    sizes = Sizes.of(config)
    assert counted(sizes, config) == sizes


def test_time_follows_throughput_and_workers():
    request = Request(selectors=("recent",), **SMALL)
    one = plan(SIZES, request, 10, throughput=1e9)
    assert one.hours == pytest.approx(one.operations / 1e9 / 3600)
    assert plan(SIZES, request, 10, throughput=1e9, workers=4).hours == pytest.approx(one.hours * 3 / 10)


def test_the_command_needs_no_weights(tmp_path):
    from tiny import tiny_model

    from forward_influence.cli.app import build

    tiny_model("llama").config.save_pretrained(tmp_path)
    arguments = ["plan", "--model", str(tmp_path / "config.json"), "--tflops", "1", "--count", "3"]
    arguments += ["--context", "128", "--continuation", "128"]
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 0
    assert "documents        3, 8 conditions each" in result.output
    assert "1 TFLOPS a worker, as given" in result.output


def test_a_large_model_is_planned_without_a_network():
    from forward_influence.cli.app import build

    given = ["--context", "2048", "--continuation", "14336", "--dtype", "bfloat16", "--tflops", "300"]
    result = CliRunner().invoke(build(), ["plan", "--model", "llama-3.1-8b", "--device", "cuda", *given])
    assert result.exit_code == 0
    assert "model            18.16 GB" in result.output  # 16.06 of the weights in 16 bits, and the head in float32


def _refused(*arguments: str) -> str:
    from forward_influence.cli.app import build

    result = CliRunner().invoke(build(), ["plan", "--tflops", "1", *arguments])
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path):
    from tiny import tiny_model

    tiny_model("llama").config.save_pretrained(tmp_path)
    given = ["--model", str(tmp_path / "config.json"), "--context", "128", "--continuation", "500"]
    assert "= 628 tokens, but" in _refused(*given)
    given = ["--model", "llama-3.1-8b", "--context", "100000", "--continuation", "100000"]
    assert "made for 131072 positions" in _refused(*given)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "meta"])
def test_devices_that_there_are_not_are_refused(device):
    assert device in _refused("--model", "llama-3.1-8b", "--device", device)


def test_an_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "is an encoder" in _refused("--model", str(tmp_path / "config.json"))


@pytest.mark.parametrize("name", ["config.json", "odd-config.json"])
@pytest.mark.parametrize(
    "content",
    [
        {"model_type": "mamba"},
        {"model_type": "llama", "hidden_size": 0},
        {"model_type": "llama", "num_attention_heads": 0},
        {"model_type": "llama", "num_hidden_layers": "x"},
        {},
        [],
    ],
)
def test_odd_configurations_are_refused_in_a_line(tmp_path, content, name):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    message = _refused("--model", str(path), "--context", "128", "--continuation", "128")
    assert str(tmp_path) in message or "the configuration (" in message
    assert "\n" not in message
