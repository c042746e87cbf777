"""What a mask is, and how masks are combined; the formulas of each are in `_masks.py`."""

import functools
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from jattn._engine import checks
from jattn._engine.axes import over
from jattn._engine.checks import is_concrete
from jattn._engine.grid import Grid
from jattn._engine.platform import divided_among
from jattn._engine.rule import Rule
from jattn._engine.varying import varying_as

__all__ = ["Allowed", "And", "DenseMask", "Keys", "Mask", "Not", "Or", "Pair", "as_mask"]

Allowed = Bool[Array | np.ndarray, "..."]  # broadcasts to *b h t s; NumPy's where positions are known while tracing
Keys = bool | Allowed  # *b h 1 s


class Mask(Rule):
    """A rule that says which queries may attend to which keys. Made by the functions of `jattn.masks`.

    One of your own is a subclass with a `formula` and, where it can say so, `reachable`. As a pytree, a mask's
    integers, strings and functions are structure, its arrays and other masks are children.

        >>> class Checkered(Mask):
        ...     def formula(self, grid):
        ...         return (grid.query + grid.key) % 2 == 0
        >>> print(Checkered().as_array(2, 3).astype(int))
        [[1 0 1]
         [0 1 0]]
    """

    argument = "mask"
    gives = ("booleans", jnp.bool_)
    __array_ufunc__ = None  # numpy leaves ``array & mask`` to ``__rand__``

    def formula(self, grid: Grid) -> Allowed:
        """Whether each query of the grid may attend to each key; broadcasts to ``*b h t s``."""
        return super().formula(grid)

    def reachable(self, grid: Grid) -> Keys:
        """The keys that some query of the grid may attend to: True too often perhaps, never False wrongly.

        Whoever computes attention leaves out the others. Written with operators alone, it is computed while tracing
        where the mask has no data. ``True``: all of them.
        """
        return True

    def whole(self, grid: Grid) -> Keys:
        """The keys that every query of the grid may attend to: False too often perhaps, never True wrongly.

        Whoever computes attention leaves out the formula there. ``False``: none of them.
        """
        return False

    def attended(self, grid: Grid) -> Keys:
        """The keys that some query of the grid does attend to, no more and no fewer: the others may hold anything."""
        if grid.in_program is None:
            return _any_query(self.formula(grid))
        t, s = grid.row.shape[-2], grid.column.shape[-1]
        of_pairs = functools.partial(_any_of_pairs, self, grid.in_program)
        if self.by_key or not isinstance(t, int) or t != s or divided_among() > 1:  # who would have to agree
            return of_pairs()
        # All pairs take an eighth of the time of causal attention within segments of 512 on 2,048 tokens. Where each
        # token may attend to itself, which takes no time to see, what is in reach is attended to.
        own = self.diagonal().formula(grid.diagonal())
        if is_concrete(own) and np.all(own):
            return True
        reachable = self.reachable(grid)
        each = own | _others(reachable)
        if is_concrete(each):
            return reachable if np.all(each) else of_pairs()
        shape = jnp.broadcast_shapes(jax.eval_shape(of_pairs).shape, (1, s))
        return lax.cond(
            jnp.all(each),
            lambda: varying_as(jnp.broadcast_to(reachable, shape), jnp.asarray(each)),
            lambda: varying_as(jnp.broadcast_to(of_pairs(), shape), jnp.asarray(each)),
        )

    @property
    def by_key(self) -> bool:
        """Whether it is the same for all queries."""
        return False

    @property
    def finite_keys(self) -> bool:
        """Whether the keys and values that it rules out are known to be finite, so that a weight of zero is enough."""
        return False

    def __and__(self, other: "Mask | Array") -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: "Mask | Array") -> "Mask":
        return Or(self, as_mask(other))

    def __bool__(self) -> bool:
        raise ValueError("A mask has no truth value. Combine masks with &, | and ~, not with `and`, `or` and `not`.")

    def __invert__(self) -> "Mask":
        return Not(self)

    __rand__ = __and__
    __ror__ = __or__


def as_mask(mask: Mask | Bool[Array, "..."]) -> Mask:
    """A mask as it is; a boolean array that broadcasts to ``*b h t s`` as a mask."""
    if isinstance(mask, Mask):
        return mask
    checks.no_other("mask", mask)
    if callable(mask):
        raise ValueError(
            f"mask must be a mask or a boolean array. Got the function {mask!r}; call it, or pass jattn.masks.where(f)."
        )
    array = checks.array("mask", mask, "a mask of jattn.masks or a boolean array")
    if array.dtype != jnp.bool_:
        raise ValueError(
            f"mask must be boolean, True where a query may attend to a key. Got {array.dtype}. "
            "Compare it (mask != 0), or pass an additive mask as bias."
        )
    if array.ndim < 2:
        remedy = "For one entry a key, write mask[None, :]." if array.ndim else "None allows all."
        raise ValueError(
            f"mask must have the axes t s, with heads and batch in front where it has them. Got shape "
            f"{array.shape}. {remedy}"
        )
    return DenseMask(array)


class DenseMask(Mask):
    mask: Array = over(
        "bhts",
        remedy="Insert the axes it lacks: mask[:, None] for a mask *b t s, "
        "mask[:, None, None] for a mask *b s of keys.",
    )

    def formula(self, grid: Grid) -> Allowed:
        return self.mask

    @property
    def by_key(self) -> bool:
        return self.mask.shape[-2] == 1


class Pair(Mask):
    """Two masks joined entry by entry."""

    a: Mask
    b: Mask
    join: ClassVar[Callable[..., Any]]

    def formula(self, grid: Grid) -> Allowed:
        return self.join(self.a.formula(grid), self.b.formula(grid))

    def reachable(self, grid: Grid) -> Keys:
        return self.join(self.a.reachable(grid), self.b.reachable(grid))

    def whole(self, grid: Grid) -> Keys:
        return self.join(self.a.whole(grid), self.b.whole(grid))

    def diagonal(self) -> Any:
        return self._replace(a=self.a.diagonal(), b=self.b.diagonal())

    def take(self, heads: Any, queries: Any) -> Any:
        return self._replace(a=self.a.take(heads, queries), b=self.b.take(heads, queries))

    def _cut(self, letter: str, start: Any, n: int) -> Any:
        return self._replace(a=self.a._cut(letter, start, n), b=self.b._cut(letter, start, n))

    @property
    def by_key(self) -> bool:
        return self.a.by_key and self.b.by_key


class And(Pair):
    join = staticmethod(operator.and_)

    @property
    def finite_keys(self) -> bool:
        return self.a.finite_keys or self.b.finite_keys

    def attended(self, grid: Grid) -> Keys:
        if self.a.by_key or self.b.by_key:
            return self.a.attended(grid) & self.b.attended(grid)
        return super().attended(grid)  # one query may be let through by the one, and another by the other


class Or(Pair):
    join = staticmethod(operator.or_)

    def reachable(self, grid: Grid) -> Keys:
        a, b = self.a.reachable(grid), self.b.reachable(grid)
        return True if a is True or b is True else a | b

    def attended(self, grid: Grid) -> Keys:
        return self.a.attended(grid) | self.b.attended(grid)


class Not(Mask):
    mask: Mask

    def formula(self, grid: Grid) -> Allowed:
        return ~self.mask.formula(grid)

    def reachable(self, grid: Grid) -> Keys:
        return _others(self.mask.whole(grid))

    def whole(self, grid: Grid) -> Keys:
        return _others(self.mask.reachable(grid))

    @property
    def by_key(self) -> bool:
        return self.mask.by_key


def _others(keys: Keys) -> Keys:
    return not keys if isinstance(keys, bool) else ~keys


def _any_of_pairs(mask: Mask, grid: Callable[[], Grid]) -> Array:
    return jnp.asarray(_any_query(mask.formula(grid())))


def _any_query(allowed: Allowed) -> Allowed:
    return allowed if allowed.shape[-2] == 1 else allowed.any(axis=-2, keepdims=True)  # type: ignore[return-value]
