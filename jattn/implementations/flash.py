"""Flash attention as kernels of Pallas: one tile of `Logits` after the other, forward and backward.

What a kernel computes of a tile is `Logits.tile`, traced in it, and backward that one's derivative: a score, a mask or a
bias is in a kernel by being a formula. Rows are averaged as their tiles come, and no array of logits is ever in memory.

Axes beyond the usual: n example · i block of queries · j block of keys · r query rows of a block · w keys of a block.
Heads come before positions, ``n h t d``; the fields of a call are ``n h 1 t s`` and their own.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jattn._engine.axes import axis_of
from jattn._engine.dtypes import at_least_float32
from jattn.implementations.call import Call

__all__ = ["Field", "Ranges", "Tiles", "flash"]

_LANES = 128  # of a TPU's vectors
_PARALLEL, _ARBITRARY = "parallel", "arbitrary"


class Field(NamedTuple):
    """What a tile's logits look at beside query and key: an array, and its axes, None if it declares none."""

    axes: str | None
    array: Array  # n h 1 t s and its own, n and h of length 1 where nothing differs; without declared axes n h ...

    @property
    def is_number(self) -> bool:
        """Whether it is one for each example and head."""
        return len(self.array.shape) == 2

    def has(self, letter: str) -> bool:
        return self.axes is not None and self.array.shape[axis_of(letter, self.axes)] != 1


class Ranges(NamedTuple):
    """Which blocks of keys the blocks of queries look at, ``n h i``, of length 1 where nothing differs."""

    first: Int[Array | np.ndarray, "n h i"]
    count: Int[Array | np.ndarray, "n h i"]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a call is cut, and what else is known of it while tracing."""

    t: int  # without padding
    s: int
    rows: int
    width: int
    call_of: Callable[[Sequence[Any]], Call]  # out of the fields' values in a tile
    output: Any  # its dtype
    interpret: bool = False


def flash(
    query: Float[Array, "n h t c"],
    key: Float[Array, "n k s d"],
    value: Float[Array, "n k s e"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
) -> tuple[Float[Array, "n h t e"], Float[Array, "n h t"]]:
    """The output, and the logarithm of the sum under the softmax: minus infinity for a query that attends to nothing.

    Queries and keys are padded to whole blocks, as are the fields.
    """
    learned = [jnp.issubdtype(field.array.dtype, jnp.inexact) for field in fields]
    known = [field._replace(array=jax.ShapeDtypeStruct(field.array.shape, field.array.dtype)) for field in fields]

    def joined(parameters: list[Array], others: list[Array]) -> list[Field]:
        parameters_left, others_left = iter(parameters), iter(others)
        arrays = [next(parameters_left if is_learned else others_left) for is_learned in learned]
        return [field._replace(array=x) for field, x in zip(known, arrays, strict=True)]

    @jax.custom_vjp
    def attend(query: Any, key: Any, value: Any, parameters: Any, others: Any, ranges: Any) -> Any:
        return _forward(query, key, value, joined(parameters, others), ranges, tiles)

    def forward(*arguments: Any) -> Any:
        result = attend(*arguments)
        return result, (arguments, result)

    def backward(kept: Any, cotangents: Any) -> Any:
        (query, key, value, parameters, others, ranges), result = kept
        fields = joined(parameters, others)
        *gradients, of_parameters = _backward(query, key, value, fields, ranges, tiles, result, cotangents)
        return *gradients, of_parameters, None, None

    attend.defvjp(forward, backward)
    arrays = [field.array for field in fields]
    parameters = [x for x, is_learned in zip(arrays, learned, strict=True) if is_learned]
    others = [x for x, is_learned in zip(arrays, learned, strict=True) if not is_learned]
    result: tuple[Array, Array] = attend(query, key, value, parameters, others, ranges)
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Forward.


def _forward(
    query: Array, key: Array, value: Array, fields: list[Field], ranges: Ranges, tiles: Tiles
) -> tuple[Array, Array]:
    n, h, t, _ = query.shape
    g, e = h // key.shape[1], value.shape[-1]
    rows, width, dtype = tiles.rows, tiles.width, at_least_float32(query, key, value)
    at = _At(ranges, g)

    def kernel(first: Any, count: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
        *beside, output, log_sum_exp, largest, total, average = refs
        of_head, i, step = (pl.program_id(0), pl.program_id(1)), pl.program_id(2), pl.program_id(3)

        @pl.when(step == 0)
        def _() -> None:
            largest[...] = jnp.full(largest.shape, -jnp.inf, dtype)
            total[...] = jnp.zeros(total.shape, dtype)
            average[...] = jnp.zeros(average.shape, dtype)

        @pl.when(step < at.count(count, *of_head, i))
        def _() -> None:
            call = tiles.call_of(_values(fields, beside))
            j = at.key_block(first, count, *of_head, i, step)
            x = _tile(call, q[0, 0], k[0, 0], i, j, tiles)
            before = largest[...][:, :1]
            peak = jnp.maximum(before, jnp.max(x, axis=1, keepdims=True))
            floor = jnp.where(peak == -jnp.inf, 0, peak)
            exponentials, shrink = jnp.exp(x - floor), jnp.exp(before - floor)
            sums = total[...][:, :1] * shrink + jnp.sum(exponentials, axis=1, keepdims=True)
            kept = _kept(call, exponentials, i, j, tiles)
            average[...] = average[...] * shrink + _product(kept.astype(v.dtype), v[0, 0], (1, 0), dtype)
            largest[...], total[...] = (jnp.broadcast_to(y, (rows, _LANES)) for y in (peak, sums))

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            sums = total[...]
            peak = largest[...]
            output[0, 0] = (average[...] / jnp.where(sums == 0, 1, sums)[:, :1]).astype(output.dtype)
            log_sum_exp[0, 0, 0] = (peak + jnp.log(sums)).T[:1]

    blocks = _Blocks(tiles, "nhij", at)
    of_rows = blocks.of(lambda n, h, i, j: (n, h, i, 0))
    of_keys = blocks.of(lambda n, h, i, j: (n, at.key_head(h), j, 0))
    output, log_sum_exp = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(n, h, t // rows, _steps(ranges.count, key.shape[2] // width)),
            in_specs=[
                of_rows(1, 1, rows, query.shape[-1]),
                of_keys(1, 1, width, key.shape[-1]),
                of_keys(1, 1, width, e),
                *map(blocks.of_field, fields),
            ],
            out_specs=[
                of_rows(1, 1, rows, e),
                blocks.of(lambda n, h, i, j: (n, h, i, 0, 0))(1, 1, 1, 1, rows),
            ],
            scratch_shapes=[pltpu.VMEM((rows, width), dtype) for width in (_LANES, _LANES, e)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((n, h, t, e), tiles.output),
            jax.ShapeDtypeStruct((n, h, t // rows, 1, rows), dtype),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=(_PARALLEL, _PARALLEL, _PARALLEL, _ARBITRARY)),
        interpret=tiles.interpret,
        name="flash_forward",
    )(*_flat(ranges), query, key, value, *map(_in_memory, fields))
    return output, log_sum_exp.reshape(n, h, t)


# ----------------------------------------------------------------------------------------------------------------------
# Backward.


def _backward(
    query: Array,
    key: Array,
    value: Array,
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
    result: tuple[Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, Array, list[Array]]:
    """The gradients of query, key, value, and of the fields that have one."""
    n, h, t, c = query.shape
    _, k, s, d = key.shape
    (output, log_sum_exp), (of_output, of_log_sum_exp) = result, cotangents
    dtype = log_sum_exp.dtype
    # A logit's cotangent is its weight times ( that of the weight, less their mean, plus that of the log-sum-exp ).
    mean = jnp.sum(output.astype(dtype) * of_output.astype(dtype), axis=-1) - of_log_sum_exp
    of_rows = [x.reshape(n, h, t // tiles.rows, 1, tiles.rows) for x in (log_sum_exp, mean)]
    inputs = (query, key, value, of_output.astype(value.dtype), *of_rows)
    learned = [i for i, field in enumerate(fields) if jnp.issubdtype(field.array.dtype, jnp.inexact)]
    by_key = [i for i in learned if fields[i].has("s") and not fields[i].has("t")]
    by_query = [i for i in learned if i not in by_key]
    gradients: dict[int, Array] = {}
    (of_query,), found = _gradients(inputs, fields, by_query, ranges, tiles, over_keys=True)
    gradients |= dict(zip(by_query, found, strict=True))
    (of_key, of_value), found = _gradients(inputs, fields, by_key, ranges, tiles, over_keys=False)
    gradients |= dict(zip(by_key, found, strict=True))
    of_fields = [_as_field(gradients[i], fields[i].array) for i in learned]
    return of_query, of_key, of_value, of_fields


def _gradients(
    inputs: tuple[Array, ...], fields: list[Field], wanted: list[int], ranges: Ranges, tiles: Tiles, over_keys: bool
) -> tuple[list[Array], list[Array]]:
    """Those of the queries, by going over their keys; or those of keys and values, by going over their queries.

    And beside them those of the fields that are wanted, of each example and head apart.
    """
    query, key, value, *_ = inputs
    n, h, t, c = query.shape
    _, k, s, d = key.shape
    g, e = h // k, value.shape[-1]
    rows, width, dtype = tiles.rows, tiles.width, inputs[-1].dtype
    of_pairs = [i for i in wanted if fields[i].has("t") and fields[i].has("s")]
    if of_pairs:  # each tile's is written, and so computed
        ranges = Ranges(np.zeros((1, 1, t // rows), int), np.full((1, 1, t // rows), s // width))
    at = _At(ranges, g)
    by_key = None if over_keys else _queries_of(ranges, s // width)

    def kernel(*refs: Any) -> None:
        first, count, first_row, row_count, q, k, v, of_output, log_sum_exp, mean, *rest = refs
        beside, outputs = rest[: len(fields)], rest[len(fields) :]
        number = 1 if over_keys else 2
        results, of_wanted, sums = outputs[:number], outputs[number : number + len(wanted)], outputs[-number:]
        ids = [pl.program_id(axis) for axis in range(4 if over_keys else 5)]
        if over_keys:
            (example, head, i, step), last = ids, pl.num_programs(3) - 1
            j = at.key_block(first, count, example, head, i, step)
            begins, ends = step == 0, step == last
            is_there = step < at.count(count, example, head, i)
            begins_wanted = begins
        else:
            example, key_head, j, member, step = ids
            head = key_head * g + member
            i = at.row_block(first_row, row_count, example, head, j, step)
            begins, begins_wanted = (member == 0) & (step == 0), step == 0
            ends = (member == g - 1) & (step == pl.num_programs(4) - 1)
            is_there = step < at.count(row_count, example, head, j)
            is_there &= at.looks_at(first, count, example, head, i, j)

        @pl.when(begins)
        def _() -> None:
            for x in sums:
                x[...] = jnp.zeros(x.shape, x.dtype)

        for place, x in zip(wanted, of_wanted, strict=True):

            @pl.when(_begins(fields[place], begins_wanted, ids, over_keys))
            def _(x: Any = x) -> None:
                x[...] = jnp.zeros(x.shape, x.dtype)

        @pl.when(is_there)
        def _() -> None:
            values = _values(fields, beside)
            parameters = [values[place] for place in wanted]

            def logits(q: Any, k: Any, parameters: list[Any]) -> Any:
                given = list(values)
                for place, x in zip(wanted, parameters, strict=True):
                    given[place] = x
                return _tile(tiles.call_of(given), q, k, i, j, tiles)

            if over_keys:
                x, derivative = jax.vjp(lambda q, parameters: logits(q, k[0, 0], parameters), q[0, 0], parameters)
            else:
                x, derivative = jax.vjp(lambda k, parameters: logits(q[0, 0], k, parameters), k[0, 0], parameters)
            call = tiles.call_of(values)
            row_sum, row_mean = (_column(y[0, 0, 0]) for y in (log_sum_exp, mean))
            weights = jnp.exp(x - jnp.where(row_sum == -jnp.inf, 0, row_sum))
            of_weights = _product(of_output[0, 0], v[0, 0], (1, 1), dtype)
            of_logits = weights * (_kept(call, of_weights, i, j, tiles) - row_mean)
            of_features, of_parameters = derivative(of_logits)
            sums[0][...] += of_features.astype(dtype)
            if not over_keys:
                kept = _kept(call, weights, i, j, tiles).astype(of_output.dtype)
                sums[1][...] += _product(kept, of_output[0, 0], (0, 0), dtype)
            for y, gradient in zip(of_wanted, of_parameters, strict=True):
                y[0, 0] += jnp.broadcast_to(gradient.astype(y.dtype), y.shape[2:])

        @pl.when(ends)
        def _() -> None:
            for x, y in zip(results, sums, strict=True):
                x[0, 0] = y[...].astype(x.dtype)

    blocks = _Blocks(tiles, "nhij" if over_keys else "nkjgi", at)
    of_query = blocks.of(lambda n, h, i, j: (n, h, i, 0))
    of_row = blocks.of(lambda n, h, i, j: (n, h, i, 0, 0))
    of_key = blocks.of(lambda n, h, i, j: (n, at.key_head(h), j, 0))
    in_specs = [
        of_query(1, 1, rows, c),
        of_key(1, 1, width, d),
        of_key(1, 1, width, e),
        of_query(1, 1, rows, e),
        of_row(1, 1, 1, 1, rows),
        of_row(1, 1, 1, 1, rows),
    ]
    outer = (n, h, t // rows) if over_keys else (n, k, s // width, g)
    if over_keys:
        results, steps = [(query, of_query(1, 1, rows, c))], _steps(ranges.count, s // width)
        by_key = ranges
    else:
        results = [(key, of_key(1, 1, width, d)), (value, of_key(1, 1, width, e))]
        assert by_key is not None
        steps = _steps(by_key.count, t // rows)
    outputs = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(*outer, steps),
            in_specs=[*in_specs, *map(blocks.of_field, fields)],
            out_specs=[*(spec for _, spec in results), *(blocks.of_gradient(fields[i]) for i in wanted)],
            scratch_shapes=[pltpu.VMEM(spec.block_shape[2:], dtype) for _, spec in results],
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in results),
            *(jax.ShapeDtypeStruct(_gradient_shape(fields[i], n, h), dtype) for i in wanted),
        ],
        # What is added up over a head's blocks needs them one after the other.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(
                *(_PARALLEL, _PARALLEL),
                *(_ARBITRARY if wanted else _PARALLEL,),
                *(_ARBITRARY,) * (len(outer) - 2),
            )
        ),
        interpret=tiles.interpret,
        name="flash_backward_queries" if over_keys else "flash_backward_keys",
    )(*_flat(ranges), *_flat(by_key), *inputs, *map(_in_memory, fields))
    return list(outputs[: len(results)]), list(outputs[len(results) :])


def _begins(field: Field, begins: Any, ids: list[Any], over_keys: bool) -> Any:
    """Whether what is added up for a field starts here: with its head, or with the block that it has a part for."""
    if not over_keys:
        return begins
    if field.has("s"):
        return True
    return begins if field.has("t") else begins & (ids[2] == 0)


def _gradient_shape(field: Field, n: int, h: int) -> tuple[int, ...]:
    own = field.array.shape[2:]
    return (n, h, *(own or (1, 1)))


def _as_field(x: Array, like: Array) -> Array:
    """Of each example and head, summed to what has one for several."""
    axes = tuple(axis for axis in (0, 1) if like.shape[axis] == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(like.shape).astype(like.dtype)


def _queries_of(ranges: Ranges, count: int) -> Ranges:
    """Which blocks of queries look at each block of keys, from the first that does to the last."""
    xp: Any = np if isinstance(ranges.first, np.ndarray) else jnp
    j = np.arange(count)
    looks = (ranges.first[..., None] <= j) & (j < ranges.first[..., None] + ranges.count[..., None])
    first, last = xp.argmax(looks, axis=-2), looks.shape[-2] - xp.argmax(looks[..., ::-1, :], axis=-2)
    return Ranges(first, xp.where(looks.any(axis=-2), last - first, 0))


# ----------------------------------------------------------------------------------------------------------------------
# Tiles.


def _tile(call: Call, query: Float[Array, "r c"], key: Float[Array, "w d"], i: Any, j: Any, tiles: Tiles) -> Array:
    logits = dataclasses.replace(call.logits, query=query)
    start, first = i * tiles.rows, j * tiles.width
    x, _ = logits.tile(start, tiles.rows, first, tiles.width, 1, key=key)
    if tiles.s % tiles.width:
        x = jnp.where(_numbers(first, tiles, axis=1) < tiles.s, x, -jnp.inf)
    return x


def _kept(call: Call, x: Float[Array, "r w"], i: Any, j: Any, tiles: Tiles) -> Float[Array, "r w"]:
    """What dropout leaves of weights, or of their cotangents, scaled up."""
    if call.matrices is None:
        return x
    rows, columns = _numbers(i * tiles.rows, tiles, axis=0), _numbers(j * tiles.width, tiles, axis=1)
    keep = call.keep(call.matrices, rows, columns)
    return x if keep is None else jnp.where(keep, x / (1 - float(call.dropout_rate)), 0)


def _numbers(start: Any, tiles: Tiles, axis: int) -> Array:
    shape = ((tiles.rows, 1), (1, tiles.width))[axis]
    return start + lax.broadcasted_iota(jnp.int32, shape, axis)


def _product(x: Array, y: Array, axes: tuple[int, int], dtype: Any) -> Array:
    return lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=dtype)


def _column(x: Float[Array, "1 r"]) -> Float[Array, "r 1"]:
    """A row as a column: a TPU transposes whole vectors."""
    return jnp.broadcast_to(x, (_LANES, x.shape[-1])).T[:, :1]


# ----------------------------------------------------------------------------------------------------------------------
# Where blocks lie.


class _At:
    """Which block a step of the loop is about, by ranges that are in a TPU's scalar memory, flat."""

    def __init__(self, ranges: Ranges, g: int) -> None:
        self.examples, self.heads, _ = np.shape(ranges.first)
        self.g = g

    def _at(self, x: Any, n: Any, h: Any, i: Any) -> Any:
        """x[n, h, i]"""
        blocks = x.shape[0] // (self.examples * self.heads)
        place = (n if self.examples > 1 else 0) * self.heads + (h if self.heads > 1 else 0)
        return x[place * blocks + i]

    def key_head(self, h: Any) -> Any:
        return lax.div(h, self.g)  # // looks at the sign, for which the lowering asks what device the process has

    def count(self, count: Any, n: Any, h: Any, i: Any) -> Any:
        return self._at(count, n, h, i)

    def key_block(self, first: Any, count: Any, n: Any, h: Any, i: Any, step: Any) -> Any:
        """That of a step; after the last the last, so that none is fetched in vain."""
        return self._at(first, n, h, i) + jnp.minimum(step, jnp.maximum(self._at(count, n, h, i) - 1, 0))

    row_block = key_block

    def looks_at(self, first: Any, count: Any, n: Any, h: Any, i: Any, j: Any) -> Any:
        low = self._at(first, n, h, i)
        return (low <= j) & (j < low + self._at(count, n, h, i))


class _Blocks:
    """Where the blocks of arrays lie for a step of a kernel's grid, whose axes are ``nhij`` or ``nkjgi``."""

    def __init__(self, tiles: Tiles, axes: str, at: _At) -> None:
        self.tiles, self.axes, self.at = tiles, axes, at

    def of(self, index: Callable[..., tuple[Any, ...]]) -> Callable[..., pl.BlockSpec]:
        """Of an array whose block is ``index(n, h, i, j)``."""

        def by_step(*x: Any) -> tuple[Any, ...]:
            if self.axes == "nhij":
                n, h, i, step, first, count, _, _ = *x, *(None,) * (8 - len(x))
                j = self.at.key_block(first, count, n, h, i, step)
            else:
                n, k, j, member, step, _, _, first, count = x
                h = k * self.at.g + member
                i = self.at.row_block(first, count, n, h, j, step)
            return index(n, h, i, j)

        return lambda *shape: pl.BlockSpec(shape, by_step)

    def of_field(self, field: Field) -> pl.BlockSpec:
        if not field.is_number:
            return self._of(field, field.array.shape)
        n, h = field.array.shape
        place = self.of(lambda at_n, at_h, i, j: (at_n if n > 1 else 0, at_h if h > 1 else 0, 0, 0))(1, 1, 1, 1)
        return pl.BlockSpec(place.block_shape, place.index_map, memory_space=pltpu.SMEM)

    def of_gradient(self, field: Field) -> pl.BlockSpec:
        """Of each example and head."""
        return self._of(field, _gradient_shape(field, 2, 2))

    def _of(self, field: Field, shape: tuple[int, ...]) -> pl.BlockSpec:
        block = list(shape)
        block[:2] = 1, 1
        axes: dict[str, int] = {}
        if field.axes is not None:
            axes = {letter: len(shape) + axis_of(letter, field.axes) for letter in "ts" if field.has(letter)}
            for letter, axis in axes.items():
                block[axis] = self.tiles.rows if letter == "t" else self.tiles.width

        def index(n: Any, h: Any, i: Any, j: Any) -> tuple[Any, ...]:
            places = [0] * len(shape)
            places[:2] = (n if shape[0] > 1 else 0, h if shape[1] > 1 else 0)
            for letter, axis in axes.items():
                places[axis] = i if letter == "t" else j
            return tuple(places)

        return self.of(index)(*block)


def _in_memory(field: Field) -> Array:
    """Booleans as numbers: of single bits there are no arrays."""
    x = field.array[..., None, None] if field.is_number else field.array
    return x.astype(jnp.int32) if x.dtype == jnp.bool_ else x


def _values(fields: list[Field], refs: Sequence[Any]) -> list[Any]:
    """The fields' values in a tile."""
    values = [ref[0, 0, 0, 0] if field.is_number else ref[0, 0] for field, ref in zip(fields, refs, strict=True)]
    return [x != 0 if field.array.dtype == jnp.bool_ else x for field, x in zip(fields, values, strict=True)]


def _flat(ranges: Ranges) -> list[Array]:
    return [jnp.asarray(x, jnp.int32).reshape(-1) for x in ranges]


def _steps(count: Any, most: int) -> int:
    """How many blocks there are for one of the other kind, at most."""
    return max(int(count.max()), 1) if isinstance(count, np.ndarray) else most
