"""What a program loads of arrays that lie in a GPU's memory as a whole, and its loop over tiles.

Features are ``n t hc``; the axes of a field are those of `Field`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from jattn._engine.axes import axis_of
from jattn.implementations.flash.tile import Tile
from jattn.implementations.flash.tiles import AtBlock, Field, Places, Ranges, Tiles

__all__ = [
    "compiler_params",
    "features_at",
    "field_at",
    "load_tile",
    "over_tiles",
    "row_numbers_at",
    "values_at",
    "zeros_of",
]

Totals = TypeVar("Totals")


def compiler_params(stages: int) -> plgpu.CompilerParams:
    """``stages`` tiles are on their way at once."""
    return plgpu.CompilerParams(num_warps=8, num_stages=stages)


def features_at(place: AtBlock, length: int, features: int) -> tuple[Any, ...]:
    """Where the features of a block of a head are."""
    n, h, block = place
    return n, pl.ds(block * length, length), pl.ds(h * features, features)


def row_numbers_at(place: AtBlock, length: int) -> tuple[Any, ...]:
    """Where a number for each query of a block is, ``n h t``."""
    n, h, block = place
    return n, h, pl.ds(block * length, length)


def field_at(field: Field, n: Any, h: Any, i: Any, j: Any, tiles: Tiles) -> tuple[Any, ...]:
    """Where what a tile sees of a field is."""
    shape = field.array.shape
    index = [n if shape[0] > 1 else 0, h if shape[1] > 1 else 0, *(slice(None),) * (len(shape) - 2)]
    for letter, block, length in (("t", i, tiles.rows), ("s", j, tiles.width)):
        if field.has(letter):
            assert field.axes is not None
            index[len(shape) + axis_of(letter, field.axes)] = pl.ds(block * length, length)
    return tuple(index)


def zeros_of(field: Field, tiles: Tiles) -> Array:
    """To add gradients of what a tile sees of a field to."""
    own = list(field.array.shape[2:])
    for letter, length in (("t", tiles.rows), ("s", tiles.width)):
        if field.axes is not None and field.has(letter):
            own[axis_of(letter, field.axes)] = length
    return jnp.zeros(own, tiles.logits)


def values_at(fields: Sequence[Field], refs: Sequence[Any], n: Any, h: Any, i: Any, j: Any, tiles: Tiles) -> list[Any]:
    """What a tile sees of all fields."""
    return [ref[field_at(field, n, h, i, j, tiles)] for field, ref in zip(fields, refs, strict=True)]


def load_tile(
    n: Any, h: Any, i: Any, j: Any, refs: Sequence[Any], fields: list[Field], places: Places, tiles: Tiles, whole: bool
) -> Tile:
    """Of a head: ``refs`` are query, key, value, the cotangent of the output, log-sum-exp, mean, and the fields."""
    q, k, v, of_output, *of_rows = refs[:6]
    at_queries, at_keys = (n, h, i), (n, places.key_head(h), j)
    c, d, e = (ref.shape[-1] // heads for ref, heads in ((q, tiles.heads), (k, tiles.key_heads), (v, tiles.key_heads)))
    log_sum_exp, mean = (ref[row_numbers_at(at_queries, tiles.rows)][:, None] for ref in of_rows)
    return Tile(
        q[features_at(at_queries, tiles.rows, c)],
        k[features_at(at_keys, tiles.width, d)],
        v[features_at(at_keys, tiles.width, e)],
        of_output[features_at(at_queries, tiles.rows, e)],
        log_sum_exp,
        mean,
        values_at(fields, refs[6:], n, h, i, j, tiles),
        (i, j),
        whole,
    )


def over_tiles(
    ranges: Ranges, places: Places, refs: Sequence[Any], place: AtBlock, body: Callable[..., Totals], state: Totals
) -> Totals:
    """``body(block, state, whole=)`` for the blocks that one looks at, one after the other; ``refs`` are of ``ranges``.

    Those that are whole lie side by side, so there are no more than three loops, and no choice in any.
    """
    low, length, low_whole, length_whole = (places.at(ref, place) for ref in refs)
    high = low + length
    low_whole = jnp.where(length_whole > 0, low_whole, low)
    first = jnp.clip(low_whole, low, high)
    last = jnp.clip(low_whole + length_whole, first, high)
    if ranges.may_start_in_part:
        state = _loop(low, first, body, state, False)
    if True in ranges.kinds:
        state = _loop(first, last, body, state, True)
    return _loop(last, high, body, state, False) if ranges.may_end_in_part else state


def _loop(start: Any, stop: Any, body: Callable[..., Totals], state: Totals, whole: bool) -> Totals:
    result: Totals = lax.fori_loop(start, stop, lambda block, state: body(block, state, whole=whole), state)
    return result
