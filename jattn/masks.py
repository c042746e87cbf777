"""Who may attend to whom.

A mask says for each pair of a query and a key whether the query **may** attend to the key: ``True`` where it may. It
is a formula of positions in a small frozen pytree, never a T x S array unless somebody asks for one, so that the same
value serves a short sequence, a long one, and one block of either. Masks combine with ``&``, ``|`` and ``~``::

    causal() & lengths(valid_lens)        # a padded batch, each token sees the past
    causal() | prefix(16)                 # a prefix language model
    ~sliding_window(0, 0)                 # every key but one's own
    where(lambda q, k: q // 64 == k // 64)  # a rule of your own

Positions are 0 ... n - 1, or what `jattn.attention` is given as ``query_positions`` and ``key_positions``. Python
integers in a mask are static under ``jit``; arrays are data, so that new lengths never recompile. Masks that are alike
are equal, and hash alike.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jattn._engine import checks
from jattn._engine.checks import is_concrete
from jattn._engine.rule import FunctionRule, Grid, Rule, Shape, function_and_arrays, over

__all__ = [
    "Grid",
    "Mask",
    "all_of",
    "causal",
    "causal_lower_right",
    "dense",
    "dilated_window",
    "lengths",
    "neighbourhood",
    "over",
    "prefix",
    "segments",
    "sliding_window",
    "where",
]

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

    __array_ufunc__ = None  # numpy leaves ``array & mask`` to ``__rand__``

    def formula(self, grid: Grid) -> Allowed:
        """Whether each query of the grid may attend to each key; broadcasts to ``*b h t s``."""
        raise NotImplementedError

    def reachable(self, grid: Grid) -> Keys:
        """The keys that some query of the grid may attend to: True too often perhaps, never False wrongly.

        Whoever computes attention leaves out the others. Written with operators alone, it is computed while tracing
        where the mask has no data. ``True``: all of them.
        """
        return True

    def attended(self, grid: Grid) -> Keys:
        """Likewise, but of all that say nothing in `reachable`, by their formula."""
        reachable = self.reachable(grid)
        if reachable is not True:
            return reachable
        return _any_query(self.formula(grid if grid.in_program is None else grid.in_program()))

    def check(self, shape: Shape) -> None:
        """Raise ValueError where this mask does not fit so many queries and keys (and batch and heads, if known)."""
        super().check(shape)
        self.check_values(shape)
        if type(self).__module__ != __name__ or isinstance(self, Where):
            self.check_formula(shape, "booleans", jnp.bool_)

    def check_values(self, shape: Shape) -> None:
        """Raise ValueError for numbers that make no sense, where they are known."""

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
        raise ValueError(
            f"mask must be a mask or a boolean array. Got the function {mask!r}; call it, or pass jattn.masks.where(f)."
        )
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


def causal(offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees the keys up to its own position: key j where j <= i + offset.

    Aligned top-left: query 0 sees key 0. ``offset`` is the position of query 0 among the keys, as in decoding
    with a cache; an array gives each example its own and does not recompile when it changes.

        >>> print(causal().as_array(3, 5).astype(int))
        [[1 0 0 0 0]
         [1 1 0 0 0]
         [1 1 1 0 0]]
        >>> print(causal(offset=1).as_array(3, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 1 0 0]
         [1 1 1 1 0]]
    """
    return Causal(_near(checks.integers("offset", offset)))


def causal_lower_right(t: int, s: int) -> Mask:
    """Causal with the last query aligned to the last key, for ``t`` queries that continue ``s`` keys.

    PyTorch calls it by the same name; it is ``causal(offset=s - t)``.

        >>> print(causal_lower_right(3, 5).as_array(3, 5).astype(int))
        [[1 1 1 0 0]
         [1 1 1 1 0]
         [1 1 1 1 1]]
    """
    t, s = checks.count("t", t), checks.count("s", s)
    return causal(offset=s - t)


def sliding_window(left: int, right: int, *, offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees ``left`` keys before its own position, its own, and ``right`` keys after it.

    The counts are those of ``local_window_size`` in ``jax.nn.dot_product_attention``. ``offset`` as in `causal`.

        >>> print(sliding_window(2, 1).as_array(4, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 1 0 0]
         [1 1 1 1 0]
         [0 1 1 1 1]]
    """
    left, right = _sides(left, right)
    return SlidingWindow(_near(left), _near(right), _near(checks.integers("offset", offset)))


def _sides(left: Any, right: Any) -> tuple[int, int]:
    return checks.count("left", left, ", a number of keys"), checks.count("right", right, ", a number of keys")


def _near(x: Any) -> Any:
    """A number known now, kept from where positions would overflow; no sequence is as long."""
    return max(-_FAR, min(x, _FAR)) if isinstance(x, int) else x


_FAR = 2**30


def lengths(valid_lens: int | Int[Array, "..."], *, per_query: bool | None = None) -> Mask:
    """Only the first ``valid_lens`` keys are real; the rest is padding that nobody attends to, whatever it holds.

    First as they lie in their array, also where ``key_positions`` say otherwise.

    Args:
        valid_lens: integers from 0 to s, one per example ``*b`` or one per query ``*b t``.
        per_query: whether the last axis of ``valid_lens`` is the query's. By default it is from two axes on,
            as in Dive into Deep Learning's 1-D and 2-D valid lengths.

        >>> print(lengths(jnp.array([2, 3])).as_array(2, 4).astype(int))
        [[[[1 1 0 0]
           [1 1 0 0]]]
        <BLANKLINE>
         [[[1 1 1 0]
           [1 1 1 0]]]]
        >>> print(lengths(jnp.array([[1, 3]])).as_array(2, 4).astype(int))
        [[[[1 0 0 0]
           [1 1 1 0]]]]
    """
    valid_lens = checks.integers("valid_lens", valid_lens)
    ndim = jnp.ndim(valid_lens)
    if per_query is None:
        per_query = ndim >= 2
    if per_query and ndim == 0:
        raise ValueError("valid_lens must have a query axis when per_query=True. Got a single length.")
    if per_query:
        return LengthsPerQuery(jnp.asarray(valid_lens))
    return Lengths(valid_lens, "valid_lens", by_position=False)


def prefix(n: int | Int[Array, "*b"]) -> Mask:
    """Every query sees the keys at positions below ``n``, one number or one per example, from 0 to the number of keys.

    Use it as ``causal() | prefix(n)``.

    >>> print((causal() | prefix(2)).as_array(4, 4).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 0]
     [1 1 1 1]]
    """
    return Lengths(checks.integers("n", n), "n", by_position=True)


def segments(query_ids: Int[Array, "*b t"], key_ids: Int[Array, "*b s"] | None = None) -> Mask:
    """Several sequences packed into one: a query sees the keys that carry its own segment's number.

    ``key_ids`` defaults to ``query_ids``, for self-attention.

        >>> print(segments(jnp.array([0, 0, 1, 1, 1])).as_array(5, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 0 0 0]
         [0 0 1 1 1]
         [0 0 1 1 1]
         [0 0 1 1 1]]
    """
    query_ids = checks.integer_axis("query_ids", query_ids)
    key_ids = query_ids if key_ids is None else checks.integer_axis("key_ids", key_ids)
    return Segments(query_ids, key_ids)


def dilated_window(left: int, right: int, dilation: int, *, offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees ``left`` keys before its own position, its own, and ``right`` after it, ``dilation`` apart.

        >>> print(dilated_window(2, 0, 2).as_array(6, 6).astype(int))
        [[1 0 0 0 0 0]
         [0 1 0 0 0 0]
         [1 0 1 0 0 0]
         [0 1 0 1 0 0]
         [1 0 1 0 1 0]
         [0 1 0 1 0 1]]

    Source: Beltagy et al., Longformer, 2020.
    """
    dilation = checks.number("dilation", dilation, "[1, inf)", integer=True)
    left, right = _sides(left, right)
    window = sliding_window(left * dilation, right * dilation, offset=offset)
    return DilatedWindow(window, dilation)  # type: ignore[arg-type]


def neighbourhood(shape: tuple[int, ...], radius: int | tuple[int, ...]) -> Mask:
    """The positions are a grid of ``shape``, row by row: each sees those at most ``radius`` away along every axis.

    Args:
        shape: how many positions the grid has along each axis, such as ``(height, width)``.
        radius: one number for all axes or one for each; 0 is one's own row.

        >>> print(neighbourhood((2, 3), (1, 0)).as_array(6, 6).astype(int))
        [[1 0 0 1 0 0]
         [0 1 0 0 1 0]
         [0 0 1 0 0 1]
         [1 0 0 1 0 0]
         [0 1 0 0 1 0]
         [0 0 1 0 0 1]]

    Source: Hassani et al., Neighborhood Attention Transformer, 2023; here without moving windows at the edges.
    """
    if not isinstance(shape, tuple | list):
        raise ValueError(f"shape must be a tuple, the lengths of the grid's axes. Got {shape!r}.")
    shape = tuple(checks.number("shape", n, "[1, inf)", integer=True) for n in shape)
    radius = (radius,) * len(shape) if isinstance(radius, int | np.integer) else tuple(radius)
    if len(radius) != len(shape) or not all(map(checks.is_count, radius)):
        raise ValueError(f"radius must be a non-negative integer, or one for each axis of {shape}. Got {radius!r}.")
    return Neighbourhood(shape, tuple(map(int, radius)))


def where(f: Callable[..., Any], /, *, span: Callable[..., Any] | None = None, **arrays: Any) -> Mask:
    """A query may attend to a key where ``f(query, key)`` says so, a function of their positions.

    Args:
        f: from integer arrays of query and key positions, which broadcast against each other, to booleans that
            broadcast to ``*b h t s``. It is compiled once, so what changes is given as an array, not captured; and it
            is also called while tracing, with NumPy's arrays.
        span: which keys may be in reach, if that can be said: from the first and the last position of some queries to
            those of the keys, both included, as in ``lambda first, last: (first - 64, last)``. What lies outside is
            skipped, so it must include every key that f allows, or the result depends on the implementation.
        arrays: what f is given beside the positions, by name: an array as it is, to be indexed by positions; or
            ``(axes, array)`` with axes among ``b h t s`` for one that has an entry for each example, head, query or
            key, which arrives broadcast to ``*b h t s``. For a table by head, give the heads' numbers too,
            ``h=("h", jnp.arange(n))``, and index it by them.

    Example (blocks of two; and heads that look at every second key, at every third key):

        >>> print(where(lambda q, k: q // 2 == k // 2).as_array(4, 4).astype(int))
        [[1 1 0 0]
         [1 1 0 0]
         [0 0 1 1]
         [0 0 1 1]]
        >>> steps = where(lambda q, k, step: k % step == 0, step=("h", jnp.array([2, 3])))
        >>> print(steps.as_array(1, 7).astype(int))
        [[[1 0 1 0 1 0 1]]
        <BLANKLINE>
         [[1 0 0 1 0 0 1]]]
    """
    function, given, axes = function_and_arrays(f, ("query", "key"), arrays)
    if span is not None and not callable(span):
        raise ValueError(f"span must be a function of the first and the last query's position. Got {span!r}.")
    return Where(function, given, axes, span)


def dense(array: Bool[Array, "..."]) -> Mask:
    """Any boolean array that broadcasts to ``*b h t s``, ``True`` where a query may attend to a key.

    >>> print(dense(jnp.array([[True, False, True], [False, True, True]])).as_array(2, 3).astype(int))
    [[1 0 1]
     [0 1 1]]
    """
    return as_mask(array)


def all_of(*rules: Mask | Bool[Array, "..."] | None) -> Mask | None:
    """Where every one of ``rules`` allows it; a None allows everything.

    >>> print(all_of(causal(), None, prefix(2)).as_array(3, 3).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 0]]
    """
    given = [as_mask(rule) for rule in rules if rule is not None]
    return functools.reduce(operator.and_, given) if given else None


# ----------------------------------------------------------------------------------------------------------------------
# The rules themselves.


class Causal(Mask):
    offset: int | Array = over("b")

    def formula(self, grid: Grid) -> Allowed:
        return grid.key <= grid.query + self.offset

    def reachable(self, grid: Grid) -> Keys:
        return grid.key <= grid.last + self.offset


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

    def name_of(self, field: str) -> str:
        return self.name

    def check_values(self, shape: Shape) -> None:
        _check_counts(self.name, self.valid_lens, shape.s)


class LengthsPerQuery(Mask):
    valid_lens: Array = over("bt")

    def formula(self, grid: Grid) -> Allowed:
        return grid.column < self.valid_lens

    def reachable(self, grid: Grid) -> Keys:
        return grid.column < self.valid_lens.max(axis=-2, keepdims=True)

    def check_values(self, shape: Shape) -> None:
        _check_counts("valid_lens", self.valid_lens, shape.s)


class Segments(Mask):
    query_ids: Array = over("bt")
    key_ids: Array = over("bs")

    def formula(self, grid: Grid) -> Allowed:
        return self.query_ids == self.key_ids

    def reachable(self, grid: Grid) -> Keys:
        low, high = (end(self.query_ids, axis=-2, keepdims=True) for end in (jnp.min, jnp.max))
        return (low <= self.key_ids) & (self.key_ids <= high)


class Dense(Mask):
    mask: Array = over(
        "bhts",
        remedy="Insert the axes it lacks: mask[:, None] for a mask *b t s, "
        "mask[:, None, None] for a mask *b s of keys.",
    )

    def formula(self, grid: Grid) -> Allowed:
        return self.mask


class Where(FunctionRule, Mask):
    span: Callable[..., Any] | None

    def formula(self, grid: Grid) -> Allowed:
        return self.of_rank(self.call(grid.query, grid.key), grid)

    def reachable(self, grid: Grid) -> Keys:
        if self.span is None:
            return True
        low, high = self.span(grid.first, grid.last)
        return (low <= grid.key) & (grid.key <= high)


class Pair(Mask):
    """Two masks joined entry by entry."""

    a: Mask
    b: Mask
    join: ClassVar[Callable[..., Any]]

    def formula(self, grid: Grid) -> Allowed:
        return self.join(self.a.formula(grid), self.b.formula(grid))

    def reachable(self, grid: Grid) -> Keys:
        return self.join(self.a.reachable(grid), self.b.reachable(grid))

    def attended(self, grid: Grid) -> Keys:
        return self.join(self.a.attended(grid), self.b.attended(grid))


class And(Pair):
    join = staticmethod(operator.and_)


class Or(Pair):
    join = staticmethod(operator.or_)

    def reachable(self, grid: Grid) -> Keys:
        a, b = self.a.reachable(grid), self.b.reachable(grid)
        return True if a is True or b is True else a | b


class Not(Mask):
    mask: Mask

    def formula(self, grid: Grid) -> Allowed:
        return ~self.mask.formula(grid)


def _any_query(allowed: Allowed) -> Allowed:
    return allowed if allowed.shape[-2] == 1 else allowed.any(axis=-2, keepdims=True)  # type: ignore[return-value]


def _check_counts(name: str, counts: int | Array, s: int) -> None:
    if is_concrete(counts) and isinstance(s, int):
        values = np.asarray(counts)
        low, high = values.min(initial=s), values.max(initial=0)
        if low < 0 or high > s:
            raise ValueError(
                f"{name} must lie between 0 and the number of positions, {s}. Got {low if low < 0 else high}."
            )
