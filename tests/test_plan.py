"""The cost model against counts made by hand, and the plan command."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from forward_influence.conditions import document_tokens
from forward_influence.memory import Sizes
from forward_influence.plan import (
    compared_operations,
    document_operations,
    forward_operations,
    head_operations,
    plan,
)
from forward_influence.request import Request

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


def test_time_follows_throughput_and_workers():
    request = Request(selectors=("recent",), **SMALL)
    one = plan(SIZES, request, 10, throughput=1e9)
    assert one.hours == pytest.approx(one.operations / 1e9 / 3600)
    assert plan(SIZES, request, 10, throughput=1e9, workers=4).hours == pytest.approx(one.hours * 3 / 10)


def test_the_command_needs_no_weights(tmp_path):
    from tiny import tiny_model

    from forward_influence.cli.app import build

    tiny_model("llama").config.save_pretrained(tmp_path)
    arguments = ["plan", "--model", str(tmp_path / "config.json"), "--tflops", "1", "--documents", "3"]
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
