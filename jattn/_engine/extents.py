"""Positions that are Python integers as long as nothing in them depends on data.

An axis of length 1 stands for all of its positions.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

__all__ = ["Extent", "clip", "slice_along"]

Extent = int | Int[Array, ""]


def slice_along(x: Any, start: Extent, n: int, axis: int) -> Array:
    """``n`` entries of an axis from ``start`` on, which is not negative."""
    if x.shape[axis] == 1 or x.shape[axis] == n:
        return x
    return lax.dynamic_slice_in_dim(x, start, n, axis, allow_negative_indices=False)


def clip(x: Extent, s: int) -> Extent:
    """x, but at least 0 and at most s."""
    return min(max(x, 0), s) if isinstance(x, int) else lax.clamp(jnp.zeros_like(x), x, jnp.asarray(s, x.dtype))
