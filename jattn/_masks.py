"""The masks themselves, which the functions of `jattn.masks` make: each one's formula."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jattn._engine import checks
from jattn._engine.axes import Shape, over
from jattn._engine.checks import is_concrete
from jattn._engine.function_rule import FunctionRule
from jattn._engine.grid import Grid
from jattn._engine.of_caller import an_array, as_part_of_a_program
from jattn._mask import Allowed, Keys, Mask

__all__ = [
    "Causal",
    "DilatedWindow",
    "Everyone",
    "FunctionMask",
    "Lengths",
    "LengthsPerQuery",
    "Neighbourhood",
    "Segments",
    "SlidingWindow",
    "is_among",
]


class Causal(Mask):
    offset: int | Array = over("b")

    def formula(self, grid: Grid) -> Allowed:
        return grid.key <= grid.query + self.offset

    def reachable(self, grid: Grid) -> Keys:
        return grid.key <= grid.last + self.offset

    def whole(self, grid: Grid) -> Keys:
        return grid.key <= grid.first + self.offset

    attended = reachable


class SlidingWindow(Mask):
    left: int
    right: int
    offset: int | Array = over("b")

    def formula(self, grid: Grid) -> Allowed:
        position = grid.query + self.offset
        return (position - self.left <= grid.key) & (grid.key <= position + self.right)

    def reachable(self, grid: Grid) -> Keys:
        first, last = grid.first + self.offset, grid.last + self.offset
        return (first - self.left <= grid.key) & (grid.key <= last + self.right)

    def whole(self, grid: Grid) -> Keys:
        first, last = grid.first + self.offset, grid.last + self.offset
        return (last - self.left <= grid.key) & (grid.key <= first + self.right)

    def attended(self, grid: Grid) -> Keys:
        without_gaps = grid.query is grid.row
        return self.reachable(grid) if without_gaps else super().attended(grid)


class DilatedWindow(Mask):
    window: SlidingWindow
    dilation: int

    def formula(self, grid: Grid) -> Allowed:
        away = grid.key - grid.query - self.window.offset
        return self.window.formula(grid) & (away % self.dilation == 0)

    def reachable(self, grid: Grid) -> Keys:
        return self.window.reachable(grid)


class Neighbourhood(Mask):
    shape: tuple[int, ...]
    radius: tuple[int, ...]

    def formula(self, grid: Grid) -> Allowed:
        query, key, near = grid.query, grid.key, []
        for n, most in zip(reversed(self.shape), reversed(self.radius), strict=True):
            near.append(abs(query % n - key % n) <= most)
            query, key = query // n, key // n
        same_grid = query == key  # if there are several, one after the other
        return functools.reduce(operator.and_, near, same_grid)

    def reachable(self, grid: Grid) -> Keys:
        farthest = 0
        for n, most in zip(self.shape, self.radius, strict=True):
            farthest = farthest * n + most
        return (grid.first - farthest <= grid.key) & (grid.key <= grid.last + farthest)


class Lengths(Mask):
    valid_lens: int | Array = over("b")
    name: str  # what the caller knows it as
    by_position: bool

    def formula(self, grid: Grid) -> Allowed:
        return (grid.key if self.by_position else grid.column) < self.valid_lens

    def reachable(self, grid: Grid) -> Keys:
        return self.formula(grid)

    whole = reachable

    @property
    def by_key(self) -> bool:
        return True

    def name_of(self, field: str) -> str:
        return self.name

    def check_values(self, shape: Shape) -> None:
        # Positions may lie beyond the keys that are here: those of a cache, say, or of documents that are packed.
        _check_counts(self.name, self.valid_lens, None if self.by_position else shape.all_keys)


class LengthsPerQuery(Mask):
    valid_lens: Array = over("bt")

    def formula(self, grid: Grid) -> Allowed:
        return grid.column < self.valid_lens

    def reachable(self, grid: Grid) -> Keys:
        return grid.column < self.valid_lens.max(axis=-2, keepdims=True)

    def whole(self, grid: Grid) -> Keys:
        return grid.column < self.valid_lens.min(axis=-2, keepdims=True)

    attended = reachable

    def check_values(self, shape: Shape) -> None:
        _check_counts("valid_lens", self.valid_lens, shape.all_keys)


class Segments(Mask):
    query_ids: Array = over("bt")
    key_ids: Array = over("bs")
    own: bool = False  # whether both are those of the same tokens, so that each may attend to itself

    def formula(self, grid: Grid) -> Allowed:
        return self.query_ids == self.key_ids

    def reachable(self, grid: Grid) -> Keys:
        low, high = self._ends
        return (low <= self.key_ids) & (self.key_ids <= high)

    def whole(self, grid: Grid) -> Keys:
        low, high = self._ends
        return (low == self.key_ids) & (self.key_ids == high)

    @property
    def _ends(self) -> tuple[Array, Array]:
        low, high = (end(self.query_ids, axis=-2, keepdims=True) for end in (jnp.min, jnp.max))
        return low, high

    def attended(self, grid: Grid) -> Keys:
        if self.own:  # nothing to look for, which takes a third of a second to compile
            return True
        t = self.query_ids.shape[-2]
        return is_among(self.key_ids, self.query_ids) if isinstance(t, int) else super().attended(grid)

    def diagonal(self) -> Any:
        return Everyone() if self.own else super().diagonal()

    def take(self, heads: Any, queries: Any) -> "Segments":
        return super().take(heads, queries)._replace(own=self.own and queries is None)

    def _cut(self, letter: str, start: Any, n: int) -> "Segments":
        return super()._cut(letter, start, n)._replace(own=False)


class Everyone(Mask):
    def formula(self, grid: Grid) -> Allowed:
        return np.ones((1, 1), bool)

    def whole(self, grid: Grid) -> Keys:
        return True


class FunctionMask(FunctionRule, Mask):
    span: Callable[..., Any] | None

    def formula(self, grid: Grid) -> Allowed:
        return self.call(grid, grid.query, grid.key)

    def reachable(self, grid: Grid) -> Keys:
        if self.span is None:
            return True
        low, high = self.span(grid.first, grid.last)
        return (low <= grid.key) & (grid.key <= high)

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if self.span is not None:
            ends = jax.eval_shape(self._ends, *2 * [jax.ShapeDtypeStruct((1,) * (len(shape.batch or ()) + 3), int)])
            if not all(checks.broadcasts_to(end.shape, (*(shape.batch or ()), shape.h or 1, 1, 1)) for end in ends):
                raise ValueError(
                    f"span must return one position each for the queries that it is given. Got shapes "
                    f"{tuple(end.shape for end in ends)}."
                )

    def _ends(self, first: Array, last: Array) -> tuple[Array, Array]:
        assert self.span is not None
        with as_part_of_a_program("span"):
            ends = self.span(first, last)
        if not isinstance(ends, tuple | list) or len(ends) != 2:
            raise ValueError(f"span must return a pair, the first and the last position in reach. Got {ends!r:.80}.")
        low, high = (jnp.asarray(an_array("span", end, "two positions")) for end in ends)
        return low, high


def is_among(x: Int[Array, "*b 1 s"], y: Int[Array, "*b t 1"]) -> Bool[Array, "*b 1 s"]:
    """Which numbers of x are among those of y, in the time of sorting them."""
    batch = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (jnp.broadcast_to(z, (*batch, *z.shape[-2:])).reshape(-1, z.size // math.prod(z.shape[:-2])) for z in (x, y))
    y = jnp.sort(y)
    places = jnp.minimum(jax.vmap(jnp.searchsorted)(y, x), y.shape[-1] - 1)
    return (jnp.take_along_axis(y, places, axis=-1) == x).reshape(*batch, 1, -1)


def _check_counts(name: str, counts: int | Array, most: Any) -> None:
    if not is_concrete(counts):
        return
    values = np.asarray(counts)
    low, high = values.min(initial=0), values.max(initial=0)
    if most is None and low < 0:
        raise ValueError(f"{name} must not be negative. Got {low}.")
    if isinstance(most, int) and (low < 0 or high > most):
        raise ValueError(
            f"{name} must lie between 0 and the number of positions, {most}. Got {low if low < 0 else high}."
        )
