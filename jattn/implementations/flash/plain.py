"""The same in plain JAX, a block of queries at a time: what the kernels' derivatives are those of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jattn._engine.extents import slice_along
from jattn._engine.loops import broadcast_map, one_by_one
from jattn.implementations.flash.tile import dropout_of, scores_of, tile_of
from jattn.implementations.flash.tiles import Field, Tiles
from jattn.softmax import softmax

__all__ = ["run_plain"]


def run_plain(
    query: Float[Array, "n *ht c"],
    key: Float[Array, "n *ks d"],
    value: Float[Array, "n *ks e"],
    fields: list[Field],
    tiles: Tiles,
) -> tuple[Float[Array, "n *ht _"], Float[Array, "n h t"]]:
    """The output, and the log-sum-exp."""

    def of_head(xs: Any) -> Any:
        query, key, value, values = xs

        def of_rows(i: Array) -> tuple[Array, Array]:
            call = tiles.call_of(values)
            start, rows = i * tiles.rows, tiles.rows
            call = dataclasses.replace(call, logits=call.logits.rows(start, rows))
            scores = scores_of(call, slice_along(query, start, rows, 0), key)
            x = tile_of(call, scores, i, jnp.zeros_like(i), tiles)
            weights, log_sum_exp = softmax(x)
            weights = dropout_of(call, x.shape, i, jnp.zeros_like(i), tiles)(weights).astype(x.dtype)
            return jnp.matmul(weights, value.astype(x.dtype)).astype(tiles.output), log_sum_exp

        blocks = jnp.arange(query.shape[0] // tiles.rows)
        results = lax.map(jax.checkpoint(of_rows, prevent_cse=False), blocks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    def of_example(xs: Any) -> Any:
        return broadcast_map(of_head, xs, one_by_one)

    queries = tiles.heads_first(query, tiles.heads)
    keys, values = (
        jnp.repeat(tiles.heads_first(x, tiles.key_heads), tiles.heads // tiles.key_heads, axis=1) for x in (key, value)
    )
    arrays = [field.array for field in fields]
    output, log_sum_exp = broadcast_map(of_example, (queries, keys, values, arrays), one_by_one)
    return tiles.as_given(output), log_sum_exp
