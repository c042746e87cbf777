"""What a kernel computes of a tile: logits, what joins an average, gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jattn._engine.dtypes import at_least_float32, in_one_dtype
from jattn.implementations.call import Call
from jattn.implementations.flash.tiles import Tiles

__all__ = ["Averages", "OfTile", "Tile", "dropout_of", "product", "scores_of", "tile_of"]


def scores_of(call: Call, query: Float[Array, "r c"], key: Float[Array, "w d"]) -> Float[Array, "r w"]:
    """The scores of a tile, which are products."""
    score = call.logits.score
    query, key = in_one_dtype(query, key)
    return score.scaled(product(query, key, (1, 1), at_least_float32(query), score.precision), query)


def tile_of(
    call: Call, scores: Float[Array, "r w"], i: Any, j: Any, tiles: Tiles, whole: bool = False
) -> Float[Array, "r w"]:
    """The logits; of a tile that is whole without the mask."""
    logits = dataclasses.replace(call.logits, mask=None if whole else call.logits.mask)
    within = (tiles.t, tiles.s) if tiles.t % tiles.rows or tiles.s % tiles.width else None
    start, first = _starts(i, j, tiles)
    x, _ = logits.tile(start, scores.shape[0], first, scores.shape[1], 1, scores=scores, within=within)
    if tiles.s % tiles.width and not whole:
        x = jnp.where(_indices(first, scores.shape, axis=1) < tiles.s, x, -jnp.inf)
    return x.astype(tiles.logits)


def dropout_of(
    call: Call, shape: tuple[int, ...], i: Any, j: Any, tiles: Tiles
) -> Callable[[Float[Array, "r w"]], Float[Array, "r w"]]:
    """What dropout leaves of a tile's weights, or of their cotangents, scaled up: drawn once for both."""
    if call.matrices is None:
        return lambda x: x
    start, first = _starts(i, j, tiles)
    keep = call.keep(
        call.matrices, _indices(start, shape, axis=0), _indices(first, shape, axis=1), rolled=tiles.for_gpu
    )
    assert keep is not None
    return lambda x: jnp.where(keep, x / (1 - float(call.dropout_rate)), 0)


def _starts(i: Any, j: Any, tiles: Tiles) -> tuple[Array, Array]:
    """The first query and key, as numbers like those of positions."""
    first_query, first_key = (jnp.asarray(x * n, jnp.result_type(int)) for x, n in ((i, tiles.rows), (j, tiles.width)))
    return first_query, first_key


def _indices(start: Array, shape: tuple[int, ...], axis: int) -> Array:
    return start + lax.broadcasted_iota(start.dtype, ((shape[0], 1), (1, shape[1]))[axis], axis)


def product(x: Array, y: Array, axes: tuple[int, int], dtype: Any, precision: Any = None) -> Array:
    """Over an axis of each."""
    over = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(x, y, over, precision=precision, preferred_element_type=dtype)


class Averages(NamedTuple):
    """Of the rows of a block, over the keys so far."""

    largest: Float[Array, "r 1"]
    total: Float[Array, "r 1"]  # of the exponentials, that of the largest being one
    average: Float[Array, "r e"]  # times the total

    @classmethod
    def of_none(cls, rows: int, features: int, dtype: Any) -> "Averages":
        nothing = jnp.zeros((rows, 1), dtype)
        return cls(jnp.full_like(nothing, -jnp.inf), nothing, jnp.zeros((rows, features), dtype))

    def joined(
        self,
        call: Call,
        query: Float[Array, "r c"],
        key: Float[Array, "w d"],
        value: Float[Array, "w e"],
        place: tuple[Any, Any],
        tiles: Tiles,
        whole: bool,
    ) -> "Averages":
        """By the keys of a tile."""
        x = tile_of(call, scores_of(call, query, key), *place, tiles, whole)
        peak = jnp.maximum(self.largest, jnp.max(x, axis=1, keepdims=True))
        floor = jnp.where(peak == -jnp.inf, 0, peak)
        exponentials, shrink = jnp.exp(x - floor), jnp.exp(self.largest - floor)
        total = self.total * shrink + jnp.sum(exponentials, axis=1, keepdims=True)
        weights = dropout_of(call, x.shape, *place, tiles)(exponentials).astype(value.dtype)
        return Averages(peak, total, self.average * shrink + product(weights, value, (1, 0), self.average.dtype))

    def output(self) -> Float[Array, "r e"]:
        return self.average / jnp.where(self.total == 0, 1, self.total)

    def log_sum_exp(self) -> Float[Array, "r 1"]:
        return self.largest + jnp.log(self.total)


class OfTile(NamedTuple):
    """What a tile adds to; what a kernel does not take of it, no compiler computes."""

    features: Array  # of queries, or else of keys
    fields: list[Array]
    value: Float[Array, "w e"]


class Tile(NamedTuple):
    """What a backward kernel loads of a tile."""

    query: Float[Array, "r c"]
    key: Float[Array, "w d"]
    value: Float[Array, "w e"]
    of_output: Float[Array, "r e"]
    log_sum_exp: Float[Array, "r 1"]
    mean: Float[Array, "r 1"]
    values: list[Any]  # of the fields
    place: tuple[Any, Any]
    whole: bool

    def gradients(self, wanted: list[int], tiles: Tiles, *, of_query: bool) -> OfTile:
        """Those of the features of queries, or else of keys, of the wanted fields, and of the values."""
        query, key = in_one_dtype(self.query, self.key)
        call = tiles.call_of(self.values)
        precision, dtype = call.logits.score.precision, at_least_float32(query)

        def logits(products: Array, parameters: list[Any]) -> Array:
            values = list(self.values)
            for place, x in zip(wanted, parameters, strict=True):
                values[place] = x
            call = tiles.call_of(values)
            return tile_of(call, call.logits.score.scaled(products, query), *self.place, tiles, self.whole)

        products = product(query, key, (1, 1), dtype, precision)
        x, pull = jax.vjp(logits, products, [self.values[place] for place in wanted])
        weights = jnp.exp(x - jnp.where(self.log_sum_exp == -jnp.inf, 0, self.log_sum_exp))
        dropout = dropout_of(call, x.shape, *self.place, tiles)
        of_weights = dropout(product(self.of_output, self.value, (1, 1), x.dtype))
        of_products, of_fields = pull(weights * (of_weights - self.mean))
        other, axes = (key, (1, 0)) if of_query else (query, (0, 0))
        return OfTile(
            product(of_products.astype(other.dtype), other, axes, dtype, precision),
            of_fields,
            product(dropout(weights).astype(self.value.dtype), self.of_output, (0, 0), x.dtype),
        )
