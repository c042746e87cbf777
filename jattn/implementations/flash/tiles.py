"""How a call is cut into tiles, and what is known of them while tracing."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jattn._engine.axes import axis_of
from jattn._engine.varying import varying_as
from jattn.implementations.call import Call

__all__ = [
    "AtBlock",
    "Field",
    "Places",
    "Ranges",
    "Tiles",
    "cost",
    "flat",
    "learned_fields",
    "most_of",
    "shape_of_each",
    "shaped",
    "summed",
]

AtBlock = tuple[Any, Any, Any]  # n h i, or n h j


class Field(NamedTuple):
    """What a tile's logits look at beside query and key: an array, and its axes, None if it declares none."""

    axes: str | None
    array: Any  # n h 1 t s and its own, n and h of length 1 where nothing differs; without declared axes n h ...

    @property
    def is_number(self) -> bool:
        """Whether it is one for each example and head."""
        return len(self.array.shape) == 2

    @property
    def is_learned(self) -> bool:
        return bool(jnp.issubdtype(self.array.dtype, jnp.inexact))

    def has(self, letter: str) -> bool:
        return self.axes is not None and self.array.shape[axis_of(letter, self.axes)] != 1


class Ranges(NamedTuple):
    """Which blocks of keys the blocks of queries look at, ``n h i``, of length 1 where nothing differs; which of them,
    one after the other, have nothing that the mask rules out. NumPy's where no data decides.
    """

    first: Int[Array | np.ndarray, "n h i"]
    length: Int[Array | np.ndarray, "n h i"]
    first_whole: Int[Array | np.ndarray, "n h i"]
    length_whole: Int[Array | np.ndarray, "n h i"]

    @property
    def are_known(self) -> bool:
        return isinstance(self.first, np.ndarray)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Which tiles there may be: some that are not whole (False), some that are (True)."""
        if self.are_known and not np.any(self.length_whole):
            return (False,)
        if self.are_known and np.array_equal(self.length, self.length_whole):
            return (True,)
        return (False, True)

    @property
    def may_start_in_part(self) -> bool:
        """Whether a tile that is not whole may come before those that are."""
        return not self.are_known or bool(np.any(self.length_whole[self.first_whole > self.first]))

    @property
    def may_end_in_part(self) -> bool:
        """Whether one may come after them, or where there are none."""
        if not self.are_known:
            return True
        end = self.first + self.length
        return bool(np.any(np.where(self.length_whole > 0, self.first_whole + self.length_whole, self.first) < end))

    def of_queries(self, count: int) -> "Ranges":
        """For each of so many blocks of keys, in place of ``i``, the blocks of queries that look at it: from the first
        that does to the last, and the first that lie side by side of those for which it is whole."""
        xp: Any = np if self.are_known else jnp
        j = np.arange(count)

        def looks(first: Any, length: Any) -> Any:  # n h i j
            return (first[..., None] <= j) & (j < first[..., None] + length[..., None])

        there, whole = looks(self.first, self.length), looks(self.first_whole, self.length_whole)
        blocks = there.shape[-2]
        first, last = xp.argmax(there, axis=-2), blocks - xp.argmax(there[..., ::-1, :], axis=-2)
        first_whole = xp.argmax(whole, axis=-2)
        after = ~whole & (np.arange(blocks)[:, None] > first_whole[..., None, :])
        last_whole = xp.where(after.any(axis=-2), xp.argmax(after, axis=-2), blocks)
        return Ranges(
            first,
            xp.where(there.any(axis=-2), last - first, 0),
            first_whole,
            xp.where(whole.any(axis=-2), last_whole - first_whole, 0),
        )


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What is known of a call while tracing."""

    t: int  # without padding
    s: int
    rows: int
    width: int
    heads: int
    key_heads: int
    # Whether arrays are ``n t hc``: where the features of a head are whole vectors, a block of one can be cut out, and
    # no array need be copied heads first, ``n h t c``.
    side_by_side: bool
    call_of: Callable[[Sequence[Any]], Call]  # out of the fields' values
    logits: Any  # their dtype
    output: Any  # its dtype
    for_gpu: bool = False  # else for a TPU
    interpret: bool = False

    def features(self, x: Any, heads: int) -> int:
        """Of one head."""
        return int(x.shape[-1]) // heads if self.side_by_side else int(x.shape[-1])

    def shape(self, n: int, length: int, heads: int, features: int) -> tuple[int, ...]:
        return (n, length, heads * features) if self.side_by_side else (n, heads, length, features)

    def heads_first(self, x: Array, heads: int) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], heads, -1), 2, 1) if self.side_by_side else x

    def sum_of_features(self, x: Array, heads: int) -> Float[Array, "n h t"]:
        if not self.side_by_side:
            return jnp.sum(x, axis=-1)
        return jnp.swapaxes(jnp.sum(x.reshape(*x.shape[:2], heads, -1), axis=-1), 1, 2)

    def for_gradients(
        self, value: Array, result: tuple[Array, Array], cotangents: tuple[Array, Array]
    ) -> tuple[Array, ...]:
        """The output's cotangent, as tiles multiply it, and of each query its log-sum-exp, and what is taken off of the
        cotangent of its weights: both ``n h t``, or for a TPU by blocks, ``n h i 1 r``."""
        (output, log_sum_exp), (of_output, of_log_sum_exp) = result, cotangents
        dtype = log_sum_exp.dtype
        mean = self.sum_of_features(output.astype(dtype) * of_output.astype(dtype), self.heads) - of_log_sum_exp
        of_rows = (x if self.for_gpu else x.reshape(*x.shape[:2], -1, 1, self.rows) for x in (log_sum_exp, mean))
        return of_output.astype(value.dtype), *of_rows

    def as_given(self, x: Array) -> Array:
        """Out of heads first."""
        return jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1) if self.side_by_side else x


def most_of(length: Any, blocks: int) -> int:
    """How many of so many blocks there are at most, as far as that is known."""
    return max(int(length.max()), 1) if isinstance(length, np.ndarray) else blocks


def shaped(shape: tuple[int, ...], dtype: Any, *inputs: Array) -> jax.ShapeDtypeStruct:
    """A result of a kernel with these inputs, which varies over the axes of a mesh that one of them varies over."""
    result: jax.ShapeDtypeStruct = jax.eval_shape(lambda *inputs: varying_as(jnp.zeros(shape, dtype), *inputs), *inputs)
    return result


def cost(ranges: Ranges, n: int, h: int, keys: int, tiles: Tiles, products: int, bytes_read: int) -> pl.CostEstimate:
    """What XLA plans with: of all tiles that are looked at, or where data decides of all there are.

    ``products`` are the features of the products of matrices, with one for each pair.
    """
    examples, heads, blocks = np.shape(ranges.length)
    each = int(ranges.length.sum()) if ranges.are_known else examples * heads * blocks * keys
    count = each * (n // examples) * (h // heads)
    pairs = count * tiles.rows * tiles.width
    return pl.CostEstimate(flops=2 * pairs * products, transcendentals=pairs, bytes_accessed=bytes_read)


class Places:
    """Where the numbers of `Ranges` are, ``n h i``, in flat arrays."""

    def __init__(self, ranges: Ranges, g: int) -> None:
        self.examples, self.heads, _ = np.shape(ranges.first)
        self.g = g  # query heads that share a key head

    def at(self, x: Any, place: AtBlock) -> Any:
        """``x[n, h, i]``"""
        n, h, i = place
        blocks = x.shape[0] // (self.examples * self.heads)
        return x[((n if self.examples > 1 else 0) * self.heads + (h if self.heads > 1 else 0)) * blocks + i]

    def is_among(self, first: Any, length: Any, place: AtBlock, j: Any) -> Any:
        low = self.at(first, place)
        return (low <= j) & (j < low + self.at(length, place))

    def key_head(self, h: Any) -> Any:
        # Written as //, its lowering asks which device the process has, by the sign.
        return lax.div(h, lax.full_like(h, self.g))


def flat(*ranges: Any) -> list[Array]:
    """As `Places` looks at them in a kernel, where arrays of numbers have one axis."""
    return [jnp.asarray(x, jnp.int32).reshape(-1) for x in ranges]


def learned_fields(fields: list[Field]) -> tuple[list[int], ...]:
    """Those that have gradients; and of these, those with an entry for each pair last, before them those with one for
    each key, and the others."""
    learned = [i for i, field in enumerate(fields) if field.is_learned]
    by_pair = [i for i in learned if fields[i].has("t") and fields[i].has("s")]
    by_key = [i for i in learned if fields[i].has("s") and i not in by_pair]
    return learned, [i for i in learned if i not in by_pair and i not in by_key], by_key, by_pair


def shape_of_each(field: Field, n: int, h: int) -> tuple[int, ...]:
    """Of a field's gradient, for each example and head; blocks have two axes at least."""
    own = field.array.shape[2:]
    return n, h, *(1,) * (2 - len(own)), *own


def summed(x: Array, field: Array) -> Array:
    """Over those for which the field has one for all."""
    axes = tuple(axis for axis in (0, 1) if field.shape[axis] == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(field.shape).astype(field.dtype)
