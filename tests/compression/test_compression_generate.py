"""Compression under the ways in which people call generate, and what is refused."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from threading import Thread

import pytest
import torch
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from transformers import TextIteratorStreamer, TextStreamer
from visible_sets import full_pass, generated, prompt, settings, watching

import forward_influence as fi
from forward_influence.compression import compress, make_compressor
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.instrument.instrument import NAME, Instrument


def speaking():
    """A tiny model that writes bytes, and its tokenizer."""
    return tiny_model("llama", torch.float32, vocab_size=VOCABULARY), byte_tokenizer(chat=True)


def test_the_snippet_of_the_readme():
    model, tokenizer = speaking()
    inputs = tokenizer("The tide turns twice a day. " * 4, return_tensors="pt")
    with fi.compress(model, "infokv", budget=0.25, every=16) as cache:
        written = model.generate(**inputs, past_key_values=cache, max_new_tokens=40, min_new_tokens=40)
    assert written.shape == (1, inputs["input_ids"].shape[1] + 40)
    assert cache.stats.seen == written.shape[1] - 1
    assert cache.stats.compressions == 3
    assert cache.stats.bytes < 0.75 * cache.stats.full_bytes
    assert cache.stats.scoring_seconds > 0
    assert cache.stats.head_seconds > 0


def test_chat_templates():
    model, tokenizer = speaking()
    turns = [{"role": "user", "content": "How deep is the harbour at low tide?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with compress(model, "attention", budget=20, every=8) as cache:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=12, min_new_tokens=12)
    assert cache.stats.events[0].held.unique().tolist() == [20]


@pytest.mark.parametrize("threaded", [False, True])
def test_streaming(threaded):
    """In a thread of its own too, which is how transformers' documentation streams into a loop."""
    model, tokenizer = speaking()
    inputs = tokenizer("Ships wait for the tide, and the tide for none. " * 2, return_tensors="pt")
    arguments = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    with compress(model, "infokv", budget=30, every=10) as cache:
        wanted = model.generate(**inputs, past_key_values=cache, **arguments)[0, inputs["input_ids"].shape[1] :]
    with compress(model, "infokv", budget=30, every=10) as cache:
        if threaded:
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
            thread = Thread(
                target=model.generate, kwargs={**inputs, **arguments, "past_key_values": cache, "streamer": streamer}
            )
            thread.start()
            text = "".join(streamer)
            thread.join()
        else:
            out = io.StringIO()
            with redirect_stdout(out):
                streamer = TextStreamer(tokenizer, skip_prompt=True)
                model.generate(**inputs, **arguments, past_key_values=cache, streamer=streamer)
            text = out.getvalue().removesuffix("\n")
    assert text == tokenizer.decode(wanted)
    assert cache.stats.compressions == 3
    with Instrument(model):
        pass  # nothing of the thread stayed on


def test_sampling_is_seeded_as_always():
    model = tiny_model("llama")
    written = []
    for _ in range(2):
        torch.manual_seed(3)
        with compress(model, "infokv", budget=0.4, every=10) as cache:
            out = model.generate(
                prompt(), past_key_values=cache, **{**settings(), "do_sample": True, "temperature": 1.5, "top_k": 40}
            )
        written.append(out.tolist())
    assert written[0] == written[1]


def test_a_second_turn_goes_on_with_the_same_cache():
    """generate again with what was written and more: only the new tokens are read, at their places."""
    model = tiny_model("llama")
    with compress(model, "infokv", budget=0.5, every=20, protect_last=8) as cache, watching(model, cache) as snapshots:
        first = model.generate(prompt(60), past_key_values=cache, **settings(60, 10))
        longer = torch.cat([first, prompt(25, seed=9)], dim=1)
        final = model.generate(longer, past_key_values=cache, **settings(95, 12))[0]
    assert [seen for seen, _ in snapshots.steps][9:12] == [69, 95, 96]
    assert [e.seen for e in cache.stats.events] == [60, 95]
    read = final[:-1]
    wanted = full_pass(model, read, snapshots.visible(len(read), 2)).logits
    places = [seen - 1 for seen, _ in snapshots.steps]
    torch.testing.assert_close(torch.stack(snapshots.logits), wanted[places], atol=1e-9, rtol=0)


def test_a_context_is_compressed_before_its_question_is_read():
    model = tiny_model("llama")
    tokens = prompt(80)
    with compress(model, "infokv", budget=0.5, protect_last=8) as cache:
        with torch.no_grad():
            model(tokens[:, :60], past_key_values=cache)
        assert cache.stats.held.unique().tolist() == [30]
        model.generate(tokens, past_key_values=cache, **settings(80, 5))
    assert cache.stats.held.unique().tolist() == [30 + 20 + 4]
    assert cache.stats.compressions == 1


def test_compressing_by_hand():
    model = tiny_model("llama")
    with compress(model, "attention", budget=0.5, prefill=False, every=1000) as cache:
        with torch.no_grad():
            model(prompt(60), past_key_values=cache)
        cache.compress()
        assert cache.stats.held.unique().tolist() == [30]
    with compress(model, "attention", budget=0.5) as cache:
        with torch.no_grad():
            model(prompt(60), past_key_values=cache)
        with pytest.raises(UsageError, match="every=1024"):
            cache.compress()


def test_a_pass_without_the_cache_is_refused():
    model = tiny_model("llama")
    with compress(model, "attention", budget=0.5) as cache:
        with pytest.raises(UsageError, match="pass past_key_values=cache"):
            model.generate(prompt(), max_new_tokens=3)
        model.generate(prompt(), past_key_values=cache, **settings())
    assert cache.stats.compressions == 1


@pytest.mark.parametrize(
    ("rule", "arguments", "words"),
    [
        ("atention", {}, "unknown compressor 'atention' .did you mean 'attention'"),
        ("attention:windw=3", {}, "no parameter 'windw'"),
        ("attention", {"budget": 0}, "selects nothing"),
        ("attention", {"budget": 0.0}, "selects nothing"),
        ("attention", {"budget": -0.5}, "selects nothing"),
        ("attention", {"budget": 1.5}, "not below 1"),
        ("attention", {"budget": "much"}, "not a number"),
        ("attention", {"every": 0}, "at least one token"),
        ("attention", {"prefill": False}, "never compresses"),
        ("attention", {"scheme": "pyramids"}, "did you mean 'pyramid'"),
        ("attention", {"protect_first": -1}, "negative"),
        ("rpc", {}, "give every=1024"),
        ("random-protected", {}, "give every=1024"),
        ("oracle", {}, "cannot compress"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(rule, arguments, words):
    with pytest.raises(UsageError, match=words) as raised, compress(tiny_model("llama"), rule, **arguments):
        pass
    assert "\n" not in str(raised.value)


def test_a_model_of_sliding_windows_alone():
    model = tiny_model("mistral", sliding_window=128)
    with pytest.raises(UsageError, match=r"say so with span=N"), compress(model, "attention"):
        pass
    with compress(model, "attention", budget=0.5, span=128) as cache:
        generated(model, cache)
    assert cache.stats.events[0].held.unique().tolist() == [35]
    with compress(model, "attention", budget=0.5, span=80) as cache, pytest.raises(UsageError, match="span=80"):
        generated(model, cache)


def test_the_cache_is_of_no_use_after_its_block():
    model = tiny_model("llama")
    with compress(model, "attention", budget=0.5) as cache:
        model.generate(prompt(), past_key_values=cache, **settings())
    assert cache.stats.seen == 115, "what it held can still be read"
    for use in (
        lambda: model.generate(prompt(130), past_key_values=cache, max_new_tokens=3),
        cache.compress,
        cache.reset,
    ):
        with pytest.raises(UsageError, match="block"):
            use()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_off_after_an_exception(error):
    model = tiny_model("llama")
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    plain = model.generate(prompt(), **settings()).tolist()

    def stop(module, inputs, output):
        raise error("stopped")

    def use() -> None:
        with compress(model, "infokv", budget=0.4, every=10) as cache:
            model.generate(prompt(20), past_key_values=cache, **settings(20, 3))
            handle = model.model.layers[1].register_forward_hook(stop)
            try:
                model.generate(prompt(40), past_key_values=cache, **settings(40, 3))
            finally:
                handle.remove()

    with pytest.raises(error):
        use()
    assert model.config._attn_implementation != NAME
    assert hooks == {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert model.generate(prompt(), **settings()).tolist() == plain
    with compress(model, "full") as cache:
        assert model.generate(prompt(), past_key_values=cache, **settings()).tolist() == plain


def test_one_block_at_a_time():
    model = tiny_model("llama")
    with compress(model, "attention"), pytest.raises(ForwardInfluenceError, match="leave its"), compress(model, "full"):
        pass


def test_compressors_can_be_made_once_and_used_often():
    model = tiny_model("llama")
    compressor = make_compressor("h2o", "0.5", every=8)
    for _ in range(2):
        with compress(model, compressor) as cache:
            model.generate(prompt(), past_key_values=cache, **settings())
        assert cache.stats.events[0].held.unique().tolist() == [35]
    assert cache.compressor is compressor
    own = fi.parse_selector("attention:window=4")
    with compress(model, own, budget=0.5) as cache:
        model.generate(prompt(), past_key_values=cache, **settings())
    assert cache.compressor.name == "attention:window=4"
