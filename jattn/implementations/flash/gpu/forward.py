"""The output: a program for each block of queries, which goes over their keys."""

from typing import Any

from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jattn.implementations.flash.gpu.loads import compiler_params, features_at, over_tiles, row_numbers_at, values_at
from jattn.implementations.flash.tile import Averages
from jattn.implementations.flash.tiles import Field, Places, Ranges, Tiles, cost, flat, shaped

__all__ = ["run_forward"]


def run_forward(
    query: Float[Array, "n t hc"],
    key: Float[Array, "n s kd"],
    value: Float[Array, "n s ke"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
) -> tuple[Float[Array, "n t he"], Float[Array, "n h t"]]:
    """The output, and the log-sum-exp."""
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, tiles.logits
    n, t, s = query.shape[0], query.shape[1], key.shape[1]
    c, d, e = (tiles.features(x, heads) for x, heads in ((query, h), (key, k), (value, k)))
    places = Places(ranges, h // k)
    inputs = (*flat(*ranges), query, key, value, *(field.array for field in fields))

    def kernel(*refs: Any) -> None:
        of_ranges, (q, k, v), (*beside, output, log_sum_exp) = refs[:4], refs[4:7], refs[7:]
        i, head, example = (pl.program_id(axis) for axis in range(3))
        place, key_head = (example, head, i), places.key_head(head)
        queries = q[features_at(place, rows, c)]

        def join(j: Any, averages: Averages, whole: bool) -> Averages:
            call = tiles.call_of(values_at(fields, beside, example, head, i, j, tiles))
            keys, values = (
                ref[features_at((example, key_head, j), width, features)] for ref, features in ((k, d), (v, e))
            )
            return averages.joined(call, queries, keys, values, (i, j), tiles, whole)

        averages = over_tiles(ranges, places, of_ranges, place, join, Averages.of_none(rows, e, dtype))
        output[features_at(place, rows, e)] = averages.output().astype(output.dtype)
        log_sum_exp[row_numbers_at(place, rows)] = averages.log_sum_exp().reshape(rows)

    output, log_sum_exp = pl.pallas_call(
        kernel,
        grid=(t // rows, h, n),
        out_shape=[
            shaped(tiles.shape(n, t, h, e), tiles.output, *inputs),
            shaped((n, h, t), dtype, *inputs),
        ],
        compiler_params=compiler_params(stages=3),
        cost_estimate=cost(ranges, n, h, s // width, tiles, c + e, sum(x.nbytes for x in inputs)),
        interpret=tiles.interpret,
        name="flash_forward",
    )(*inputs)
    return output, log_sum_exp
