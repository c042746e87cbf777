"""The gradients: those of the queries block by block over their keys, those of the keys over their queries.

    d logit = weight (d weight - mean of d weight + d log-sum-exp)

The weights are computed once more from the log-sum-exp, and what a logit's cotangent means for query, key, and for
what scores, masks and biases hold, is the derivative of the tile.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

__all__ = ["run_backward"]

_PARALLEL, _ARBITRARY = pltpu.GridDimensionSemantics.PARALLEL, pltpu.GridDimensionSemantics.ARBITRARY


def run_backward(
    query: Float[Array, "n *ht c"],
    key: Float[Array, "n *ks d"],
    value: Float[Array, "n *ks e"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
    result: tuple[Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, Array, list[Array]]:
    """Those of query, key, value, and of the fields that are learned."""
    (output, log_sum_exp), (of_output, of_log_sum_exp) = result, cotangents
    dtype = log_sum_exp.dtype
    mean = tiles.sum_of_features(output.astype(dtype) * of_output.astype(dtype), tiles.heads) - of_log_sum_exp
    of_rows = (x.reshape(*x.shape[:2], -1, 1, tiles.rows) for x in (log_sum_exp, mean))
    inputs = (query, key, value, of_output.astype(value.dtype), *of_rows)
    learned = [i for i, field in enumerate(fields) if field.is_learned]
    by_key = [i for i in learned if fields[i].has("s") and not fields[i].has("t")]
    by_query = [i for i in learned if i not in by_key]
    of_query, of_by_query = _over_keys(inputs, fields, by_query, ranges, tiles)
    of_key, of_value, of_by_key = _over_queries(inputs, fields, by_key, ranges, tiles)
    of_field = dict(zip((*by_query, *by_key), (*of_by_query, *of_by_key), strict=True))
    return of_query, of_key, of_value, [_summed(of_field[i], fields[i].array) for i in learned]


def _over_keys(
    inputs: tuple[Array, ...], fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, list[Array]]:
    """Gradients of the queries, and of the wanted fields, for each example and head."""
    query, key, value, *_ = inputs
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, inputs[-1].dtype
    n, t, s = query.shape[0], query.shape[-2], key.shape[-2]
    c, e = tiles.features(query, h), tiles.features(value, k)
    if any(fields[i].has("t") and fields[i].has("s") for i in wanted):  # each tile's own is written, and so computed
        everywhere, none = np.full((1, 1, t // rows), s // width), np.zeros((1, 1, t // rows), int)
        ranges = Ranges(none, everywhere, none, none)
    loop = Loop(ranges, h // k)
    blocks = Blocks(tiles, loop, over_keys=True)
    given = (*in_scalar_memory(*ranges), *inputs, *(field.in_memory() for field in fields))

    def kernel(first: Any, length: Any, first_whole: Any, length_whole: Any, *refs: Any) -> None:
        arrays, beside, (of_query, *of_fields, total) = refs[:6], refs[6 : 6 + len(fields)], refs[6 + len(fields) :]
        example, head, i, step = (pl.program_id(axis) for axis in range(4))
        place = example, head, i
        j = loop.block(first, length, place, step)
        _zeros_where(step == 0, total)
        for field, x in zip(
            [fields[at] for at in wanted], of_fields, strict=True
        ):  # of a tile, a block, the whole head
            _zeros_where(True if field.has("s") else (step == 0) if field.has("t") else (step == 0) & (i == 0), x)

        def add(whole: bool) -> None:
            tile = _Tile(arrays, beside, fields, (i, j), tiles, whole)
            of_features, of_wanted = tile.derivative(wanted, of_query=True)
            total[...] += of_features.astype(dtype)
            for x, gradient in zip(of_fields, of_wanted, strict=True):
                x[0, 0] += jnp.broadcast_to(gradient.astype(dtype), x.shape[2:])

        is_whole = loop.is_among(first_whole, length_whole, place, j)
        ranges.on_tiles(step < loop.at(length, place), is_whole, add)

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            of_query[...] = total[...].astype(of_query.dtype)

    shapes = [_shape_of_each(fields[i], n, h) for i in wanted]
    of_query, *of_fields = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(n, h, t // rows, most_of(ranges.length, s // width)),
            in_specs=_in_specs(blocks, inputs, fields, tiles),
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
        compiler_params=_in_order_from(2 if wanted else 3, 4),
        cost_estimate=cost(ranges, n, h, s // width, tiles, 2 * c + e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_queries",
    )(*given)
    return of_query, list(of_fields)


def _over_queries(
    inputs: tuple[Array, ...], fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, Array, list[Array]]:
    """Gradients of keys and values, and of the wanted fields, which have one for each key."""
    query, key, value, *_ = inputs
    h, k, rows, width, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.width, inputs[-1].dtype
    n, t, s, g = query.shape[0], query.shape[-2], key.shape[-2], h // k
    d, e = tiles.features(key, k), tiles.features(value, k)
    first_row, rows_there = _queries_of(ranges, s // width)
    loop = Loop(ranges, g)
    blocks = Blocks(tiles, loop, over_keys=False)
    given = (*in_scalar_memory(*ranges, first_row, rows_there), *inputs, *(field.in_memory() for field in fields))

    def kernel(first: Any, length: Any, first_whole: Any, length_whole: Any, *refs: Any) -> None:
        (first_row, rows_there, *arrays), rest = refs[:8], refs[8:]
        beside, (of_key, of_value, *of_fields, of_keys, of_values) = rest[: len(fields)], rest[len(fields) :]
        example, key_head, j, member, step = (pl.program_id(axis) for axis in range(5))
        head = key_head * g + member
        i = loop.block(first_row, rows_there, (example, head, j), step)
        place = example, head, i
        for x in (of_keys, of_values):
            _zeros_where((member == 0) & (step == 0), x)
        for x in of_fields:
            _zeros_where(step == 0, x)

        def add(whole: bool) -> None:
            tile = _Tile(arrays, beside, fields, (i, j), tiles, whole)
            of_features, of_wanted = tile.derivative(wanted, of_query=False)
            of_keys[...] += of_features.astype(dtype)
            of_values[...] += tile.of_value()
            for x, gradient in zip(of_fields, of_wanted, strict=True):
                x[0, 0] += jnp.broadcast_to(gradient.astype(dtype), x.shape[2:])

        is_there = step < loop.at(rows_there, (example, head, j))
        is_there &= loop.is_among(first, length, place, j)
        ranges.on_tiles(is_there, loop.is_among(first_whole, length_whole, place, j), add)

        @pl.when((member == g - 1) & (step == pl.num_programs(4) - 1))
        def _() -> None:
            of_key[...], of_value[...] = of_keys[...].astype(of_key.dtype), of_values[...].astype(of_value.dtype)

    shapes = [_shape_of_each(fields[i], n, h) for i in wanted]
    of_key, of_value, *of_fields = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(n, k, s // width, g, most_of(rows_there, t // rows)),
            in_specs=_in_specs(blocks, inputs, fields, tiles),
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
        compiler_params=_in_order_from(3, 5),
        cost_estimate=cost(ranges, n, h, s // width, tiles, 2 * d + 2 * e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_keys",
    )(*given)
    return of_key, of_value, list(of_fields)


class _Tile:
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


def _zeros_where(condition: Any, ref: Any) -> None:
    """Zeros to add to."""

    @pl.when(condition)
    def _() -> None:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _as_column(x: Float[Array, "1 r"]) -> Float[Array, "r 1"]:
    """A row as a column: a TPU transposes whole vectors."""
    return jnp.broadcast_to(x, (LANES, x.shape[-1])).T[:, :1]


def _in_specs(blocks: Blocks, inputs: tuple[Array, ...], fields: list[Field], tiles: Tiles) -> list[pl.BlockSpec]:
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


def _in_order_from(first: int, count: int) -> pltpu.CompilerParams:
    """Of a grid's axes those from the first on, over which something is added up."""
    return pltpu.CompilerParams(dimension_semantics=(_PARALLEL,) * first + (_ARBITRARY,) * (count - first))


def _queries_of(ranges: Ranges, count: int) -> tuple[Any, Any]:
    """Which blocks of queries look at each block of keys: the first that does, and how many to the last."""
    xp: Any = np if isinstance(ranges.first, np.ndarray) else jnp
    j = np.arange(count)
    looks = (ranges.first[..., None] <= j) & (j < ranges.first[..., None] + ranges.length[..., None])
    first, last = xp.argmax(looks, axis=-2), looks.shape[-2] - xp.argmax(looks[..., ::-1, :], axis=-2)
    return first, xp.where(looks.any(axis=-2), last - first, 0)


def _shape_of_each(field: Field, n: int, h: int) -> tuple[int, ...]:
    """Of a field's gradient, for each example and head."""
    return n, h, *(field.array.shape[2:] or (1, 1))


def _summed(x: Array, field: Array) -> Array:
    """Over those for which the field has one for all."""
    axes = tuple(axis for axis in (0, 1) if field.shape[axis] == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(field.shape).astype(field.dtype)
