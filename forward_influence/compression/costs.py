"""What generating with a compressed cache will cost, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.compression.compressor import Compressor
from forward_influence.models.sizes import Sizes, forward_operations, head_operations


@dataclass(frozen=True)
class GenerationCost:
    """The cost of one text, if all tokens that may be are generated.

    Attributes:
        tokens: that go through the model.
        operations: floating-point operations at most: those of the full cache (a multiplication and an addition are
            two). Scoring is not counted.
        compressions: how many.
        held: entries of each layer and head at the end, on average.
        bytes, full_bytes: of the cache at the end, and had it been full.
    """

    tokens: int
    operations: float
    compressions: int
    held: int
    bytes: int
    full_bytes: int


def generation_cost(sizes: Sizes, compressor: Compressor, prompt: int, new_tokens: int) -> GenerationCost:
    """Predict what a text costs.

    Args:
        prompt: tokens of the prompt.
        new_tokens: most tokens to generate, at least 1; the last one is not read any more.

    Raises:
        UsageError: a prompt that is kept whole and leaves nothing to choose of what is to be held.
    """
    seen = prompt + new_tokens - 1
    held, last, compressions = prompt, None, 0
    for so_far in range(prompt, seen + 1):
        held += so_far > prompt
        if not compressor.is_full and compressor.schedule.due(prompt, so_far, last):
            held, last, compressions = min(held, compressor.kept(so_far, prompt)), so_far, compressions + 1
    operations = forward_operations(sizes, 0, prompt) + forward_operations(sizes, prompt, new_tokens - 1)
    entropy = prompt if compressor.needs.head and not compressor.is_full else 0
    operations += head_operations(sizes, entropy + new_tokens)
    return GenerationCost(seen, operations, compressions, held, sizes.cache_bytes(seen, held), sizes.cache_bytes(seen))
