"""Queries and keys, and where they are: what a rule is asked about."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jattn._engine.extents import Extent

__all__ = ["Grid", "grid_of"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Queries and keys that a rule is asked about, with the axes ``*b h t s``, of length 1 where nothing differs.

    ``query`` and ``key`` are positions: 0 ... n - 1, or what the caller says they are. ``row`` and ``column`` number
    the queries and keys as they lie in their arrays, those of all devices where these have a part each.
    """

    query: Any  # integers, *b 1 t 1
    key: Any  # *b 1 1 s
    row: Any
    column: Any
    # Numbers known while tracing are NumPy's. A formula of all pairs of many of them is better left to the program.
    in_program: "Callable[[], Grid] | None" = None

    def diagonal(self) -> "Grid":
        """Each key and the query of the same number."""
        return dataclasses.replace(self, query=self.query.swapaxes(-1, -2), row=self.row.swapaxes(-1, -2))

    @functools.cached_property
    def first(self) -> Any:
        """The smallest position of a query."""
        return self.query.min(axis=-2, keepdims=True)

    @functools.cached_property
    def last(self) -> Any:
        """The largest position of a query."""
        return self.query.max(axis=-2, keepdims=True)


def grid_of(
    t: int,
    s: int,
    *,
    start: Extent = 0,
    first: Extent = 0,
    ndim: int = 3,
    query: Array | None = None,
    key: Array | None = None,
    known: bool = False,
) -> Grid:
    """t queries from ``start`` on and s keys from ``first`` on, at these aligned positions or at their own numbers.

    ``ndim`` is the number of axes ``*b h t s``. Numbers that are ``known`` are NumPy's, not traced under ``jit``.
    """

    def numbers(n: int, start: Extent, axis: int) -> Any:
        shape = [1] * ndim
        shape[axis] = n
        dtype = jnp.result_type(int)
        counted = np.arange(n, dtype=dtype).reshape(shape) if known else lax.broadcasted_iota(dtype, shape, ndim + axis)
        return counted if isinstance(start, int) and start == 0 else start + counted

    row, column = numbers(t, start, -2), numbers(s, first, -1)
    return Grid(row if query is None else query, column if key is None else key, row, column)
