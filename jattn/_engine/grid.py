"""Queries and keys, and where they are: what a rule is asked about."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jattn._engine.extents import Extent

__all__ = ["Grid", "grid_of", "known_arange"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Queries and keys that a rule is asked about, with the axes ``*b h t s``, of length 1 where nothing differs.

    ``query`` and ``key`` are positions: 0 ... n - 1, or what the caller says they are. ``row`` and ``column`` number
    the queries and keys as they lie in their arrays.
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
    arange: Callable[[int], Any] = jnp.arange,
) -> Grid:
    """t queries from ``start`` on and s keys from ``first`` on, at these aligned positions or at their own numbers.

    ``ndim`` is the number of axes ``*b h t s``.
    """
    lead = (1,) * (ndim - 2)
    row = start + arange(t).reshape(*lead, t, 1)
    column = first + arange(s).reshape(*lead, 1, s)
    return Grid(row if query is None else query, column if key is None else key, row, column)


def known_arange(n: int) -> np.ndarray:
    """``jnp.arange(n)``, not traced under ``jit``."""
    return np.arange(n, dtype=jnp.arange(0).dtype)
