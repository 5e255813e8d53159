"""Effects, sampled positions, slices of the model and re-rotation, from a request to rows."""

from __future__ import annotations

import json

import brute_force
import numpy as np
import pytest
import tiny_data
import torch
from test_influence import N, random_selection, setup_case

from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.ablation import removal
from forward_influence.influence.measure import measure_ablations
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.measurement.slices import sliced
from forward_influence.measurement.token_counts import document_tokens
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record
from forward_influence.utils.ranges import whole_numbers

SMALL = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2",)}


def small(*selectors: str, **changes) -> Request:
    return Request(selectors=selectors or ("attention:window=8", "entropy"), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


@pytest.fixture(scope="module")
def document():
    return tiny_data.documents(1, 100)[0]


def conditions(model, document, request) -> list[dict]:
    return [row for row in measure_document(model, document, request).rows if row["kind"] == "condition"]


@pytest.mark.parametrize("mode", ["drop", "keep"])
def test_sweep_equals_separate_runs(model, document, mode):
    changes = {"mode": mode, "budgets": ("0.8",)} if mode == "keep" else {}
    sweep = conditions(model, document, small(per_layer=True, **changes))
    assert [row["layers"] for row in sweep] == [[0], [1], [2]] * 2
    alone = [conditions(model, document, small(layers=(layer,), **changes)) for layer in range(3)]
    for i, row in enumerate(sweep):
        other = alone[i % 3][i // 3]
        assert row["selector"] == other["selector"] and row["layers"] == other["layers"]
        assert row["selected"] == other["selected"]
        np.testing.assert_array_equal(row["kl"], other["kl"])
    assert len({float(row["kl"].mean()) for row in sweep}) == len(sweep)


def test_a_sweep_of_some_layers(model, document):
    rows = conditions(model, document, small("entropy", per_layer=True, layers=(2, 0)))
    assert [row["layers"] for row in rows] == [[0], [2]]


@pytest.mark.parametrize("mode", ["drop", "keep"])
def test_slices_equal_brute_force_on_layers_and_heads(mode):
    model, tokens, trace = setup_case("llama")
    selection = random_selection(trace)
    part = sliced(selection, mode, (0, 2), (1,))
    removed = {layer: torch.zeros(2, N, dtype=torch.bool) for layer in range(3)}
    for layer in (0, 2):
        removed[layer][1] = selection.mask[layer, 1] if mode == "drop" else ~selection.mask[layer, 1]
    kl, _, _ = brute_force.influence(model.model, tokens, N, removed)
    ablation = removal(trace, part.removed, "drop", len(kl))
    [found] = measure_ablations(model, trace, tokens[N:], [ablation])[1]
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)
    assert (part.layers, part.heads) == ((0, 2), (1,))
    assert part.selection.counts.tolist() == [
        [0, int(selection.mask[0, 1].sum())],
        [0, 0],
        [0, int(selection.mask[2, 1].sum())],
    ]


def test_both_effects_and_their_controls_are_rows(model, document):
    request = small("entropy", "random", effect="both", draws=2)
    measured = measure_document(model, document, request).rows
    kinds = [(row["kind"], row["effect"]) for row in measured if row["kind"] != "baseline"]
    assert kinds == [
        *[("condition", "total"), ("condition", "direct")] * 3,
        ("noise_floor", "total"),
        ("positive_control", "total"),
        ("noise_floor", "direct"),
        ("positive_control", "direct"),
    ]
    total, direct = measured[1:3]
    assert total["kl"][0] == pytest.approx(direct["kl"][0], abs=1e-5)
    assert float(abs(total["kl"] - direct["kl"])[1:].max()) > 1e-4
    alone = conditions(model, document, small("entropy", effect="direct"))
    np.testing.assert_array_equal(alone[0]["kl"], direct["kl"])


@pytest.mark.parametrize("effect", ["total", "direct"])
def test_sampled_positions_are_written_with_their_distances(model, document, effect):
    request = small(effect=effect, positions_per_bin=3, bin_width=10)
    rows, whole = conditions(model, document, request), conditions(model, document, small(effect=effect))
    for row, full in zip(rows, whole, strict=True):
        where = np.array(row["distance"])
        assert np.bincount(where // 10).tolist() == [4, 3, 3, 3]  # near ends within the first bin, at 5
        assert row["distance"] == rows[0]["distance"]
        np.testing.assert_allclose(row["kl"], full["kl"][where], atol=1e-6)
    other = conditions(model, document, small(effect=effect, positions_per_bin=3, bin_width=10, seed=1))
    assert other[0]["distance"] != rows[0]["distance"]


def test_a_sampled_sweep_reads_back_from_its_run(model, document, tmp_path):
    request = small("entropy", per_layer=True, effect="both", positions_per_bin=4, bin_width=20, save_selections=True)
    run = measure(model, [document], request, tmp_path / "run")
    frame = run.curves()
    rows = frame[frame["kind"] == "condition"]
    assert len(rows) == 6 and set(rows["effect"]) == {"total", "direct"}
    assert all(len(row["kl"]) == len(row["distance"]) == 8 for _, row in rows.iterrows())
    assert run.configuration["positions_per_bin"] == 4 and run.configuration["per_layer"] is True
    from forward_influence.analysis.reading.selections import read_selections

    [read] = read_selections(run)
    [choice] = read.choices
    assert choice.layers == (0, 1, 2) and choice.selection.sum(-1).tolist() == [[12, 12]] * 3


@pytest.mark.parametrize("effect", ["total", "direct"])
def test_verification_covers_both_effects(model, document, effect):
    measured = measure_document(model, document, small(effect=effect, verify=True, layers=(1,), mode="drop"))
    [verified] = measured.timings["verified"]
    assert 0 <= verified["of_what_rounding_explains"] < 0.1
    assert verified["largest_kl"] > 0.01


def test_progress_counts_what_runs():
    request = small("entropy", "random", draws=3, effect="direct", positions_per_bin=5, bin_width=10)
    assert document_tokens(request) == 60 + 40 + 4 * 21 + 40 + 40  # near ends at 5: 3 and 3 of the first bin
    assert len(expand(small(per_layer=True, effect="both"), "", 0, (0, 1, 2))) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effect": "indirect"}, "total, direct or both"),
        ({"positions_per_bin": 0}, "give 1 to 128"),
        ({"positions_per_bin": 20, "bin_width": 10}, "give 1 to 10"),
        ({"layers": ()}, "`layers` names none"),
        ({"rerotate": True, "verify": True}, "leave out `rerotate` or `verify`"),
    ],
)
def test_requests_that_cannot_be_met(changes, message):
    with pytest.raises(UsageError, match=message):
        small(**changes)


@pytest.mark.parametrize(("changes", "message"), [({"layers": (7,)}, "layers are 0-2$"), ({"heads": (2,)}, "kv heads")])
def test_layers_and_heads_that_do_not_exist(model, document, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        measure(model, [document], small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lists_of_numbers():
    assert whole_numbers("0-3,7", "--layers") == (0, 1, 2, 3, 7)
    assert whole_numbers(None, "--layers") is None
    for wrong in ("", "a", "3-1", "1-", "-1", "1,,2"):
        with pytest.raises(UsageError, match="is not a list of numbers"):
            whole_numbers(wrong, "--layers")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt_neox"])
def test_rerotation_equals_a_context_with_its_gaps_closed(family):
    """Layer 0's keys depend on positions by rotation alone: computed anew at the closed positions they must agree."""
    model, tokens, _ = setup_case(family)
    trace = record(model, tokens[:N], span=len(tokens), rotation=True)
    keep = torch.zeros(trace.shape, dtype=torch.bool)
    keep[..., torch.arange(3, N, 2)] = True
    cache = removal(trace, Selection(keep, trace.layers), "keep", 5, rerotate=True).branch(5)
    kept = int(keep[0, 0].sum())
    index = trace.layers[0]
    from forward_influence.influence.rerotation import moved

    before = torch.arange(3, N, 2).expand(trace.kv_heads, -1)
    original = trace.cache.layers[index].keys[0][:, 3::2]
    back = moved(
        trace.rotation, index, cache.layers[index].keys[0], torch.arange(N - kept, N).expand_as(before), before
    )
    torch.testing.assert_close(back, original, atol=1e-10, rtol=0)
    if index == 0:
        shifted = record_at(model, tokens[:N], torch.arange(N) - torch.arange(3, N, 2)[-1] + N - 1)
        assert torch.allclose(cache.layers[0].keys[0][:, -1], shifted[:, 37 + 2], atol=1e-10)


def record_at(model, tokens, positions):
    """Keys of layer 0 at other positions, from a pass of the model itself."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.model.config)
    with torch.no_grad():
        model.model.base_model(tokens[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
    return cache.layers[0].keys[0]


def test_rerotation_changes_results_and_keeps_values(model, document):
    plain, moved = (conditions(model, document, small("entropy", rerotate=r))[0] for r in (False, True))
    assert plain["selected"] == moved["selected"]
    assert float(np.abs(plain["kl"] - moved["kl"]).max()) > 1e-4
    assert json.loads(plain["parameters"]) == json.loads(moved["parameters"])


def test_rerotation_needs_the_rotation():
    _, _, trace = setup_case("llama")
    ablation = removal(trace, random_selection(trace), "drop", 4, rerotate=True)
    with pytest.raises(UsageError, match="recorded without its rotation"):
        ablation.branch(4)
