"""The memory formula: its terms, what grows with what, chunk sizes and refusals."""

from __future__ import annotations

import pytest
import tiny_data

from forward_influence.cache import SelectiveCache
from forward_influence.cards import Card
from forward_influence.errors import UsageError
from forward_influence.memory import Sizes, choose_chunk, fitting_chunk, parse_bytes, peak
from forward_influence.recording import record
from forward_influence.request import Request

SMOL = Sizes(layers=30, query_heads=9, kv_heads=3, head_size=64, hidden=576, intermediate=1536, vocabulary=49152)


def test_sizes_count_the_weights_of_a_model():
    model = tiny_data.model().model
    sizes = Sizes.of(model.config)
    matrices = [
        p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name and "lm_head" not in name
    ]
    assert sizes.body_parameters == sum(p.numel() for p in matrices)
    assert sizes.head_parameters == model.get_output_embeddings().weight.numel()


def test_cache_term_is_what_the_cache_holds():
    model = tiny_data.model()
    [document] = tiny_data.documents(1, 100)
    trace = record(model, document.segments[0][:60], span=100)
    assert isinstance(trace.cache, SelectiveCache)
    sizes = Sizes.of(model.model.config)
    assert trace.cache.bytes() == sizes.cache_bytes(60)
    assert trace.cache.branch(None, 40).bytes() == sizes.cache_bytes(100)


def test_conditions_cost_hidden_states_and_no_cache():
    one, many = (peak(SMOL, 1024, 3072, conditions, 512) for conditions in (1, 21))
    assert many.total - one.total == 20 * 3072 * 576 * 4
    thousands = peak(SMOL, 1024, 3072, 5000, 512)
    assert thousands.hidden_states < (1 << 29) + 2 * 3072 * 576 * 4, "conditions wait in groups"


def test_continuation_and_vocabulary_do_not_multiply():
    def at(m: int, vocabulary: int) -> int:
        sizes = Sizes(30, 9, 3, 64, 576, 1536, vocabulary)
        return peak(sizes, 1024, m, 4, 512).total

    growth = at(6144, 98304) - at(3072, 98304) - (at(6144, 49152) - at(3072, 49152))
    assert growth <= 0


def test_a_limit_picks_the_chunk_or_refuses_with_the_figure():
    request = Request(selectors=("recent",), context=1024, continuation=3072)
    roomy, tight = peak(SMOL, 1024, 3072, 1, 512).total, peak(SMOL, 1024, 3072, 1, 128).total
    assert fitting_chunk(SMOL, request, roomy, 512) == 512
    assert fitting_chunk(SMOL, request, tight, 512) == 128
    with pytest.raises(UsageError, match=r"this needs \d\d\d MB above the model \(context cache 47 MB"):
        fitting_chunk(SMOL, request, 10**8, 512)


def test_limits_are_read_with_their_units():
    assert parse_bytes("8GB") == 8 * 10**9
    assert parse_bytes("1.5 GiB") == 3 << 29
    assert parse_bytes("1000") == 1000
    for wrong in ("much", "-1GB", "0", "5XB", "GB"):
        with pytest.raises(UsageError, match="no amount of memory"):
            parse_bytes(wrong)


def test_a_tiny_model_fits_this_machine():
    request = Request(selectors=("recent",), context=60, continuation=40, protect_last=8)
    card = Card.of(tiny_data.model())
    assert choose_chunk(card.sizes, card.free_bytes, request, None, 512) == 512
