"""The gradients: those of the queries block by block over their keys, those of the keys over their queries."""

from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jattn.implementations.flash.tiles import (
    Field,
    Ranges,
    Tiles,
    cost,
    flat,
    most_of,
    shape_of_each,
    shaped,
)
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

__all__ = ["gradients_of_keys", "gradients_of_queries"]


def gradients_of_queries(
    inputs: tuple[Array, ...], fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, list[Array]]:
    """Gradients of the queries, and of the wanted fields, for each example and head."""
    query, key, value, *_ = inputs
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, inputs[-1].dtype
    n, t, s = query.shape[0], query.shape[-2], key.shape[-2]
    c, e = tiles.features(query, h), tiles.features(value, k)
    loop = Loop(ranges, h // k)
    blocks = Blocks(tiles, loop, loop.over_keys)
    given = (*flat(*ranges), *inputs, *map(in_memory, fields))

    def kernel(first: Any, length: Any, first_whole: Any, length_whole: Any, *refs: Any) -> None:
        arrays, beside, (of_query, *of_fields, total) = refs[:6], refs[6 : 6 + len(fields)], refs[6 + len(fields) :]
        example, head, i, step = (pl.program_id(axis) for axis in range(4))
        place = example, head, i
        j = loop.block(first, length, place, step)
        zeros_where(step == 0, total)
        for field, x in zip([fields[at] for at in wanted], of_fields, strict=True):
            zeros_where((step == 0) & (field.has("t") | (i == 0)), x)  # of a block, or of the whole head

        def add(whole: bool) -> None:
            tile = tile_at((i, j), whole, arrays, beside, fields)
            of_features, of_wanted, _ = tile.gradients(wanted, tiles, of_query=True)
            total[...] += of_features.astype(dtype)
            add_to(of_fields, of_wanted)

        is_whole = loop.is_among(first_whole, length_whole, place, j)
        on_tiles(ranges, step < loop.at(length, place), is_whole, add)

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            of_query[...] = total[...].astype(of_query.dtype)

    shapes = [shape_of_each(fields[i], n, h) for i in wanted]
    of_query, *of_fields = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(n, h, t // rows, most_of(ranges.length, s // width)),
            in_specs=input_specs(blocks, inputs, fields, tiles),
            out_specs=[
                blocks.of_queries(c),
                *(blocks.of_part(fields[i], shape) for i, shape in zip(wanted, shapes, strict=True)),
            ],
            scratch_shapes=[pltpu.VMEM((rows, c), dtype)],
        ),
        out_shape=[
            shaped(query.shape, query.dtype, *given),
            *(shaped(shape, dtype, *given) for shape in shapes),
        ],
        compiler_params=in_order_from(2 if wanted else 3, 4),
        cost_estimate=cost(ranges, n, h, s // width, tiles, 2 * c + e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_queries",
    )(*given)
    return of_query, list(of_fields)


def gradients_of_keys(
    inputs: tuple[Array, ...], fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, Array, list[Array]]:
    """Gradients of keys and values, and of the wanted fields, which have one for each key."""
    query, key, value, *_ = inputs
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, inputs[-1].dtype
    n, t, s, g = query.shape[0], query.shape[-2], key.shape[-2], h // k
    d, e = tiles.features(key, k), tiles.features(value, k)
    first_row, rows_there, *_ = ranges.of_queries(s // width)
    loop = Loop(ranges, g)
    blocks = Blocks(tiles, loop, loop.over_queries)
    given = (*flat(*ranges, first_row, rows_there), *inputs, *map(in_memory, fields))

    def kernel(first: Any, length: Any, first_whole: Any, length_whole: Any, *refs: Any) -> None:
        (first_row, rows_there, *arrays), rest = refs[:8], refs[8:]
        beside, (of_key, of_value, *of_fields, of_keys, of_values) = rest[: len(fields)], rest[len(fields) :]
        example, key_head, j, member, step = (pl.program_id(axis) for axis in range(5))
        head = key_head * g + member
        i = loop.block(first_row, rows_there, (example, head, j), step)
        place = example, head, i
        for x in (of_keys, of_values):
            zeros_where((member == 0) & (step == 0), x)
        for x in of_fields:
            zeros_where(step == 0, x)

        def add(whole: bool) -> None:
            tile = tile_at((i, j), whole, arrays, beside, fields)
            of_features, of_wanted, more = tile.gradients(wanted, tiles, of_query=False)
            of_keys[...] += of_features.astype(dtype)
            of_values[...] += more
            add_to(of_fields, of_wanted)

        is_there = step < loop.at(rows_there, (example, head, j))
        is_there &= loop.is_among(first, length, place, j)
        on_tiles(ranges, is_there, loop.is_among(first_whole, length_whole, place, j), add)

        @pl.when((member == g - 1) & (step == pl.num_programs(4) - 1))
        def _() -> None:
            of_key[...], of_value[...] = of_keys[...].astype(of_key.dtype), of_values[...].astype(of_value.dtype)

    shapes = [shape_of_each(fields[i], n, h) for i in wanted]
    of_key, of_value, *of_fields = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(n, k, s // width, g, most_of(rows_there, t // rows)),
            in_specs=input_specs(blocks, inputs, fields, tiles),
            out_specs=[
                *(blocks.of_keys(features) for features in (d, e)),
                *(blocks.of_part(fields[i], shape) for i, shape in zip(wanted, shapes, strict=True)),
            ],
            scratch_shapes=[pltpu.VMEM((width, features), dtype) for features in (d, e)],
        ),
        out_shape=[
            *(shaped(x.shape, x.dtype, *given) for x in (key, value)),
            *(shaped(shape, dtype, *given) for shape in shapes),
        ],
        compiler_params=in_order_from(3, 5),
        cost_estimate=cost(ranges, n, h, s // width, tiles, 2 * d + 2 * e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_keys",
    )(*given)
    return of_key, of_value, list(of_fields)
