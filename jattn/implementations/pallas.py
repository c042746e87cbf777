"""JAX's kernels for accelerators, by Pallas: how a call is put into `flash`, and what that one cannot honour."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array

from jattn._engine.axes import axis_of
from jattn._engine.dropout import words_of
from jattn._engine.dtypes import at_least_float32
from jattn._engine.loops import broadcast_map, side_by_side
from jattn._engine.plan import KEYS_LOOKED_AT
from jattn._engine.platform import Platform
from jattn._score import Score
from jattn.implementations.call import Call, Implementation, Result
from jattn.implementations.streaming import (
    BY_PAIR,
    by_products,
    prepared,
    streamed_as_it_is,
    streamed_result,
)
from jattn.logits import Logits
from jattn.scores import DotProduct
from jattn.softmax import beside_sinks

__all__ = ["Pallas"]

_ROWS, _WIDTH = 512, 512  # of a tile on a TPU, at most
_ROWS_OF_GPU, _WIDTH_OF_GPU = 128, 64  # while features take 256 bytes; half of them where they take more
_SUBLANES = 16  # of a TPU's vectors of bfloat16; and no product of Triton's is smaller
_WIDEST = {"tpu": 512, "cuda": 256}  # features of which blocks fit the chip's own memory
_DTYPES = {"tpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
# What formulas are made of that Mosaic does not lower, and neither does Triton.
_UNKNOWN = frozenset(
    ("gather", "scatter", "scatter-add", "sort", "dynamic_slice", "scan", "while", "cumsum", "random_bits", "top_k")
)
_UNKNOWN_TO = {"tpu": _UNKNOWN, "cuda": _UNKNOWN | {"slice", "pad"}, "cpu": frozenset[str]()}
INTERPRETED = "tpu"  # whose kernels the interpreter runs; tests change it


class Pallas(Implementation):
    """Tiles of logits in a kernel, by Mosaic on a TPU, by Triton on an NVIDIA GPU.

    On a CPU by Pallas' interpreter, which is slow.
    """

    name = "pallas"

    def refusal(self, call: Call, platform: Platform) -> str | None:
        logits = call.logits
        arrays = [logits.query, logits.key, *(() if call.value is None else (call.value,))]
        sizes = [n for x in arrays for n in x.shape]
        products = type(logits.score) is DotProduct or (
            isinstance(logits.score, Score) and type(logits.score).as_products is not Score.as_products
        )
        name = platform.name
        on_chip, chip = name in _DTYPES, {"tpu": "a TPU", "cuda": "a GPU"}.get(name)
        dtypes, widest = _DTYPES.get(name, ()), _WIDEST.get(name, 0)
        reasons = {
            "its kernels are for TPUs and NVIDIA's GPUs": not on_chip and name != "cpu",
            "JAX saves a kernel in a program for a TPU alone": on_chip and platform.saved_for not in ((), ("tpu",)),
            f"which device it is for must be known: {chip} that is here, or in the mesh that is set": on_chip
            and not platform.is_known,
            "XLA was asked for": call.xla_only,
            "return_weights=True asks for the whole matrix": call.return_weights,
            "it needs sizes that are known while tracing": not all(isinstance(n, int) for n in sizes),
            "there is nothing to compute: an axis has length 0": 0 in sizes,
            BY_PAIR: not logits.by_pair,
            "its score is the dot product, or one that is a dot product of features": not products,
            f"on {chip} it takes {_in_words(dtypes)}": on_chip and any(x.dtype.name not in dtypes for x in arrays),
            f"on {chip} it takes at most {widest} features": on_chip and max(x.shape[-1] for x in arrays) > widest,
            "on a TPU there are no positions in 64 bits, as under jax_enable_x64": name == "tpu"
            and jnp.result_type(int) == jnp.int64,
            "a kernel can't be divided among devices by XLA": platform.devices > 1,
            "its interpreter knows of no mesh": name == "cpu" and not jax.sharding.get_abstract_mesh().empty,
        }
        reason = next((reason for reason, refuse in reasons.items() if refuse), None)
        return _of_formulas(call, name) if reason is None and on_chip else reason

    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        if platform.name == "cpu":
            return -1, "its interpreter computes what an accelerator would"
        if platform.name == "cuda":
            return -1, "it was compiled for GPUs, and measured on none"
        return 2, "a kernel whose logits never leave it"

    def program(self, platform: Platform) -> Any:
        """Those for GPUs are traced where one is known: each takes a while."""
        return platform.name if platform.name == "cpu" or (platform.name == "cuda" and platform.is_known) else "tpu"

    def run(self, call: Call, platform: Platform) -> Result:
        if platform.name == "cpu" and (reason := _of_formulas(call, "cpu")):
            raise ValueError(f"implementation must be one that honours every argument. Got 'pallas': {reason}.")

        def run(call: Call, attended: Array | None) -> Result:
            return _by_kernel(call, attended, platform)

        def inexact(call: Call, attended: Array | None) -> Result:
            result = streamed_result(call, lambda of: streamed_as_it_is(call, attended, platform, of))
            return result._replace(output=result.output.astype(_output_dtype(call)))

        return by_products(call, run, inexact)


def _in_words(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _of_formulas(call: Call, platform: str) -> str | None:
    """What in the formulas of a call's rules a kernel cannot do; None if nothing."""
    logits = dataclasses.replace(call.logits, query=None, key=None, score=None, sinks=None).in_kernel()
    batch, h, t, s, _ = call.logits.shape

    def formulas(logits: Logits) -> Array:
        rules = logits.aligned(len(batch))
        return rules.after_score(jnp.zeros((*batch, h, t, s), jnp.float32), rules.grid(t, s, ndim=len(batch) + 3))

    traced = jax.make_jaxpr(formulas)(logits)
    if traced.consts:
        return "a formula holds an array; give it by its name, as an argument of the formula"
    names = set(_primitives(traced.jaxpr))
    if found := sorted(names & _UNKNOWN_TO[platform]):
        return f"a formula looks up an array, or loops ({', '.join(found)})"
    return (
        "on a GPU, axes of an array's own have lengths that are powers of 2"
        if platform == "cuda" and _uneven(logits)
        else None
    )


def _uneven(logits: Logits) -> bool:
    """Whether a tile would load a number of entries that is no power of 2, beside those for queries and keys."""
    lengths: list[int] = []

    def look(name: str, axes: str | None, x: Any) -> Any:
        own = 0 if axes is None else sum(letter not in "bhts" for letter in axes)
        lengths.extend(jnp.shape(x) if axes is None else jnp.shape(x)[jnp.ndim(x) - own :])
        return x

    logits.aligned(logits.lead()).map_fields(look)
    return any(n & (n - 1) for n in lengths)


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else [value]:
                if isinstance(one, Jaxpr | ClosedJaxpr):
                    yield from _primitives(getattr(one, "jaxpr", one))


def _output_dtype(call: Call) -> Any:
    """The share that sinks leave is a factor on the output."""
    return call.output_dtype if call.logits.sinks is None else at_least_float32(call.value)


def _by_kernel(call: Call, attended: Array | None, platform: Platform) -> Result:
    from jattn.implementations import flash  # here, as Pallas takes a while to import

    logits, value = call.logits, call.value
    assert value is not None
    *batch, t, h, _ = logits.query.shape
    s, k = logits.key.shape[-3:-1]
    n, e = math.prod(batch), value.shape[-1]
    for_gpu = "cuda" in (platform.name, INTERPRETED if platform.name == "cpu" else None)
    if attended is not None:
        attended = jnp.broadcast_to(attended, (*batch, s, k, 1)).reshape(n, s, k, 1)
        attended = jnp.moveaxis(attended, 2, 1)  # as `prepared` has it
    arrays = [x.reshape(n, *x.shape[-3:]) for x in (logits.query, logits.key, value)]
    *features, score = prepared(logits.score, arrays, attended, platform)
    if for_gpu:
        if isinstance(score, DotProduct):
            score = DotProduct(score.scale_of(features[0]))
        features = [_to_power_of_2(x) for x in features]
        rows, width = _of_gpu(t, s, max(x.shape[-1] * x.dtype.itemsize for x in features))
    else:
        rows, width = min(_ROWS, -(-t // _SUBLANES) * _SUBLANES), min(_WIDTH, -(-s // flash.LANES) * flash.LANES)
    by_side = for_gpu or all(x.shape[-1] % flash.LANES == 0 for x in features)
    query, key, value = (
        _in_whole_blocks(x.reshape(n, x.shape[1], -1) if by_side else jnp.moveaxis(x, 2, 1), -2, step)
        for x, step in zip(features, (rows, width, width), strict=True)
    )
    without = dataclasses.replace(logits, query=None, key=None, score=None, sinks=None)
    rules = without.in_kernel().aligned(len(batch)).by_head(batch, h, 1)
    rules = rules.map_fields(functools.partial(_field_in_whole_blocks, rows=rows, width=width))
    fields, call_of = _fields(call, rules, score, n, h)
    dtypes = at_least_float32(query, key, value), _output_dtype(call)
    interpret = platform.name == "cpu"
    tiles = flash.Tiles(t, s, rows, width, h, k, by_side, call_of, *dtypes, for_gpu, interpret)
    averages, log_sum_exp = flash.flash(
        *(query, key, value),
        [flash.Field(*field) for field in fields],
        flash.Ranges(*_ranges(rules, t, s, rows, width)),
        tiles,
    )
    averages = averages[..., :t, :] if by_side else jnp.moveaxis(averages[..., :t, :], 1, 2)
    averages = averages.reshape(*batch, t, h, -1)[..., :e]
    log_sum_exp = log_sum_exp[:, :, :t].reshape(*batch, h, t)
    sinks = logits.sinks_of_rows()
    if sinks is not None:
        share, log_sum_exp = beside_sinks(log_sum_exp, sinks)
        averages = averages * jnp.moveaxis(share, -2, -1)[..., None]
    return Result(averages, log_sum_exp=jnp.moveaxis(log_sum_exp, -2, -1) if call.return_log_sum_exp else None)


def _fields(
    call: Call, rules: Logits, score: Score, n: int, h: int
) -> tuple[list[tuple[str | None, Array]], Callable[[Sequence[Any]], Call]]:
    """All arrays that a tile's logits and its dropout look at, with the axes they declare; and the call out of them."""
    fields: list[tuple[str | None, Array]] = []

    def collect(name: str, axes: str | None, x: Any) -> Any:
        if isinstance(x, int | float):
            return x
        fields.append((axes, x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    structure = rules.map_fields(collect)
    leaves, of_score = jax.tree.flatten(score)
    fields += [(None, jnp.asarray(x)[None, None]) for x in leaves if not isinstance(x, int | float)]
    of_dropout = []
    if call.dropout_rate:
        words = words_of(call.dropout_rng)
        numbers = call.matrix_numbers()
        numbers = jnp.broadcast_to(numbers, (*call.logits.shape.batch, h)).reshape(n, h)
        of_dropout = [*(x[None, None] for x in words), numbers.astype(jnp.int32)]
    fields += [(None, x) for x in of_dropout]

    def call_of(values: Sequence[Any]) -> Call:
        left = iter(values)
        logits = structure.map_fields(lambda name, axes, x: x if isinstance(x, int | float) else next(left))
        of_tile = jax.tree.unflatten(of_score, [x if isinstance(x, int | float) else next(left) for x in leaves])
        *words, number = list(left) or [None]
        return Call(
            dataclasses.replace(logits, score=of_tile),
            None,
            call.dropout_rate,
            tuple(words) or None,
            call.broadcast_dropout,
            matrices=None if number is None else jnp.full((1, 1), number),
        )

    return fields, call_of


def _ranges(rules: Logits, t: int, s: int, rows: int, width: int) -> tuple[Any, ...]:
    """Of `flash.Ranges`: blocks that are looked at, and those of them that are whole."""
    starts, padded = range(0, t, rows), s + -s % width

    def of_rows(rules: Logits, start: Any) -> tuple[Any, ...]:
        ends = (*rules.key_range(start, rows, padded), *rules.whole_range(start, rows, padded))
        return ends if isinstance(start, int) else tuple(map(jnp.asarray, ends))

    def in_blocks(ends: Any, xp: Any) -> tuple[Any, ...]:
        low, high, low_whole, high_whole = ends
        first, last = xp.minimum(low, s - 1) // width, -(-xp.minimum(high, s) // width)
        first_whole, last_whole = -(-low_whole // width), xp.minimum(high_whole, s) // width
        count = xp.where(xp.minimum(high, s) > low, last - first, 0)
        return first, count, first_whole, xp.maximum(last_whole - first_whole, 0)

    rules = dataclasses.replace(rules, bias=None, modification=None, logits_soft_cap=None)
    is_one = all(isinstance(x, int | float) or x.shape[:2] == (1, 1) for x in jax.tree.leaves(rules))
    example = jax.tree.map(lambda x: x if isinstance(x, int | float) else x[0, 0], rules)
    if is_one and len(starts) * s <= KEYS_LOOKED_AT and all(isinstance(end, int) for end in of_rows(example, 0)):
        ends = np.array([of_rows(example, start) for start in starts])
        return in_blocks(ends.T[:, None, None], np)

    def of_head(rules: Logits) -> Any:
        return jax.vmap(lambda start: of_rows(rules, start))(jnp.asarray(starts))

    def of_example(rules: Logits) -> Any:
        return broadcast_map(of_head, rules, side_by_side)

    return in_blocks(broadcast_map(of_example, rules, side_by_side), jnp)


def _of_gpu(t: int, s: int, bytes_each: int) -> tuple[int, int]:
    """Rows and keys of a tile, for features that take so many bytes."""
    wide = bytes_each > 256
    rows, width = (n // 2 if wide else n for n in (_ROWS_OF_GPU, _WIDTH_OF_GPU))
    return min(rows, _power_of_2(t)), min(width, _power_of_2(s))


def _power_of_2(n: int) -> int:
    """The least that is as large, and large enough for a product of Triton's."""
    return max(_SUBLANES, 1 << (n - 1).bit_length())


def _to_power_of_2(x: Array) -> Array:
    """With zeros as further features, which change no product."""
    more = _power_of_2(x.shape[-1]) - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x


def _in_whole_blocks(x: Array, axis: int, step: int) -> Array:
    """As many as fill whole blocks, by some like the last, which make sense to any formula."""
    more, axis = -x.shape[axis] % step, axis % x.ndim
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)], mode="edge") if more else x


def _field_in_whole_blocks(name: str, axes: str | None, x: Any, *, rows: int, width: int) -> Any:
    for letter, step in (("t", rows), ("s", width)):
        if axes is not None and x.shape[axis := x.ndim + axis_of(letter, axes)] != 1:
            x = _in_whole_blocks(x, axis, step)
    return x
