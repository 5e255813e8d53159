"""The cost model against counts made by hand, and the plan command."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from forward_influence.conditions import document_tokens
from forward_influence.memory import Sizes
from forward_influence.plan import forward_operations, head_operations, plan
from forward_influence.request import Request

SIZES = Sizes(layers=2, query_heads=4, kv_heads=2, head_size=8, hidden=32, intermediate=48, vocabulary=97)
SMALL = {"context": 60, "continuation": 40, "protect_last": 8}


def test_operations_of_a_pass_counted_token_by_token():
    per_layer = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    total = sum(2 * (per_layer + 2 * 2 * 4 * 8 * (10 + i + 1)) for i in range(5))
    assert forward_operations(SIZES, 10, 5) == total
    assert head_operations(SIZES, 5) == 2 * 32 * 97 * 5


def test_tokens_are_those_that_progress_counts():
    request = Request(selectors=("recent", "random"), draws=3, segments=2, **SMALL)
    found = plan(SIZES, request, 7)
    assert found.conditions == 4
    assert found.tokens == 7 * document_tokens(request)
    assert found.hours is None


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
