"""Attending against a plain loop over queries: whatever the mask, and however it came to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forward_influence.instrument.attention import Geometry, attend, causal_tail, probabilities

PLAIN = Geometry(0.3)


def tensors(heads: int, kv_heads: int, length: int, held: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value; keys and values are the beginning of a longer store, as a cache gives them."""
    made = torch.Generator().manual_seed(heads + length)
    query = torch.randn(1, length, heads, 8, generator=made, dtype=dtype).transpose(1, 2)
    stores = (torch.randn(1, kv_heads, held + 5, 8, generator=made, dtype=dtype) for _ in range(2))
    return [query, *(store[:, :, :held] for store in stores)]


def by_loops(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Attention as it is written in books, a query at a time."""
    group = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        k, v = key[0, head // group], value[0, head // group]
        for i in range(query.shape[2]):
            seen = visible[i].nonzero()[:, 0]
            weights = torch.softmax(scaling * (k[seen] @ query[0, head, i]), 0)
            out[0, head, i] = weights @ v[seen]
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize(("length", "held"), [(2, 3), (5, 40), (33, 34), (70, 600)])
def test_causal_attention_over_what_a_cache_holds(heads: int, kv_heads: int, length: int, held: int) -> None:
    given = tensors(heads, kv_heads, length, held)
    tail = causal_tail(length, held, torch.device("cpu"))
    expected = by_loops(*given, tail, PLAIN.scaling)
    torch.testing.assert_close(attend(*given, PLAIN, tail[None, None]), expected, rtol=1e-12, atol=1e-12)
    small = [t.float() for t in given]
    torch.testing.assert_close(attend(*small, PLAIN, tail[None, None]).double(), expected, rtol=1e-5, atol=1e-5)


def test_weights_that_differ_beyond_all_measure() -> None:
    query, key, value = tensors(4, 2, 5, 20)
    for scale, part in ((1e4, slice(0, 15)), (1e4, slice(15, 20))):
        scaled = key.clone()
        scaled[:, :, part] *= scale
        tail = causal_tail(5, 20, torch.device("cpu"))
        expected = by_loops(query, scaled, value, tail, PLAIN.scaling)
        torch.testing.assert_close(attend(query, scaled, value, PLAIN, tail[None, None]), expected)


@pytest.mark.parametrize("where", [(0, 0), (0, 8), (3, 11), (4, 10)])
def test_a_mask_that_hides_one_thing_more_or_less_is_obeyed(where: tuple[int, int]) -> None:
    given = tensors(4, 2, 5, 12)
    mask = causal_tail(5, 12, torch.device("cpu")).clone()
    mask[where] = ~mask[where]
    expected = by_loops(*given, mask, PLAIN.scaling)
    torch.testing.assert_close(attend(*given, PLAIN, mask[None, None]), expected, rtol=1e-12, atol=1e-12)


def test_a_mask_changed_in_place_is_looked_at_again() -> None:
    given = tensors(4, 2, 5, 12)
    mask = causal_tail(5, 12, torch.device("cpu")).clone()
    attend(*given, PLAIN, mask[None, None])
    mask[2, 3] = False
    expected = by_loops(*given, mask, PLAIN.scaling)
    torch.testing.assert_close(attend(*given, PLAIN, mask[None, None]), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_probabilities() -> None:
    given = [t.detach().requires_grad_() for t in tensors(4, 2, 5, 12)]
    tail = causal_tail(5, 12, torch.device("cpu"))
    attend(*given, PLAIN, tail[None, None]).square().sum().backward()
    found = [t.grad for t in given]
    again = [t.detach().requires_grad_() for t in given]
    weights = probabilities(again[0][0], again[1][0], PLAIN, tail)
    (weights @ again[2][0][:, None]).square().sum().backward()
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other.grad)
