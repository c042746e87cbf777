"""What is added to a logit, because of where its query and its key are.

A bias is a formula of positions in a small frozen pytree, like a mask, and no T x S array unless it is given as one.
Biases add up with ``+``; their tables, slopes and arrays have gradients::

    attention(query, key, value, bias=alibi(8), mask=causal())
    attention(query, key, value, bias=relative(table) + dense(array))
    attention(query, key, value, bias=where(lambda q, k, decay: -decay * abs(q - k), decay=("h", decay)))
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn._engine.axes import over
from jattn._engine.dtypes import at_least_float32
from jattn._engine.function_rule import FunctionRule, function_and_arrays
from jattn._engine.grid import Grid
from jattn._engine.rule import Rule

__all__ = ["Bias", "Grid", "alibi", "alibi_slopes", "as_bias", "dense", "over", "relative", "where"]


class Bias(Rule):
    """A number for each query and key, from their positions. Made by the functions of `jattn.biases`.

    One of your own is a subclass with a `formula`, whose arrays declare their axes with `jattn.biases.over`.
    """

    argument = "bias"
    gives = ("floating-point numbers", jnp.floating)
    __array_ufunc__ = None  # numpy leaves ``array + bias`` to ``__radd__``

    def formula(self, grid: Grid) -> Float[Array, "..."]:
        """What is added to the logit of each query and key of the grid; broadcasts to ``*b h t s``."""
        return super().formula(grid)

    def __add__(self, other: "Bias | Array") -> "Bias":
        return Sum(self, as_bias(other))

    def __radd__(self, other: Array) -> "Bias":
        return Sum(as_bias(other), self)


def as_bias(bias: Bias | Float[Array, "..."]) -> Bias:
    """A bias as it is; a floating-point array that broadcasts to ``*b h t s`` as a bias."""
    if isinstance(bias, Bias):
        return bias
    checks.no_other("bias", bias)
    if callable(bias) and not hasattr(bias, "dtype"):
        raise ValueError(
            f"bias must be a bias or an array. Got the function {bias!r}; call it, or pass jattn.biases.where(f)."
        )
    array = checks.array("bias", bias, "a bias of jattn.biases or a floating-point array")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        remedy = "Pass a boolean array as mask" if array.dtype == jnp.bool_ else "Convert it with .astype(jnp.float32)"
        raise ValueError(f"bias must be floating point. Got {array.dtype}. {remedy}.")
    return DenseBias(array)


def dense(array: Float[Array, "..."]) -> Bias:
    """Any floating-point array that broadcasts to ``*b h t s``. Minus infinity means "not allowed"."""
    return as_bias(array)


def alibi(slopes: int | Float[Array, "*b h"]) -> Bias:
    """Attention with linear biases: the farther a key, the less, ``-slope * |key - query|``.

    Args:
        slopes: one per head, or the number of heads, for `alibi_slopes`.

    Example:

        >>> print(alibi(2).as_array(3, 3)[0])
        [[-0.     -0.0625 -0.125 ]
         [-0.0625 -0.     -0.0625]
         [-0.125  -0.0625 -0.    ]]

    BLOOM adds ``slope * key`` instead, which under a causal mask differs by one number for all keys of a query, and so
    gives the same weights. Source: Press, Smith and Lewis, Train Short, Test Long, 2022.
    """
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        return Alibi(jnp.asarray(alibi_slopes(int(slopes)), jnp.float32))
    return Alibi(checks.floating("slopes", slopes, "*b h", 1))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slopes of `alibi` for so many heads, as in the paper's code and in BLOOM.

    They are a geometric sequence that starts at and multiplies by ``2 ** (-8 / n)`` if n is a power of two. Otherwise
    they are those of the next smaller power, and then every second one of the next larger.

        >>> print(alibi_slopes(4))
        [0.25       0.0625     0.015625   0.00390625]
        >>> print(alibi_slopes(6))
        [0.25       0.0625     0.015625   0.00390625 0.5        0.125     ]
    """
    n = checks.number("num_heads", num_heads, "[1, inf)", integer=True)
    power = 2 ** (n.bit_length() - 1)

    def geometric(n: int) -> np.ndarray:
        return 2.0 ** (-8 / n * np.arange(1, n + 1))

    return np.concatenate([geometric(power), geometric(2 * power)[::2][: n - power]])


def relative(table: Float[Array, "n h"], *, bidirectional: bool = True, max_distance: int = 128) -> Bias:
    """T5's relative positions: a number for each head and each bucket of distances, from a table that is learned.

    Of the n buckets, near distances have one each, farther ones share them, the more the farther, and all from
    max_distance on have one.

    Args:
        table: ``n h``, as the weight of T5's and MPNet's ``relative_attention_bias``.
        bidirectional: whether keys after the query have buckets of their own, half of them, as in encoders; otherwise
            they have the bucket of distance 0, as in decoders.
        max_distance: from here on there is one bucket.

    Example (of four buckets, two are for keys after the query):

        >>> bias = relative(jnp.array([[0.0], [1.0], [2.0], [3.0]]), max_distance=8)
        >>> print(bias.as_array(3, 3))
        [[0. 3. 3.]
         [1. 0. 3.]
         [1. 1. 0.]]

    Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020.
    """
    table = checks.floating("table", table, "n h", 2)
    if table.ndim != 2:
        raise ValueError(f"table must have the axes n h. Got shape {table.shape}.")
    n, each = table.shape[0], 2 if bidirectional else 1
    if n % each or n // each < 2:
        raise ValueError(
            f"table must have an even number of buckets from 4 on if bidirectional, else 2 at least. Got {n}."
        )
    max_distance = checks.number("max_distance", max_distance, f"[{n // each // 2 + 1}, inf)", integer=True)
    return Relative(table, bool(bidirectional), max_distance)


def where(f: Callable[..., Any], /, **arrays: Any) -> Bias:
    """``f(query, key)`` is added to the logit, a function of the positions of query and key.

    Args:
        f: from integer arrays of query and key positions, which broadcast against each other, to floating-point
            numbers that broadcast to ``*b h t s``. It is compiled with what it captures, anew where that has
            changed.
        arrays: what f is given beside the positions, by name: an array as it is, to be indexed by positions; or
            ``(axes, array)`` with axes among ``b h t s`` for one that has an entry for each example, head, query or
            key, which arrives broadcast to ``*b h t s``. For a table by head, give the heads' numbers too,
            ``h=("h", jnp.arange(n))``, and index it by them. Floating-point arrays have gradients.

    Example:

        >>> decay = jnp.array([1.0, 0.5])
        >>> bias = where(lambda q, k, decay: -decay * abs(q - k), decay=("h", decay))
        >>> print(bias.as_array(1, 3))
        [[[-0.  -1.  -2. ]]
        <BLANKLINE>
         [[-0.  -0.5 -1. ]]]
    """
    return FunctionBias(*function_and_arrays(f, ("query", "key"), arrays))


# ----------------------------------------------------------------------------------------------------------------------
# The rules themselves.


class DenseBias(Bias):
    bias: Array = over("bhts")

    def formula(self, grid: Grid) -> Array:
        return self.bias


class Alibi(Bias):
    slopes: Array = over("bh")

    def formula(self, grid: Grid) -> Array:
        slopes = self.slopes.astype(at_least_float32(self.slopes))  # narrower ones would round distances
        return -slopes * abs(grid.key - grid.query).astype(slopes.dtype)


class Relative(Bias):
    table: Array = over("nh")
    bidirectional: bool
    max_distance: int

    def formula(self, grid: Grid) -> Array:
        # A number for each distance that differs, so that each logit looks up one.
        far = self.max_distance
        distances = np.arange(-far, far + 1)
        buckets = relative_bucket(distances, self.table.shape[-1], self.bidirectional, far)
        table = self.table.astype(at_least_float32(self.table))  # many gradients are summed into an entry
        by_distance = jnp.take(table, buckets, axis=-1)
        return look_up(by_distance, jnp.clip(grid.key - grid.query, -far, far) + far)

    def in_kernel(self) -> "RelativeByChoice":
        distances = np.arange(-self.max_distance, self.max_distance + 1)
        buckets = relative_bucket(distances, self.table.shape[0], self.bidirectional, self.max_distance)
        changes = np.flatnonzero(np.diff(buckets, prepend=-1))
        return RelativeByChoice(self.table, tuple((int(distances[i]), int(buckets[i])) for i in changes))


class RelativeByChoice(Bias):
    """`Relative` as a choice between numbers, for each bucket, from the one that keys farthest before a query have."""

    table: Array = over("nh")
    steps: tuple[tuple[int, int], ...]  # from which distance on there is which bucket

    def formula(self, grid: Grid) -> Array:
        table = self.table.astype(at_least_float32(self.table))
        numbers = lax.broadcasted_iota(jnp.int32, table.shape, table.ndim - 1)
        distance = grid.key - grid.query
        starts, buckets = zip(*self.steps, strict=True)
        # By a sum, as not every compiler of kernels has slices.
        x, *chosen = (jnp.sum(jnp.where(numbers == bucket, table, 0), axis=-1) for bucket in buckets)
        for first, y in zip(starts[1:], chosen, strict=True):
            x = jnp.where(distance >= first, y, x)
        return x


class FunctionBias(FunctionRule, Bias):
    def formula(self, grid: Grid) -> Array:
        return self.call(grid, grid.query, grid.key)


class Sum(Bias):
    a: Bias
    b: Bias

    def formula(self, grid: Grid) -> Array:
        return self.a.formula(grid) + self.b.formula(grid)


def relative_bucket(distance: np.ndarray, n: int, bidirectional: bool, max_distance: int) -> np.ndarray:
    """The bucket, of n, of each distance ``key - query``."""
    first, rest = np.zeros_like(distance), -np.minimum(distance, 0)
    if bidirectional:
        n = n // 2
        first, rest = np.where(distance > 0, n, 0), abs(distance)
    exact = n // 2
    # In float32 and in this order, since the other side of a rounding is another bucket.
    ratio = np.log(np.maximum(rest, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    shared = exact + (ratio * np.float32(n - exact)).astype(int)
    return first + np.where(rest < exact, rest, np.minimum(shared, n - 1))


def look_up(table: Float[Array, "*#b h 1 1 n"], index: Any) -> Float[Array, "*#b h t s"]:
    """``table[..., index]`` for each head; index is ``*#b 1 t s``.

    The axis of heads is left alone, as devices may hold some each.
    """
    heads = table.reshape(table.shape[-4], table.shape[-1])
    return jnp.moveaxis(jnp.take(heads, index.squeeze(-3), axis=-1, mode="clip"), 0, -3)
