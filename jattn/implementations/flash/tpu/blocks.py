"""Where the blocks of arrays lie in a TPU's memory, and which of them a step of a kernel is about."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jattn._engine.axes import axis_of
from jattn.implementations.flash.tile import Tile
from jattn.implementations.flash.tiles import AtBlock, Field, Places, Ranges, Tiles

__all__ = [
    "LANES",
    "Blocks",
    "Loop",
    "add_to",
    "in_memory",
    "in_order_from",
    "input_specs",
    "on_tiles",
    "tile_at",
    "value_of",
    "zeros_where",
]

LANES = 128  # of a TPU's vectors

_PARALLEL, _ARBITRARY = pltpu.GridDimensionSemantics.PARALLEL, pltpu.GridDimensionSemantics.ARBITRARY


class Loop(Places):
    """Which block a step of a kernel's innermost loop is about."""

    def block(self, first: Any, length: Any, place: AtBlock, step: Any) -> Any:
        """That of a step; after the last the last, so that none is fetched in vain."""
        return self.at(first, place) + jnp.minimum(step, jnp.maximum(self.at(length, place) - 1, 0))

    def over_keys(self, n: Any, h: Any, i: Any, step: Any, first: Any, length: Any, *_: Any) -> tuple[Any, ...]:
        """Where a step of a grid ``n h i`` and the blocks of keys of each is."""
        return n, h, i, self.block(first, length, (n, h, i), step)

    def over_queries(self, n: Any, k: Any, j: Any, member: Any, step: Any, *ranges: Any) -> tuple[Any, ...]:
        """Likewise of ``n k j``, the query heads of each and the blocks of their queries, whose ranges come last."""
        *_, first, length = ranges
        h = k * self.g + member
        return n, h, self.block(first, length, (n, h, j), step), j


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


def in_memory(field: Field) -> Array:
    """As a kernel loads it: no single bits, no float16; numbers with the two axes that blocks have."""
    x = field.array[..., None, None] if field.is_number else field.array
    return x.astype({"bool": jnp.int32, "float16": jnp.float32}.get(x.dtype.name, x.dtype))


def value_of(field: Field, ref: Any) -> Any:
    """What a tile sees of it."""
    x = ref[0, 0, 0, 0] if field.is_number else ref[0, 0]
    return x != 0 if field.array.dtype == jnp.bool_ else x


def on_tiles(ranges: Ranges, is_there: Any, is_whole: Any, body: Callable[[bool], None]) -> None:
    """``body(whole)`` for a tile that is there; of each kind only where there may be such tiles."""
    for whole in ranges.kinds:
        right_kind = is_there if len(ranges.kinds) == 1 else is_there & (is_whole if whole else ~is_whole)
        pl.when(right_kind)(functools.partial(body, whole))


def tile_at(place: tuple[Any, Any], whole: bool, arrays: Any, beside: Any, fields: list[Field]) -> Tile:
    """The tile whose arrays and fields these are."""
    query, key, value, of_output, *of_rows = (ref[...] for ref in arrays)
    log_sum_exp, mean = map(_as_column, of_rows)
    values = [value_of(field, ref) for field, ref in zip(fields, beside, strict=True)]
    return Tile(query, key, value, of_output, log_sum_exp, mean, values, place, whole)


def zeros_where(condition: Any, ref: Any) -> None:
    """Zeros to add to."""

    @pl.when(condition)
    def _() -> None:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _as_column(x: Float[Array, "1 r"]) -> Float[Array, "r 1"]:
    """A row as a column: a TPU transposes whole vectors."""
    return jnp.broadcast_to(x, (LANES, x.shape[-1])).T[:, :1]


def input_specs(blocks: Blocks, inputs: tuple[Array, ...], fields: list[Field], tiles: Tiles) -> list[pl.BlockSpec]:
    query, key, value, of_output, *_ = inputs
    features = tiles.features
    return [
        blocks.of_queries(features(query, tiles.heads)),
        blocks.of_keys(features(key, tiles.key_heads)),
        blocks.of_keys(features(value, tiles.key_heads)),
        blocks.of_queries(features(of_output, tiles.heads)),
        *(blocks.of_rows() for _ in range(2)),
        *map(blocks.of_field, fields),
    ]


def in_order_from(first: int, count: int) -> pltpu.CompilerParams:
    """Of a grid's axes those from the first on, over which something is added up."""
    return pltpu.CompilerParams(dimension_semantics=(_PARALLEL,) * first + (_ARBITRARY,) * (count - first))


def add_to(refs: Any, gradients: list[Array]) -> None:
    """To what is added up for fields."""
    for x, gradient in zip(refs, gradients, strict=True):
        shape = x.shape[2:]
        x[0, 0] += gradient.astype(x.dtype) if gradient.ndim == len(shape) else jnp.full(shape, 0) + gradient
