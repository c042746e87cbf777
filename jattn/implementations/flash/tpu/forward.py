"""The output: an average over the keys so far, which each tile joins."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jattn.implementations.flash.tile import Averages
from jattn.implementations.flash.tiles import Field, Ranges, Tiles, cost, flat, most_of, shaped
from jattn.implementations.flash.tpu.blocks import LANES, Blocks, Loop, in_memory, on_tiles, value_of

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
    inputs = (*flat(*ranges), query, key, value, *map(in_memory, fields))

    def kernel(
        first: Any, length: Any, first_whole: Any, length_whole: Any, q: Any, k: Any, v: Any, *refs: Any
    ) -> None:
        *beside, output, log_sum_exp, largest, total, average = refs
        example, head, i, step = (pl.program_id(axis) for axis in range(4))
        place = example, head, i
        j = loop.block(first, length, place, step)

        def keep(averages: Averages) -> None:
            largest[...], total[...] = (jnp.broadcast_to(x, (rows, LANES)) for x in averages[:2])
            average[...] = averages.average

        def kept() -> Averages:
            return Averages(largest[...][:, :1], total[...][:, :1], average[...])

        @pl.when(step == 0)
        def _() -> None:
            keep(Averages.of_none(rows, e, dtype))

        def join(whole: bool) -> None:
            call = tiles.call_of([value_of(field, ref) for field, ref in zip(fields, beside, strict=True)])
            keep(kept().joined(call, q[...], k[...], v[...], (i, j), tiles, whole))

        is_whole = loop.is_among(first_whole, length_whole, place, j)
        on_tiles(ranges, step < loop.at(length, place), is_whole, join)

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            output[...] = kept().output().astype(output.dtype)
            log_sum_exp[...] = (largest[...] + jnp.log(total[...])).T[:1]  # a TPU transposes whole vectors

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
