"""How faithful a model stays under a compressor: against full passes with the visible sets written out."""

from __future__ import annotations

import json

import brute_force
import numpy as np
import pytest
import tiny_data
import torch
from tiny import tiny_model
from visible_sets import full_pass, watching

from forward_influence.compression import compress
from forward_influence.compression.contenders import Contender
from forward_influence.compression.fidelity import CompressedRun
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import document_tokens

N, M = 64, 40


def asked(*compressors: str, **changes) -> Request:
    settings = {"selectors": (), "budgets": ("0.4",), "context": N, "continuation": M, "protect_last": 8, "every": 12}
    return Request(compressors=compressors, **{**settings, **changes})


def token_by_token(model, compressor, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Logits (m, vocabulary) of the continuation: decoded token by token, then judged by one full pass."""
    with torch.no_grad(), compress(model, compressor, span=len(tokens)) as cache, watching(model, cache) as snapshots:
        model(tokens[None, :N], past_key_values=cache)
        for token in tokens[N:]:
            model(token[None, None], past_key_values=cache)
    assert cache.stats.compressions >= 3
    return full_pass(model, tokens, snapshots.visible(len(tokens), heads)).logits[N:]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("name", ["infokv", "adakv", "h2o", "rpc:window=4"])
@pytest.mark.parametrize("chunk", [5, 512])
def test_rows_equal_decoding_token_by_token(family, name, chunk):
    model = tiny_data.model(family, torch.float64)
    [document] = tiny_data.documents(1, N + M)
    [tokens] = document.segments
    row = measure_document(model, document, asked(name), chunk=chunk).rows[1]
    contender = Contender(name, "0.4", 12, protect_last=8)
    q = token_by_token(model.model, contender.compressor, tokens, 4 if family == "gpt_neox" else 2)
    p = brute_force.logits_of_full_pass(model.model, tokens).logits[0, N:]
    np.testing.assert_allclose(row["kl"], brute_force.kl_by_definition(p, q), atol=1e-7)  # stored in float32
    assert row["top1_changed"].tolist() == (p.argmax(-1) != q.argmax(-1)).tolist()
    run = CompressedRun(model, contender.compressor, tokens[:N], 0, chunk)
    torch.testing.assert_close(model.anatomy.head(run(tokens[N:])), q, atol=1e-9, rtol=0)


def test_a_row_says_what_was_held_and_how(tmp_path):
    run = measure(tiny_data.model(), tiny_data.documents(2, N + M), asked("infokv", "random"), tmp_path / "run")
    frame = run.curves().query("kind == 'condition'")
    assert set(frame["selector"]) == {"infokv", "random"}
    assert (frame["mode"] == "keep").all()
    assert len(frame) == 2 * (1 + 5), "random is drawn five times"
    draws = frame[(frame["selector"] == "random") & (frame["document"] == "doc 0/../x")]
    assert len({tuple(kl) for kl in draws["kl"]}) == 5
    # compressed at 64, 76, 88 and 100 of 104 tokens: 40 of 100 held, the first 4 and the last 8 pinned; four more come
    assert all(held.tolist() == [40] * 6 for held in frame["selected"])
    assert set(frame["held"]) == {40}
    assert set(frame["pinned"]) == {12}
    assert set(frame["chosen"]) == {28}
    assert set(frame["held_most"]) == {35 + 12}
    made = json.loads(frame["parameters"].iloc[0])
    assert (made["compressor"], made["every"], made["scheme"]) == (True, 12, "rule")
    assert (made["grain"], made["ends"]) == ("entry", [4, 8])
    assert run.configuration["compressors"] == ["infokv", "random"]


def test_rules_and_compressors_share_a_run_and_budget_one_changes_nothing():
    [document] = tiny_data.documents(1, N + M)
    rows = measure_document(tiny_data.model(), document, asked("h2o", selectors=("recent",))).rows
    assert [(r["selector"], r["mode"]) for r in rows if r["kind"] == "condition"] == [
        ("recent", "drop"),
        ("h2o", "keep"),
    ]
    model = tiny_data.model(dtype=torch.float64)
    [tokens] = document.segments
    full = CompressedRun(model, Contender("full", "1.0").compressor, tokens[:N], 0, 512)(tokens[N:])
    wanted = tiny_model("llama")(tokens[None]).logits[0, N:]
    torch.testing.assert_close(model.anatomy.head(full), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"effect": "both"}, "measured as it is"),
        ({"layers": (1,)}, "measured as it is"),
        ({"verify": True}, "`verify` checks"),
        ({"budgets": ("0",)}, "selects nothing"),
        ({"every": 0}, "at least one token"),
    ],
)
def test_what_a_compressor_cannot_be_asked(changes, words):
    with pytest.raises(UsageError, match=words):
        asked("infokv", **changes)


def test_every_without_a_compressor_and_unknown_compressors_are_refused():
    with pytest.raises(UsageError, match="name one with `compressors`"):
        Request(every=10)
    with pytest.raises(UsageError, match="did you mean 'infokv'"):
        asked("infokw")
    with pytest.raises(UsageError, match="given twice"):
        asked("infokv", "infokv")


def test_progress_counts_what_runs():
    told: list[int] = []

    class Heard:
        def begin(self, total: int, what: str) -> None: ...
        def advance(self, tokens: int, what: str) -> None:
            told.append(tokens)

        def message(self, text: str) -> None: ...
        def end(self) -> None: ...

    request = asked("infokv", "random")
    [document] = tiny_data.documents(1, N + M)
    measure_document(tiny_data.model(), document, request, progress=Heard())
    assert sum(told) == document_tokens(request)
