"""The gradient of a field with an entry for each pair: a kernel that goes over examples and heads of each tile."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jattn.implementations.flash.tiles import Field, Ranges, Tiles, cost, flat, shaped
from jattn.implementations.flash.tpu.blocks import (
    Blocks,
    Loop,
    add_to,
    in_memory,
    in_order_from,
    input_specs,
    on_tiles,
    tile_at,
    zeros_where,
)

__all__ = ["gradient_of_pairs"]


def gradient_of_pairs(
    inputs: tuple[Array, ...], fields: list[Field], wanted: int, ranges: Ranges, tiles: Tiles
) -> Array:
    """Of one field, as it is: those that it stands for alike come one after the other, and are added up at once."""
    query, key, value, *_ = inputs
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, tiles.logits
    n, t, s = query.shape[0], query.shape[-2], key.shape[-2]
    field = fields[wanted]
    shares_examples, shares_heads = (length == 1 for length in field.array.shape[:2])
    heads_last = shares_heads or not shares_examples
    loop = Loop(ranges, h // k)

    def place_of(i: Any, j: Any, outer: Any, inner: Any, *_: Any) -> tuple[Any, ...]:
        return (outer, inner, i, j) if heads_last else (inner, outer, i, j)

    blocks = Blocks(tiles, loop, place_of)
    given = (*flat(*ranges), *inputs, *map(in_memory, fields))

    def kernel(first: Any, length: Any, first_whole: Any, length_whole: Any, *refs: Any) -> None:
        arrays, beside, of_field = refs[:6], refs[6:-1], refs[-1]
        example, head, i, j = place_of(*(pl.program_id(axis) for axis in range(4)))
        zeros_where(((example == 0) | (not shares_examples)) & ((head == 0) | (not shares_heads)), of_field)

        def add(whole: bool) -> None:
            tile = tile_at((i, j), whole, arrays, beside, fields)
            gradients = tile.gradients([wanted], tiles, of_query=True).fields
            add_to([of_field], gradients)

        at = example, head, i
        is_whole = loop.is_among(first_whole, length_whole, at, j)
        on_tiles(ranges, loop.is_among(first, length, at, j), is_whole, add)

    c, e = tiles.features(query, h), tiles.features(value, k)
    [gradient] = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(t // rows, s // width, *((n, h) if heads_last else (h, n))),
            in_specs=input_specs(blocks, inputs, fields, tiles),
            out_specs=[blocks.of_part(field, field.array.shape)],
        ),
        out_shape=[shaped(field.array.shape, dtype, *given)],
        compiler_params=in_order_from(2, 4),
        cost_estimate=cost(ranges, n, h, s // width, tiles, c + e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_pairs",
    )(*given)
    return jnp.asarray(gradient)
