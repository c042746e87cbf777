"""Masks have no rounding: every one equals its PyTorch counterpart exactly.

The pairs of `rules` also serve the tests of the functions that masks are handed to.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

import torch_ref
from jattn import masks

B, H = 2, 3
SIZES = ((5, 7), (7, 5), (5, 5), (1, 7), (5, 1))


class Rule(NamedTuple):
    """A mask and the tensor that it must equal."""

    ours: masks.Mask
    theirs: Tensor


@functools.cache
def rules(t: int, s: int) -> dict[str, Rule]:
    """The pairs for B examples of t queries and s keys, and H heads."""
    rng = np.random.default_rng(t + 10 * s)
    offsets, prefixes = np.array([s - t, -1]), np.array([min(2, s), max(1, s - 1)])
    per_example, per_query = np.array([0, s]), rng.integers(0, s + 1, (B, t))
    query_ids, key_ids = np.sort(rng.integers(0, 3, (B, t))), np.sort(rng.integers(0, 3, (B, s)))
    pairs = {
        "causal": Rule(masks.causal(), torch_ref.causal(t, s)),
        "causal, offset": Rule(masks.causal(offset=2), torch_ref.causal(t, s, offset=2)),
        "causal, negative offset": Rule(masks.causal(offset=-2), torch_ref.causal(t, s, offset=-2)),
        "causal, offset per example": Rule(
            masks.causal(offset=jnp.asarray(offsets)), _stack(torch_ref.causal(t, s, int(n)) for n in offsets)
        ),
        "causal, lower right": Rule(masks.causal_lower_right(t, s), torch_ref.causal_lower_right(t, s)),
        "window": Rule(masks.sliding_window(2, 1), torch_ref.sliding_window(t, s, 2, 1)),
        "window, ahead": Rule(masks.sliding_window(0, 3), torch_ref.sliding_window(t, s, 0, 3)),
        "window, of one": Rule(masks.sliding_window(0, 0), torch_ref.sliding_window(t, s, 0, 0)),
        "window, offset": Rule(
            masks.sliding_window(1, 2, offset=3), torch_ref.sliding_window(t, s, left=1, right=2, offset=3)
        ),
        "window, offset per example": Rule(
            masks.sliding_window(1, 0, offset=jnp.asarray(offsets)),
            _stack(torch_ref.sliding_window(t, s, 1, 0, int(n)) for n in offsets),
        ),
        "lengths, one for all": Rule(masks.lengths(s - 1), torch_ref.lengths(s - 1, s)),
        "lengths, per example": Rule(
            masks.lengths(jnp.asarray(per_example)), torch_ref.lengths(torch.as_tensor(per_example), s)
        ),
        "lengths, per query": Rule(
            masks.lengths(jnp.asarray(per_query)), torch_ref.lengths(torch.as_tensor(per_query), s)
        ),
        "lengths, all zero": Rule(masks.lengths(jnp.zeros(B, int)), torch_ref.lengths(torch.zeros(B, dtype=int), s)),
        "segments": Rule(
            masks.segments(jnp.asarray(query_ids), jnp.asarray(key_ids)),
            torch_ref.segments(torch.as_tensor(query_ids), torch.as_tensor(key_ids)),
        ),
        "prefix": Rule(masks.prefix(min(3, s)), torch_ref.prefix(min(3, s), s)),
        "prefix, per example": Rule(
            masks.prefix(jnp.asarray(prefixes)), _stack(torch_ref.prefix(int(n), s) for n in prefixes)
        ),
        "dense": _dense(rng, t, s),
        "dense, per head": _dense(rng, H, t, s),
        "dense, per example and head": _dense(rng, B, H, t, s),
        "dense, keys only": _dense(rng, B, 1, 1, s),
        "dense, queries only": _dense(rng, t, 1),
    }
    ours, theirs = ({name: getattr(pair, side) for name, pair in pairs.items()} for side in Rule._fields)
    combinations = {
        "prefix, or causal": lambda m: m["causal"] | m["prefix"],
        "combination, and": lambda m: m["causal"] & m["lengths, per query"],
        "combination, or": lambda m: m["segments"] | m["dense, per head"],
        "combination, not": lambda m: ~m["window, of one"],
        "combination, of combinations": lambda m: m["window"] & ~(m["lengths, per example"] | m["segments"]),
    }
    return pairs | {name: Rule(combine(ours), combine(theirs)) for name, combine in combinations.items()}


def _stack(matrices: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(matrices))[:, None]


def _dense(rng: np.random.Generator, *shape: int) -> Rule:
    array = rng.random(shape) < 0.6
    return Rule(masks.dense(jnp.asarray(array)), torch.as_tensor(array))


@pytest.mark.parametrize("name", rules(5, 7))
@pytest.mark.parametrize(("t", "s"), SIZES)
def test_a_mask_equals_the_tensor(name: str, t: int, s: int) -> None:
    ours, theirs = rules(t, s)[name]
    array, full = ours.as_array(t, s), (B, H, t, s)
    assert array.dtype == jnp.bool_
    assert array.shape[-2:] == (t, s)
    assert np.array_equal(np.broadcast_to(array, full), np.broadcast_to(theirs, full))


@pytest.mark.parametrize("name", rules(5, 7))
def test_a_block_of_a_mask_equals_the_block_of_the_tensor(name: str) -> None:
    ours, theirs = rules(5, 7)[name]
    rows, cols = np.array([1, 2, 4]), np.array([0, 3, 4, 6])
    block = np.broadcast_to(theirs, (B, H, 5, 7))[..., rows, :][..., cols]
    assert np.array_equal(np.broadcast_to(ours(jnp.asarray(rows), jnp.asarray(cols)), block.shape), block)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 0), (0, 3), (1, 2), (9, 9)])
@pytest.mark.parametrize(("t", "s"), SIZES)
def test_every_offset(t: int, s: int, left: int, right: int) -> None:
    for offset in range(-t - 1, s + 2):
        assert np.array_equal(masks.causal(offset=offset).as_array(t, s), torch_ref.causal(t, s, offset))
        ours = masks.sliding_window(left, right, offset=offset).as_array(t, s)
        assert np.array_equal(ours, torch_ref.sliding_window(t, s, left, right, offset))
