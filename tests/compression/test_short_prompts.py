"""Prompts that are too short for a budget stay whole, and a word is said of it."""

from __future__ import annotations

import pytest

from forward_influence.compression import make_compressor
from forward_influence.compression.short_prompts import sparing


@pytest.mark.parametrize(
    ("arguments", "prompts", "short"),
    [
        ({"budget": "0.25"}, [36], True),  # 9 tokens of 68 that would be pinned
        ({"budget": "0.25"}, [272], True),  # 68 of 68
        ({"budget": "0.25"}, [276], False),  # 69: one to choose
        ({"budget": "0.25"}, [36, 400], False),  # one long prompt
        ({"budget": "40"}, [36], True),  # what follows it would push it out
        ({"budget": "40", "every": None}, [36], False),  # nothing would be removed
        ({"budget": "40"}, [400], True),
        ({"budget": "40", "protect_last": 8}, [400], False),
        ({"budget": "0.25", "prefill": False}, [36], False),  # the prompt is not compressed anyhow
        ({"budget": "1.0"}, [36], False),
    ],
)
def test_which_prompts_are_short(arguments, prompts, short):
    made = make_compressor("snapkv", **{"every": 16, **arguments})
    found, remark = sparing(made, prompts)
    assert found.keeps_prompt == bool(remark) == short
    if short:
        assert found.kept(max(prompts), max(prompts)) == max(prompts)
        assert f"{max(prompts)} tokens" in remark


def test_where_nothing_follows_nothing_is_compressed():
    found, remark = sparing(make_compressor("snapkv", "0.25"), [36])
    assert found.is_full
    assert "`every` 256 would" in remark


def test_what_was_asked_for_is_done_with_a_warning():
    made = make_compressor("snapkv", "0.25")
    found, remark = sparing(made, [36], asked=True)
    assert found is made
    assert remark.startswith(
        "`budget` 0.25 leaves 9 of the prompt's 36 tokens, no more than the first 4 and the last 64"
    )
    assert remark.endswith("only the last 4 are")
    assert sparing(made, [400], asked=True) == (made, "")


def test_a_rule_that_reads_the_prompt_whole_compresses_it():
    made = make_compressor("kvzip", "0.25")
    assert sparing(made, [36])[0] is made
