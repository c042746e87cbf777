"""The output: an average over the keys so far, which each tile joins."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jattn.implementations.flash.tiles import (
    LANES,
    Blocks,
    Field,
    Loop,
    Ranges,
    Tiles,
    after_dropout,
    cost,
    in_scalar_memory,
    most_of,
    product,
    shaped,
    tile_of,
)

__all__ = ["run_forward"]


def run_forward(
    query: Float[Array, "n *ht c"],
    key: Float[Array, "n *ks d"],
    value: Float[Array, "n *ks e"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
) -> tuple[Float[Array, "n *ht _"], Float[Array, "n h t"]]:
    """The output, and the log-sum-exp."""
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, tiles.logits
    n, t, s = query.shape[0], query.shape[-2], key.shape[-2]
    c, d, e = (tiles.features(x, heads) for x, heads in ((query, h), (key, k), (value, k)))
    loop = Loop(ranges, h // k)
    blocks = Blocks(tiles, loop, loop.over_keys)
    inputs = (*in_scalar_memory(*ranges), query, key, value, *(field.in_memory() for field in fields))

    def kernel(
        first: Any, length: Any, first_whole: Any, length_whole: Any, q: Any, k: Any, v: Any, *refs: Any
    ) -> None:
        *beside, output, log_sum_exp, largest, total, average = refs
        example, head, i, step = (pl.program_id(axis) for axis in range(4))
        place = example, head, i
        j = loop.block(first, length, place, step)

        @pl.when(step == 0)
        def _() -> None:
            largest[...] = jnp.full(largest.shape, -jnp.inf, dtype)
            total[...] = jnp.zeros(total.shape, dtype)
            average[...] = jnp.zeros(average.shape, dtype)

        def join(whole: bool) -> None:
            call = tiles.call_of([field.value(ref) for field, ref in zip(fields, beside, strict=True)])
            x = tile_of(call, q[...], k[...], i, j, tiles, whole)
            before = largest[...][:, :1]
            peak = jnp.maximum(before, jnp.max(x, axis=1, keepdims=True))
            floor = jnp.where(peak == -jnp.inf, 0, peak)
            exponentials, shrink = jnp.exp(x - floor), jnp.exp(before - floor)
            sums = total[...][:, :1] * shrink + jnp.sum(exponentials, axis=1, keepdims=True)
            weights = after_dropout(call, exponentials, i, j, tiles).astype(v.dtype)
            average[...] = average[...] * shrink + product(weights, v[...], (1, 0), dtype)
            largest[...], total[...] = (jnp.broadcast_to(y, (rows, LANES)) for y in (peak, sums))

        is_whole = loop.is_among(first_whole, length_whole, place, j)
        ranges.on_tiles(step < loop.at(length, place), is_whole, join)

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            sums = total[...]
            output[...] = (average[...] / jnp.where(sums == 0, 1, sums)[:, :1]).astype(output.dtype)
            log_sum_exp[...] = (largest[...] + jnp.log(sums)).T[:1]

    output, log_sum_exp = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(n, h, t // rows, most_of(ranges.length, s // width)),
            in_specs=[
                blocks.of_queries(c),
                blocks.of_keys(d),
                blocks.of_keys(e),
                *map(blocks.of_field, fields),
            ],
            out_specs=[blocks.of_queries(e), blocks.of_rows()],
            # Vectors are as wide as a TPU's, so that a number for each row is a row of them.
            scratch_shapes=[pltpu.VMEM((rows, columns), dtype) for columns in (LANES, LANES, e)],
        ),
        out_shape=[
            shaped(tiles.shape(n, t, h, e), tiles.output, *inputs),
            shaped((n, h, t // rows, 1, rows), dtype, *inputs),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=cost(ranges, n, h, s // width, tiles, c + e, sum(x.nbytes for x in inputs)),
        interpret=tiles.interpret,
        name="flash_forward",
    )(*inputs)
    return output, log_sum_exp.reshape(n, h, t)
