"""Positions that are Python integers as long as nothing in them depends on data.

An axis of length 1 stands for all of its positions.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

Extent = int | Int[Array, ""]


def slice_along(x: Any, start: Extent, n: int, axis: int) -> Array:
    """``n`` entries of an axis from ``start`` on."""
    if x.shape[axis] == 1 or x.shape[axis] == n:
        return x
    return lax.dynamic_slice_in_dim(x, start, n, axis)


def largest(*xs: int | Array) -> Extent:
    if all(isinstance(x, int) for x in xs):
        return max(xs)
    return functools.reduce(jnp.maximum, map(jnp.max, xs))


def smallest(*xs: int | Array) -> Extent:
    if all(isinstance(x, int) for x in xs):
        return min(xs)
    return functools.reduce(jnp.minimum, map(jnp.min, xs))


def clip(x: Extent, s: int) -> Extent:
    """x, but at least 0 and at most s."""
    return smallest(largest(x, 0), s)
