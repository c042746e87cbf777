"""The masks themselves: the `Mask` type and one small rule for each function of `jattn.masks`."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jattn import checks
from jattn.checks import broadcasts_to, is_concrete
from jattn.extents import Extent, Index, clip, largest, of_example, per_example, slice_along, smallest
from jattn.pytree import Pytree

Rows = Int[Array, "t"]
Cols = Int[Array, "s"]


class Mask(Pytree):
    """A rule that says which queries may attend to which keys. Made by the functions of `jattn.masks`.

    Subclasses are frozen dataclasses that implement ``__call__`` and, where they can, ``span`` and ``check``. As a
    pytree, a mask's integers and strings are structure, its arrays and other masks are children.
    """

    static = (int, str)
    __array_ufunc__ = None  # numpy leaves ``array & mask`` to ``__rand__``

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        """Whether the queries at positions ``rows`` may attend to the keys at ``cols``.

        Returns a boolean array that broadcasts to ``*b h t s``, with t = len(rows) and s = len(cols).
        """
        raise NotImplementedError

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        """The keys [lo, hi) outside which no query in [start, stop) attends to anything, of ``s`` keys in all.

        Integers where the mask is static, scalar arrays where it depends on data. The range may be wider than
        necessary, never narrower.
        """
        return 0, s

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        """Raise ValueError where this mask does not fit ``t`` queries and ``s`` keys (and batch and heads)."""
        rows, cols = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (t, s))
        array = jax.eval_shape(self, rows, cols)
        fits, axes = _fits(array.shape, t, s, batch, heads)
        if array.dtype != jnp.bool_ or not fits:
            raise ValueError(
                f"{type(self).__name__} must return booleans that broadcast to {axes}. "
                f"Got {array.dtype}, shape {array.shape}."
            )

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        """The mask of the ``t`` queries from ``start`` on and the ``s`` keys from ``first`` on."""
        return self(start + jnp.arange(t), first + jnp.arange(s))

    def part(self, example: Index, head: Extent, heads: int) -> "Mask":
        """The mask of one example, given by its index along each batch axis, and of ``heads`` heads from ``head``."""
        return Part(self, example, head, heads)

    def as_array(self, t: int, s: int) -> Bool[Array, "*bh t s"]:
        """The mask as a matrix with one row a query and one column a key, ``True`` where attention is allowed.

        Masks with data have the axes ``*b 1`` (examples and heads) in front.

            >>> print(Causal(0).as_array(4, 4).astype(int))
            [[1 0 0 0]
             [1 1 0 0]
             [1 1 1 0]
             [1 1 1 1]]
        """
        self.check(t, s)
        allowed = self.block(0, t, 0, s)
        return jnp.broadcast_to(allowed, (*allowed.shape[:-2], t, s))

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
    if callable(mask):
        raise ValueError(f"mask must be a mask or a boolean array. Got the function {mask!r}; call it.")
    array = checks.array("mask", mask)
    if array.dtype != jnp.bool_:
        raise ValueError(
            f"mask must be boolean, True where a query may attend to a key. Got {array.dtype}. "
            "Compare it (mask != 0), or pass an additive mask as bias."
        )
    if array.ndim < 2:
        raise ValueError(
            f"mask must have the axes t s, with heads and batch in front where it has them. Got shape "
            f"{array.shape}. For one entry a key, write mask[None, :]."
        )
    return Dense(array)


@dataclasses.dataclass(frozen=True, eq=False)
class Causal(Mask):
    offset: int | Array

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        return cols[None, :] <= rows[:, None] + per_example(self.offset)

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return dataclasses.replace(self, offset=of_example(self.offset, example, 0))

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        return 0, clip(stop + largest(self.offset), s)

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        _check_per_example("offset", self.offset, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class SlidingWindow(Mask):
    left: int
    right: int
    offset: int | Array

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        position = rows[:, None] + per_example(self.offset)
        return (position - self.left <= cols[None, :]) & (cols[None, :] <= position + self.right)

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return dataclasses.replace(self, offset=of_example(self.offset, example, 0))

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        first, last = -largest(-self.offset), largest(self.offset)
        return clip(start + first - self.left, s), clip(stop + last + self.right, s)

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        _check_per_example("offset", self.offset, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths(Mask):
    valid_lens: int | Array
    per_query: bool
    name: str  # what the caller knows it as

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        if not self.per_query:
            return cols[None, :] < per_example(self.valid_lens)
        return cols < jnp.take(self.valid_lens, rows, axis=-1)[..., None, :, None]

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        if not self.per_query:
            return super().block(start, t, first, s)
        return first + jnp.arange(s) < slice_along(self.valid_lens, start, t, -1)[..., None, :, None]

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return dataclasses.replace(self, valid_lens=of_example(self.valid_lens, example, int(self.per_query)))

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        if not self.per_query:
            return 0, clip(largest(self.valid_lens), s)
        rows = jnp.arange(self.valid_lens.shape[-1])  # type: ignore[union-attr]
        return 0, clip(largest(jnp.where((start <= rows) & (rows < stop), self.valid_lens, 0)), s)

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        if self.per_query:
            _check_axes(self.name, jnp.asarray(self.valid_lens), batch, t, "queries")
        else:
            _check_per_example(self.name, self.valid_lens, batch)
        if is_concrete(self.valid_lens):
            values = np.asarray(self.valid_lens)
            low, high = values.min(initial=s), values.max(initial=0)
            if low < 0 or high > s:
                raise ValueError(
                    f"{self.name} must lie between 0 and the number of positions, {s}. Got {low if low < 0 else high}."
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    query_ids: Array
    key_ids: Array

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        query_ids = jnp.take(self.query_ids, rows, axis=-1)
        key_ids = jnp.take(self.key_ids, cols, axis=-1)
        return query_ids[..., None, :, None] == key_ids[..., None, None, :]

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        query_ids, key_ids = slice_along(self.query_ids, start, t, -1), slice_along(self.key_ids, first, s, -1)
        return query_ids[..., None, :, None] == key_ids[..., None, None, :]

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return Segments(of_example(self.query_ids, example, 1), of_example(self.key_ids, example, 1))

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        # A key is in reach if its number lies between the smallest and the largest of the block's queries.
        rows = jnp.arange(self.query_ids.shape[-1])
        inside = (start <= rows) & (rows < stop)
        limits = jnp.iinfo(self.query_ids.dtype)
        low = jnp.min(jnp.where(inside, self.query_ids, limits.max), axis=-1, keepdims=True)
        high = jnp.max(jnp.where(inside, self.query_ids, limits.min), axis=-1, keepdims=True)
        reach = (low <= self.key_ids) & (self.key_ids <= high)
        reach = jnp.any(reach, axis=tuple(range(reach.ndim - 1)))
        first, last = jnp.argmax(reach), s - jnp.argmax(reach[::-1])
        return jnp.where(reach.any(), first, 0), jnp.where(reach.any(), last, 0)

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        _check_axes("query_ids", self.query_ids, batch, t, "queries")
        _check_axes("key_ids", self.key_ids, batch, s, "keys")


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Mask):
    array: Array

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        array = self.array
        if array.shape[-2] > 1:
            array = jnp.take(array, rows, axis=-2)
        if array.shape[-1] > 1:
            array = jnp.take(array, cols, axis=-1)
        return array

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        return slice_along(slice_along(self.array, start, t, -2), first, s, -1)

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        array = of_example(self.array, example, 3)
        return Dense(array if array.ndim < 3 else slice_along(array, head, heads, -3))

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        fits, axes = _fits(self.array.shape, t, s, batch, heads)
        if not fits:
            raise ValueError(
                f"mask must broadcast to {axes}. Got shape {self.array.shape}. "
                "Insert the axes it lacks: mask[:, None] for a mask *b t s, "
                "mask[:, None, None] for a mask *b s of keys."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Pair(Mask):
    """Two masks joined entry by entry."""

    a: Mask
    b: Mask
    join: ClassVar[Callable[..., Array]]

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        return self.join(self.a(rows, cols), self.b(rows, cols))

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        return self.join(self.a.block(start, t, first, s), self.b.block(start, t, first, s))

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return type(self)(self.a.part(example, head, heads), self.b.part(example, head, heads))

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        self.a.check(t, s, batch, heads)
        self.b.check(t, s, batch, heads)


class And(Pair):
    join = staticmethod(jnp.logical_and)

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        (lo_a, hi_a), (lo_b, hi_b) = self.a.span(start, stop, s), self.b.span(start, stop, s)
        lo, hi = largest(lo_a, lo_b), smallest(hi_a, hi_b)
        return lo, largest(lo, hi)


class Or(Pair):
    join = staticmethod(jnp.logical_or)

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        (lo_a, hi_a), (lo_b, hi_b) = self.a.span(start, stop, s), self.b.span(start, stop, s)
        return smallest(lo_a, lo_b), largest(hi_a, hi_b)


@dataclasses.dataclass(frozen=True, eq=False)
class Not(Mask):
    mask: Mask

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        return ~self.mask(rows, cols)

    def block(self, start: Extent, t: int, first: Extent, s: int) -> Bool[Array, "*bh #t #s"]:
        return ~self.mask.block(start, t, first, s)

    def part(self, example: Index, head: Extent, heads: int) -> Mask:
        return Not(self.mask.part(example, head, heads))

    def check(self, t: int, s: int, batch: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        self.mask.check(t, s, batch, heads)


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Mask):
    """The part of a mask that doesn't know how to take one out of itself."""

    mask: Mask
    example: Index
    head: Extent
    heads: int

    def __call__(self, rows: Rows, cols: Cols) -> Bool[Array, "*bh #t #s"]:
        return Dense(self.mask(rows, cols)).part(self.example, self.head, self.heads).array  # type: ignore[attr-defined]

    def span(self, start: Extent, stop: Extent, s: int) -> tuple[Extent, Extent]:
        return self.mask.span(start, stop, s)


def _fits(shape: tuple[int, ...], t: int, s: int, batch: tuple[int, ...] | None, heads: int | None) -> tuple[bool, str]:
    """Whether a mask of this shape broadcasts to all axes, or to t s if only they are known; and to what."""
    if batch is None or heads is None:
        return broadcasts_to(shape[-2:], (t, s)), f"{(t, s)}, the axes t s"
    full = (*batch, heads, t, s)
    return broadcasts_to(shape, full), f"{full}, the axes *b h t s"


def _check_per_example(name: str, x: int | Array, batch: tuple[int, ...] | None) -> None:
    if batch is not None and not broadcasts_to(jnp.shape(x), batch):
        raise ValueError(f"{name} must be one number or one per example, {batch}. Got shape {jnp.shape(x)}.")


def _check_axes(name: str, x: Array, batch: tuple[int, ...] | None, n: int, what: str) -> None:
    if x.shape[-1] != n or not (batch is None or broadcasts_to(x.shape[:-1], batch)):
        expected = (..., n) if batch is None else (*batch, n)
        raise ValueError(
            f"{name} must have one entry for each of the {n} {what}, shape {expected}. Got shape {x.shape}."
        )
