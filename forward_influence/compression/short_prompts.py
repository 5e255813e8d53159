"""Prompts that are too short for a budget: compressed, they would lose the question that is to be answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from forward_influence.compression.compressor import Compressor, make_compressor
from forward_influence.storage.evaluation import FULL


def sparing(compressor: Compressor, prompts: Sequence[int], asked: bool = False) -> tuple[Compressor, str]:
    """The compressor that keeps short prompts whole, and a remark for people; "" where there is none.

    A prompt is short where its budget is no more than what is pinned by default: the first tokens, and the last ones or
    the window that a rule observes from. Nothing, or next to nothing, would be left for the rule to choose. The prompt
    then stays whole, and the budget is of what follows it; where nothing is compressed after the prompt, nothing is.

    Args:
        prompts: lengths in tokens; all must be short.
        asked: whether it was said what happens to the prompt; then it does, and the remark says what that means.
    """
    if compressor.is_full or compressor.keeps_prompt or compressor.budget.of_all or not compressor.schedule.prefill:
        return compressor, ""
    last = compressor.protect_last if isinstance(compressor.protect_last, int) else compressor.rule.observation_window
    wanted = compressor.protect_first + last
    longest = max(prompts)
    kept = compressor.kept(longest, longest)
    if kept > wanted or (kept >= longest and compressor.schedule.every is None):
        return compressor, ""
    budget = f"`budget` {compressor.budget.text} leaves {kept} of the prompt's {longest} tokens"
    if asked or compressor.needs.whole:
        narrowed = compressor.pinned(kept, longest)[1]
        return compressor, (
            f"{budget}, no more than the first {compressor.protect_first} and the last {last} that are always kept: "
            f"only the last {narrowed} are"
        )
    remark = f"{budget}, too few to choose from: the prompt is kept whole (`keep_prompt=False` compresses it)"
    if compressor.schedule.every is None:
        return make_compressor(FULL), f"{remark}, and nothing is compressed after it; `every` 256 would"
    return dataclasses.replace(compressor, keeps_prompt=True), remark
