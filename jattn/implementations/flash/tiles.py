"""How a call is cut into tiles, what a kernel computes of one, and where its blocks lie."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jattn._engine.axes import axis_of
from jattn._engine.varying import varying_as
from jattn.implementations.call import Call

__all__ = [
    "LANES",
    "Blocks",
    "Field",
    "Loop",
    "Ranges",
    "Tiles",
    "after_dropout",
    "cost",
    "in_scalar_memory",
    "most_of",
    "product",
    "shaped",
    "tile_of",
]

LANES = 128  # of a TPU's vectors


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

    def in_memory(self) -> Array:
        """As a kernel loads it: no single bits, no float16; numbers with the two axes that blocks have."""
        x = self.array[..., None, None] if self.is_number else self.array
        return x.astype({"bool": jnp.int32, "float16": jnp.float32}.get(x.dtype.name, x.dtype))

    def value(self, ref: Any) -> Any:
        """What a tile sees of it."""
        x = ref[0, 0, 0, 0] if self.is_number else ref[0, 0]
        return x != 0 if self.array.dtype == jnp.bool_ else x


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

    def on_tiles(self, is_there: Any, is_whole: Any, body: Callable[[bool], None]) -> None:
        """``body(whole)`` in a kernel for a tile that is there; of each kind only where there may be such tiles."""
        if self.are_known and not np.any(self.length_whole):
            pl.when(is_there)(lambda: body(False))
        elif self.are_known and np.array_equal(self.length, self.length_whole):
            pl.when(is_there)(lambda: body(True))
        else:
            pl.when(is_there & is_whole)(lambda: body(True))
            pl.when(is_there & ~is_whole)(lambda: body(False))


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

    def as_given(self, x: Array) -> Array:
        """Out of heads first."""
        return jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1) if self.side_by_side else x


def tile_of(
    call: Call, query: Float[Array, "r c"], key: Float[Array, "w d"], i: Any, j: Any, tiles: Tiles, whole: bool = False
) -> Float[Array, "r w"]:
    """The logits; of a tile that is whole without the mask."""
    logits = dataclasses.replace(call.logits, query=query, mask=None if whole else call.logits.mask)
    rows, width = query.shape[0], key.shape[0]
    within = (tiles.t, tiles.s) if tiles.t % tiles.rows or tiles.s % tiles.width else None
    start, first = _starts(i, j, tiles)
    x, _ = logits.tile(start, rows, first, width, 1, key=key, within=within)
    if tiles.s % tiles.width and not whole:
        x = jnp.where(_indices(first, x, axis=1) < tiles.s, x, -jnp.inf)
    return x.astype(tiles.logits)


def after_dropout(call: Call, x: Float[Array, "r w"], i: Any, j: Any, tiles: Tiles) -> Float[Array, "r w"]:
    """What dropout leaves of weights, or of their cotangents, scaled up."""
    if call.matrices is None:
        return x
    start, first = _starts(i, j, tiles)
    keep = call.keep(call.matrices, _indices(start, x, axis=0), _indices(first, x, axis=1))
    assert keep is not None
    return jnp.where(keep, x / (1 - float(call.dropout_rate)), 0)


def _starts(i: Any, j: Any, tiles: Tiles) -> tuple[Array, Array]:
    """The first query and key, as numbers like those of positions."""
    first_query, first_key = (jnp.asarray(x * n, jnp.result_type(int)) for x, n in ((i, tiles.rows), (j, tiles.width)))
    return first_query, first_key


def _indices(start: Array, x: Float[Array, "r w"], axis: int) -> Array:
    shape = ((x.shape[0], 1), (1, x.shape[1]))[axis]
    return start + lax.broadcasted_iota(start.dtype, shape, axis)


def product(x: Array, y: Array, axes: tuple[int, int], dtype: Any) -> Array:
    """Over an axis of each."""
    return lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=dtype)


def in_scalar_memory(*ranges: Any) -> list[Array]:
    """Flat, as its arrays have one axis."""
    return [jnp.asarray(x, jnp.int32).reshape(-1) for x in ranges]


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


class Loop:
    """Which block a step of a kernel's innermost loop is about, by arrays ``n h i`` that are flat in scalar memory."""

    def __init__(self, ranges: Ranges, g: int) -> None:
        self.examples, self.heads, _ = np.shape(ranges.first)
        self.g = g  # query heads that share a key head

    def at(self, x: Any, place: AtBlock) -> Any:
        """``x[n, h, i]``"""
        n, h, i = place
        blocks = x.shape[0] // (self.examples * self.heads)
        return x[((n if self.examples > 1 else 0) * self.heads + (h if self.heads > 1 else 0)) * blocks + i]

    def block(self, first: Any, length: Any, place: AtBlock, step: Any) -> Any:
        """That of a step; after the last the last, so that none is fetched in vain."""
        return self.at(first, place) + jnp.minimum(step, jnp.maximum(self.at(length, place) - 1, 0))

    def is_among(self, first: Any, length: Any, place: AtBlock, j: Any) -> Any:
        low = self.at(first, place)
        return (low <= j) & (j < low + self.at(length, place))

    def over_keys(self, n: Any, h: Any, i: Any, step: Any, first: Any, length: Any, *_: Any) -> tuple[Any, ...]:
        """Where a step of a grid ``n h i`` and the blocks of keys of each is."""
        return n, h, i, self.block(first, length, (n, h, i), step)

    def over_queries(self, n: Any, k: Any, j: Any, member: Any, step: Any, *ranges: Any) -> tuple[Any, ...]:
        """Likewise of ``n k j``, the query heads of each and the blocks of their queries, whose ranges come last."""
        *_, first, length = ranges
        h = k * self.g + member
        return n, h, self.block(first, length, (n, h, j), step), j

    def key_head(self, h: Any) -> Any:
        # Written as //, its lowering asks which device the process has, by the sign.
        return lax.div(h, lax.full_like(h, self.g))


class Blocks:
    """Where the blocks of arrays lie for a step of a kernel.

    ``place`` gives ``n h i j`` of where it is in the grid and of the numbers in scalar memory.
    """

    def __init__(self, tiles: Tiles, loop: Loop, place: Callable[..., tuple[Any, ...]]) -> None:
        self.tiles, self.loop, self.place = tiles, loop, place

    def of(self, index: Callable[..., tuple[Any, ...]]) -> Callable[..., pl.BlockSpec]:
        """Of an array whose block is ``index(n, h, i, j)``, by the shape of a block."""
        return lambda *shape: pl.BlockSpec(shape, lambda *step: index(*self.place(*step)))

    def of_queries(self, features: int) -> pl.BlockSpec:
        """Of what has features for each query: a tile's own are ``r c``."""
        if self.tiles.side_by_side:
            return self.of(lambda n, h, i, j: (n, i, h))(None, self.tiles.rows, features)
        return self.of(lambda n, h, i, j: (n, h, i, 0))(None, None, self.tiles.rows, features)

    def of_keys(self, features: int) -> pl.BlockSpec:
        """Likewise for each key."""
        if self.tiles.side_by_side:
            return self.of(lambda n, h, i, j: (n, j, self.loop.key_head(h)))(None, self.tiles.width, features)
        return self.of(lambda n, h, i, j: (n, self.loop.key_head(h), j, 0))(None, None, self.tiles.width, features)

    def of_rows(self) -> pl.BlockSpec:
        """Of one number for each query, ``n h i 1 r``."""
        return self.of(lambda n, h, i, j: (n, h, i, 0, 0))(None, None, None, 1, self.tiles.rows)

    def of_field(self, field: Field) -> pl.BlockSpec:
        if not field.is_number:
            return self.of_part(field, field.array.shape)
        n, h = field.array.shape
        spec = self.of(lambda at_n, at_h, i, j: (at_n if n > 1 else 0, at_h if h > 1 else 0, 0, 0))(1, 1, 1, 1)
        return pl.BlockSpec(spec.block_shape, spec.index_map, memory_space=pltpu.SMEM)

    def of_part(self, field: Field, shape: tuple[int, ...]) -> pl.BlockSpec:
        """Of an array that lies like a field's, ``n h ...``"""
        block = [1, 1, *shape[2:]]
        axes: dict[str, int] = {}
        if field.axes is not None:
            axes = {letter: len(shape) + axis_of(letter, field.axes) for letter in "ts" if field.has(letter)}
            for letter, axis in axes.items():
                block[axis] = self.tiles.rows if letter == "t" else self.tiles.width

        def index(n: Any, h: Any, i: Any, j: Any) -> tuple[Any, ...]:
            places = [n if shape[0] > 1 else 0, h if shape[1] > 1 else 0, *(0,) * (len(shape) - 2)]
            for letter, axis in axes.items():
                places[axis] = i if letter == "t" else j
            return tuple(places)

        return self.of(index)(*block)
