"""The memory formula: its terms, what grows with what, chunk sizes and refusals."""

from __future__ import annotations

import copy

import pytest
import tiny_data

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.measurement.memory import choose_chunk, fitting_chunk, peak, peak_of_request
from forward_influence.measurement.request import Request
from forward_influence.models.info import Card
from forward_influence.models.sizes import Sizes
from forward_influence.tracing.recorder import record
from forward_influence.utils.memory import parse_bytes

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


@pytest.mark.parametrize(
    ("context", "continuation", "rule", "measured"),
    [
        (512, 512, "recent", 37e6),
        (2048, 512, "recent", 40e6),
        (2048, 256, "attention", 24e6),
        (4096, 512, "recent", 52e6),
        (2048, 2048, "recent", 70e6),
    ],
)
def test_short_continuations_of_a_small_model_take_what_was_measured(context, continuation, rule, measured):
    sizes = Sizes(4, 4, 1, 64, 256, 682, 4096)  # random:4x256x4096 of benchmarks/engine.py
    request = Request(selectors=(rule,), context=context, continuation=continuation)
    assert peak_of_request(sizes, request, 512).total == pytest.approx(measured, rel=0.15)


def test_no_more_rows_of_logits_than_the_continuation_has():
    assert peak(SMOL, 1024, 100, 1, 512).head == 3 * 100 * 49152 * 4
    assert peak(SMOL, 1024, 1000, 1, 512).head == 3 * 256 * 49152 * 4


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "x"},
        {"vocab_size": None},
        {"num_hidden_layers": -1},
        {"intermediate_size": [1, 2]},
    ],
)
def test_a_configuration_that_describes_no_decoder_is_refused_in_a_line(odd):
    [name] = odd
    config = copy.copy(tiny_data.model().model.config)
    config.__dict__[name] = odd[name]  # past the checks of its class, which files of other versions lack
    with pytest.raises(UsageError, match=rf"the configuration \(llama\) has .* for {name}"):
        Sizes.of(config)


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


def test_verification_grows_with_the_square_of_the_length_and_is_named_where_it_does_not_fit():
    def of(span: int) -> Request:
        return Request(selectors=("recent",), context=span // 2, continuation=span // 2, verify=True)

    sizes = Sizes(4, 12, 4, 64, 768, 2048, 4096)  # random:4x768x4096 of benchmarks/engine.py: 241 MB at 512 + 512
    assert peak_of_request(sizes, of(1024), 512).total == pytest.approx(241e6, rel=0.15)
    assert peak_of_request(sizes, of(16384), 512).total > 3.5 * peak_of_request(sizes, of(8192), 512).total
    assert peak(sizes, 512, 512, 1, 512).verification == 0
    with pytest.raises(UsageError, match=r"verification [\d,]+ MB.* leave out `verify`"):
        fitting_chunk(sizes, of(16384), 10**9, 512)


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
