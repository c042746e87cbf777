"""What the backward kernels compute of a tile, and what they have in common."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jattn.implementations.flash.tiles import LANES, Blocks, Field, Tiles, after_dropout, product, tile_of

__all__ = ["TileGradients", "add_to", "in_order_from", "input_specs", "shape_of_each", "summed", "zeros_where"]

_PARALLEL, _ARBITRARY = pltpu.GridDimensionSemantics.PARALLEL, pltpu.GridDimensionSemantics.ARBITRARY


class TileGradients:
    """What a kernel knows of a tile: weights, and the cotangents of its logits."""

    def __init__(
        self, arrays: Any, beside: Any, fields: list[Field], place: tuple[Any, Any], tiles: Tiles, whole: bool
    ) -> None:
        self.query, self.key, self.value, self.of_output = (ref[...] for ref in arrays[:4])
        self.log_sum_exp, self.mean = (_as_column(ref[...]) for ref in arrays[4:])
        self.values = [field.value(ref) for field, ref in zip(fields, beside, strict=True)]
        self.tiles, self.place, self.whole = tiles, place, whole

    def derivative(self, wanted: list[int], *, of_query: bool) -> tuple[Array, list[Array]]:
        """The gradients of the features of queries, or else of keys, and of the wanted fields."""

        def logits(features: Array, parameters: list[Any]) -> Array:
            values = list(self.values)
            for place, x in zip(wanted, parameters, strict=True):
                values[place] = x
            query, key = (features, self.key) if of_query else (self.query, features)
            return tile_of(self.tiles.call_of(values), query, key, *self.place, self.tiles, self.whole)

        parameters = [self.values[place] for place in wanted]
        x, derivative = jax.vjp(logits, self.query if of_query else self.key, parameters)
        log_sum_exp = jnp.where(self.log_sum_exp == -jnp.inf, 0, self.log_sum_exp)
        self.weights = jnp.exp(x - log_sum_exp)
        of_weights = self._kept(product(self.of_output, self.value, (1, 1), x.dtype))
        gradients: tuple[Array, list[Array]] = derivative(self.weights * (of_weights - self.mean))
        return gradients

    def of_value(self) -> Array:
        """Once `derivative` has been asked for."""
        return product(self._kept(self.weights).astype(self.value.dtype), self.of_output, (0, 0), self.weights.dtype)

    def _kept(self, x: Array) -> Array:
        return after_dropout(self.tiles.call_of(self.values), x, *self.place, self.tiles)


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


def shape_of_each(field: Field, n: int, h: int) -> tuple[int, ...]:
    """Of a field's gradient, for each example and head; blocks have two axes at least."""
    own = field.array.shape[2:]
    return n, h, *(1,) * (2 - len(own)), *own


def summed(x: Array, field: Array) -> Array:
    """Over those for which the field has one for all."""
    axes = tuple(axis for axis in (0, 1) if field.shape[axis] == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(field.shape).astype(field.dtype)


def add_to(refs: Any, gradients: list[Array]) -> None:
    """To what is added up for fields."""
    for x, gradient in zip(refs, gradients, strict=True):
        shape = x.shape[2:]
        x[0, 0] += gradient.astype(x.dtype) if gradient.ndim == len(shape) else jnp.full(shape, 0) + gradient
