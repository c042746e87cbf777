"""The gradients: those of the queries and of what there is for each, those of keys and values, those of pairs.

As those for a TPU are computed; but programs run side by side, so each gives its own part of what is to be added up.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from jattn.implementations.flash.gpu.loads import (
    compiler_params,
    features_at,
    field_at,
    load_tile,
    over_tiles,
    zeros_of,
)
from jattn.implementations.flash.tiles import Field, Places, Ranges, Tiles, cost, flat, shaped

__all__ = ["gradient_of_pairs", "gradients_of_keys", "gradients_of_queries"]

GivenArrays = tuple[Array, ...]  # query, key, value, the output's cotangent, log-sum-exp, mean


def gradients_of_queries(
    inputs: GivenArrays, fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, list[Array]]:
    """Gradients of the queries, and of the wanted fields, for each example and head."""
    query, key, value, *_ = inputs
    h, k, rows, dtype = tiles.heads, tiles.key_heads, tiles.rows, tiles.logits
    n, t, s = query.shape[0], query.shape[1], key.shape[1]
    c, e = tiles.features(query, h), tiles.features(value, k)
    places = Places(ranges, h // k)
    given = (*flat(*ranges), *inputs, *(field.array for field in fields))
    parts = [Part(fields[i], "t", n, h, t // rows) for i in wanted]

    def kernel(*refs: Any) -> None:
        of_ranges, arrays, (of_query, *of_fields) = refs[:4], refs[4 : len(given)], refs[len(given) :]
        i, head, example = (pl.program_id(axis) for axis in range(3))

        def add(j: Any, totals: Any, whole: bool) -> Any:
            tile = load_tile(example, head, i, j, arrays, fields, places, tiles, whole)
            of_features, of_wanted, _ = tile.gradients(wanted, tiles, of_query=True)
            return _each_added(totals, [of_features, *of_wanted])

        zeros = [jnp.zeros((rows, c), dtype), *(zeros_of(fields[i], tiles) for i in wanted)]
        total, *totals = over_tiles(ranges, places, of_ranges, (example, head, i), add, zeros)
        of_query[features_at((example, head, i), rows, c)] = total.astype(of_query.dtype)
        for part, ref, x in zip(parts, of_fields, totals, strict=True):
            ref[part.at(example, head, i, tiles)] = x

    of_query, *of_fields = pl.pallas_call(
        kernel,
        grid=(t // rows, h, n),
        out_shape=[shaped(query.shape, query.dtype, *given), *(shaped(part.shape, dtype, *given) for part in parts)],
        compiler_params=compiler_params(stages=2),
        cost_estimate=cost(ranges, n, h, s // tiles.width, tiles, 2 * c + e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_queries",
    )(*given)
    return of_query, [part.together(x) for part, x in zip(parts, of_fields, strict=True)]


def gradients_of_keys(
    inputs: GivenArrays, fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles
) -> tuple[Array, Array, list[Array]]:
    """Gradients of keys and values, and of the wanted fields, which have one for each key."""
    query, key, value, *_ = inputs
    h, k, width, dtype = tiles.heads, tiles.key_heads, tiles.width, tiles.logits
    n, t, s, g = query.shape[0], query.shape[1], key.shape[1], h // k
    d, e = tiles.features(key, k), tiles.features(value, k)
    ranges = ranges.of_queries(s // width)
    places = Places(ranges, g)
    given = (*flat(*ranges), *inputs, *(field.array for field in fields))
    parts = [Part(fields[i], "s", n, h, s // width) for i in wanted]

    def kernel(*refs: Any) -> None:
        of_ranges, arrays, outputs = refs[:4], refs[4 : len(given)], refs[len(given) :]
        of_key, of_value, *of_fields = outputs
        j, head, example = (pl.program_id(axis) for axis in range(3))

        def add(i: Any, totals: Any, whole: bool) -> Any:
            tile = load_tile(example, head, i, j, arrays, fields, places, tiles, whole)
            of_features, of_wanted, more = tile.gradients(wanted, tiles, of_query=False)
            return _each_added(totals, [of_features, more, *of_wanted])

        zeros = [jnp.zeros((width, features), dtype) for features in (d, e)]
        zeros += [zeros_of(fields[i], tiles) for i in wanted]
        of_keys, of_values, *totals = over_tiles(ranges, places, of_ranges, (example, head, j), add, zeros)
        for ref, x, features in ((of_key, of_keys, d), (of_value, of_values, e)):
            ref[features_at((example, head, j), width, features)] = x.astype(ref.dtype)
        for part, ref, x in zip(parts, of_fields, totals, strict=True):
            ref[part.at(example, head, j, tiles)] = x

    def of_group(x: Array, like: Array) -> Array:
        """Over the query heads that share a key head."""
        return x if g == 1 else jnp.sum(x.reshape(n, s, k, g, -1), axis=3).reshape(like.shape).astype(like.dtype)

    of_key, of_value, *of_fields = pl.pallas_call(
        kernel,
        grid=(s // width, h, n),
        out_shape=[
            *(shaped((n, s, h * x.shape[-1] // k), x.dtype if g == 1 else dtype, *given) for x in (key, value)),
            *(shaped(part.shape, dtype, *given) for part in parts),
        ],
        compiler_params=compiler_params(stages=2),
        cost_estimate=cost(ranges, n, h, t // tiles.rows, tiles, 2 * d + 2 * e, sum(x.nbytes for x in given)),
        interpret=tiles.interpret,
        name="flash_backward_keys",
    )(*given)
    together = [part.together(x) for part, x in zip(parts, of_fields, strict=True)]
    return of_group(of_key, key), of_group(of_value, value), together


def gradient_of_pairs(inputs: GivenArrays, fields: list[Field], wanted: int, ranges: Ranges, tiles: Tiles) -> Array:
    """Of a field with an entry for each pair, as it is: a program adds up what shares its tile."""
    query, key, *_ = inputs
    h, dtype = tiles.heads, tiles.logits
    n, t, s = query.shape[0], query.shape[1], key.shape[1]
    field = fields[wanted]
    own_n, own_h = field.array.shape[:2]
    places = Places(ranges, h // tiles.key_heads)
    given = (*flat(*ranges), *inputs, *(field.array for field in fields))

    def kernel(*refs: Any) -> None:
        (first, length, *_), arrays, of_field = refs[:4], refs[4:-1], refs[-1]
        j, i, number = (pl.program_id(axis) for axis in range(3))
        own_example, own_head = (f(number, jnp.full_like(number, own_h)) for f in (lax.div, lax.rem))

        def of_example(example: Any, total: Any) -> Any:
            def of_head(head: Any, total: Any) -> Any:
                def added() -> Any:
                    tile = load_tile(example, head, i, j, arrays, fields, places, tiles, whole=False)
                    [more] = tile.gradients([wanted], tiles, of_query=True).fields
                    return total + more.astype(dtype)

                return lax.cond(places.is_among(first, length, (example, head, i), j), added, lambda: total)

            start, stop = (0, h) if own_h == 1 else (own_head, own_head + 1)
            return lax.fori_loop(start, stop, of_head, total)

        start, stop = (0, n) if own_n == 1 else (own_example, own_example + 1)
        total = lax.fori_loop(start, stop, of_example, zeros_of(field, tiles))
        of_field[field_at(field, own_example, own_head, i, j, tiles)] = total

    gradient: Array = pl.pallas_call(
        kernel,
        grid=(s // tiles.width, t // tiles.rows, own_n * own_h),
        out_shape=shaped(field.array.shape, dtype, *given),
        compiler_params=compiler_params(stages=2),
        interpret=tiles.interpret,
        name="flash_backward_pairs",
    )(*given)
    return gradient


class Part(NamedTuple):
    """The gradient of a field as programs give it: its block, where the field has an entry for each of the queries, or
    keys, that the programs go through; else what each of them has added up."""

    field: Field
    letter: str
    n: int
    h: int
    blocks: int

    @property
    def in_blocks(self) -> bool:
        return self.field.has(self.letter)

    @property
    def shape(self) -> tuple[int, ...]:
        own = self.field.array.shape[2:]
        return (self.n, self.h, *own) if self.in_blocks else (self.n, self.h, self.blocks, *own)

    def at(self, n: Any, h: Any, block: Any, tiles: Tiles) -> tuple[Any, ...]:
        if not self.in_blocks:
            return n, h, block, *(slice(None),) * (len(self.shape) - 3)
        return n, h, *field_at(self.field, n, h, block, block, tiles)[2:]

    def together(self, x: Array) -> Array:
        """For each example and head."""
        return x if self.in_blocks else jnp.sum(x, axis=2)


def _each_added(totals: Sequence[Array], more: Sequence[Array]) -> list[Array]:
    return [x + y.astype(x.dtype) for x, y in zip(totals, more, strict=True)]
