"""Masks have no rounding: every one equals its PyTorch counterpart exactly.

The pairs of `rules` also serve the tests of the functions that masks are handed to.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

import jattn
import torch_ref
from jattn import masks

B, H = 2, 3
BY_POSITION = ("dilated", "neighbourhood", "where")  # the others stream in test_streaming.py
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
        "dilated": Rule(masks.dilated_window(2, 1, 2), torch_ref.dilated_window(t, s, 2, 1, 2)),
        "dilated, offset": Rule(masks.dilated_window(1, 0, 3, offset=2), torch_ref.dilated_window(t, s, 1, 0, 3, 2)),
        "dilated, offset per example": Rule(
            masks.dilated_window(1, 1, 2, offset=jnp.asarray(offsets)),
            _stack(torch_ref.dilated_window(t, s, 1, 1, 2, int(n)) for n in offsets),
        ),
        "neighbourhood": Rule(masks.neighbourhood((3, 3), 1), torch_ref.neighbourhood(t, s, (3, 3), 1)),
        "neighbourhood, several": Rule(
            masks.neighbourhood((2, 2), (0, 1)), torch_ref.neighbourhood(t, s, (2, 2), (0, 1))
        ),
        "where": Rule(
            masks.where(lambda q, k: (q + k) % 3 > 0), torch_ref.masks.where(lambda i, j: (i + j) % 3 > 0, t, s)
        ),
        "where, span": Rule(
            masks.where(lambda q, k: abs(q - k) == 1, span=lambda first, last: (first - 1, last + 1)),
            torch_ref.masks.where(lambda i, j: (i - j).abs() == 1, t, s),
        ),
        "where, per head": Rule(
            masks.where(lambda q, k, step: k % step == q % step, step=("h", jnp.arange(1, H + 1))),
            torch_ref.masks.where(lambda i, j: j % _steps() == i % _steps(), t, s),
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


def _steps() -> Tensor:
    return torch.arange(1, H + 1)[:, None, None]


def _dense(rng: np.random.Generator, *shape: int) -> Rule:
    array = rng.random(shape) < 0.6
    return Rule(masks.dense(jnp.asarray(array)), torch.as_tensor(array))


@pytest.mark.parametrize("name", rules(5, 7))
@pytest.mark.parametrize(("t", "s"), SIZES)
@pytest.mark.every_case
def test_a_mask_equals_the_tensor(name: str, t: int, s: int) -> None:
    ours, theirs = rules(t, s)[name]
    array, full = ours.as_array(t, s), (B, H, t, s)
    assert array.dtype == jnp.bool_
    assert array.shape[-2:] == (t, s)
    assert np.array_equal(np.broadcast_to(array, full), np.broadcast_to(theirs, full))


@pytest.mark.parametrize("name", rules(5, 7))
def test_a_part_of_a_mask_equals_the_part_of_the_tensor(name: str) -> None:
    """The keys that have a weight at all, of some queries and heads in another order."""
    ours, theirs = rules(5, 7)[name]
    heads, queries = [2, 0], [4, 1, 2]
    query, key = jnp.zeros((B, 5, H, 1)), jnp.zeros((B, 7, H, 1))
    part = jattn.attention_weights(query, key, mask=ours, heads=heads, queries=queries) > 0
    assert np.array_equal(part, np.broadcast_to(theirs, (B, H, 5, 7))[:, heads][:, :, queries])


@pytest.mark.parametrize("name", [name for name in rules(5, 7) if name.split(",")[0] in BY_POSITION])
def test_a_mask_in_blocks_equals_the_tensor(name: str) -> None:
    """The keys that have a weight at all, where a block of queries is only shown the keys in its reach."""
    t, s = 150, 280
    assert_same_in_blocks(*rules(t, s)[name], t, s)


@pytest.mark.parametrize(("shape", "radius"), [((10, 14), (2, 3)), ((14, 20), (13, 0)), ((5, 8, 7), 1), ((280,), 40)])
def test_a_neighbourhood_equals_the_tensor(shape: tuple[int, ...], radius: int | tuple[int, ...]) -> None:
    ours, theirs = masks.neighbourhood(shape, radius), torch_ref.neighbourhood(280, 280, shape, radius)
    assert np.array_equal(ours.as_array(280, 280), theirs)
    assert_same_in_blocks(ours, theirs, 280, 280)


def at_positions(t: int, s: int, query: Tensor, key: Tensor) -> dict[str, Rule]:
    """The pairs for queries and keys at these positions, which lengths, segments and arrays do not look at."""
    unmoved = {name: rules(t, s)[name] for name in ("lengths, per example", "segments", "dense, per head")}
    grid = torch_ref.neighbourhood(2 * s, 2 * s, (3, 5), 1)

    def where(f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch_ref.masks.where(f, t, s, query, key)

    moved = {
        "causal": Rule(masks.causal(), where(lambda i, j: j <= i)),
        "causal, offset": Rule(masks.causal(offset=-2), where(lambda i, j: j <= i - 2)),
        "causal, offset per example": Rule(
            masks.causal(offset=jnp.array([-3, 2])),
            where(lambda i, j: j <= i + torch.tensor([-3, 2])[:, None, None, None]),
        ),
        "window": Rule(masks.sliding_window(3, 1), where(lambda i, j: (i - 3 <= j) & (j <= i + 1))),
        "window, offset": Rule(masks.sliding_window(1, 0, offset=4), where(lambda i, j: (j == i + 4) | (j == i + 3))),
        "dilated": Rule(
            masks.dilated_window(2, 1, 3), where(lambda i, j: torch.isin(j - i, torch.tensor([-6, -3, 0, 3])))
        ),
        "prefix": Rule(masks.prefix(3), where(lambda i, j: j.expand(torch.broadcast_shapes(i.shape, j.shape)) < 3)),
        "neighbourhood": Rule(masks.neighbourhood((3, 5), 1), where(lambda i, j: grid[i, j])),
        "where": Rule(masks.where(lambda q, k: (q + k) % 3 > 0), where(lambda i, j: (i + j) % 3 > 0)),
        "where, span": Rule(
            masks.where(lambda q, k: abs(q - k) == 1, span=lambda first, last: (first - 1, last + 1)),
            where(lambda i, j: (i - j).abs() == 1),
        ),
    }
    combined = {
        "and": Rule(
            moved["causal"].ours & unmoved["segments"].ours, moved["causal"].theirs & unmoved["segments"].theirs
        ),
        "or": Rule(moved["window"].ours | moved["prefix"].ours, moved["window"].theirs | moved["prefix"].theirs),
        "not": Rule(~moved["causal"].ours, ~moved["causal"].theirs),
    }
    return unmoved | moved | combined


def positions(t: int, s: int, in_order: bool) -> dict[str, np.ndarray]:
    """For each example its own, with gaps and some twice."""
    rng = np.random.default_rng(0)
    both = {"query_positions": rng.integers(0, 2 * s, (B, t)), "key_positions": rng.integers(0, 2 * s, (B, s))}
    return {name: np.sort(x) if in_order else x for name, x in both.items()}


NAMES = list(at_positions(1, 1, torch.zeros(B, 1, dtype=torch.int), torch.zeros(B, 1, dtype=torch.int)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_order", [True, False])
def test_a_mask_at_positions_equals_the_tensor(name: str, in_order: bool) -> None:
    t, s = 5, 7
    at = positions(t, s, in_order)
    ours, theirs = at_positions(t, s, *map(torch.as_tensor, at.values()))[name]
    assert_same(ours, theirs, t, s, **at)


@pytest.mark.parametrize("name", ["causal", "window", "dilated", "prefix", "neighbourhood", "where, span", "and", "or"])
def test_a_mask_at_positions_in_blocks_equals_the_tensor(name: str) -> None:
    t, s = 300, 130
    at = positions(t, s, in_order=True)
    ours, theirs = at_positions(t, s, *map(torch.as_tensor, at.values()))[name]
    assert_same_in_blocks(ours, theirs, t, s, **at)


def assert_same(ours: masks.Mask, theirs: Tensor, t: int, s: int, **at: np.ndarray) -> None:
    """The keys that have a weight at all."""
    query, key = jnp.zeros((B, t, H, 1)), jnp.zeros((B, s, 1, 1))
    seen = jattn.attention_weights(query, key, mask=ours, **_jax(at)) > 0
    assert np.array_equal(seen, np.broadcast_to(theirs, (B, H, t, s)))


def _jax(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def assert_same_in_blocks(ours: masks.Mask, theirs: Tensor, t: int, s: int, **at: np.ndarray) -> None:
    query, key, value = jnp.zeros((B, t, H, 1)), jnp.zeros((B, s, 1, 1)), jnp.eye(s)[:, None] * jnp.ones((B, 1, 1, 1))
    seen = jattn.attention(query, key, value, mask=ours, implementation="streaming", **_jax(at)) > 0
    assert np.array_equal(np.swapaxes(seen, 1, 2), np.broadcast_to(theirs, (B, H, t, s)))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 0), (0, 3), (1, 2), (9, 9)])
@pytest.mark.parametrize(("t", "s"), SIZES)
def test_every_offset(t: int, s: int, left: int, right: int) -> None:
    for offset in range(-t - 1, s + 2):
        assert np.array_equal(masks.causal(offset=offset).as_array(t, s), torch_ref.causal(t, s, offset))
        ours = masks.sliding_window(left, right, offset=offset).as_array(t, s)
        assert np.array_equal(ours, torch_ref.sliding_window(t, s, left, right, offset))
