"""JAX's kernels for accelerators, by Pallas: how a call is put into `flash`, and what that one cannot honour."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jattn._engine.axes import axis_of
from jattn._engine.dropout import words_of
from jattn._engine.dtypes import at_least_float32
from jattn._engine.loops import broadcast_map, side_by_side
from jattn._engine.plan import KEYS_LOOKED_AT
from jattn._engine.platform import Platform
from jattn._score import Score
from jattn.implementations.call import Call, Implementation, Result
from jattn.implementations.chips import CHIPS, formula_refusal, power_of_2, tile_of_gpu
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

INTERPRETED = "tpu"  # whose kernels the interpreter runs; tests change it

_ROWS, _WIDTH = 512, 512  # of a tile on a TPU, at most
_SUBLANES = 16  # of a TPU's vectors of bfloat16


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
        chip = CHIPS.get(platform.name)
        reasons = {
            "its kernels are for TPUs and NVIDIA's GPUs": chip is None and not platform.is_cpu,
            "XLA was asked for": call.xla_only,
            "return_weights=True asks for the whole matrix": call.return_weights,
            "it needs sizes that are known while tracing": not all(isinstance(n, int) for n in sizes),
            "there is nothing to compute: an axis has length 0": 0 in sizes,
            BY_PAIR: not logits.by_pair,
            "its score is the dot product, or one that is a dot product of features": not products,
            "a kernel can't be divided among devices by XLA": platform.devices > 1,
            "its interpreter knows of no mesh": platform.is_cpu and not jax.sharding.get_abstract_mesh().empty,
        }
        if chip is not None:
            where = f"on {chip.words} it takes"
            reasons |= {
                "JAX saves a kernel in a program for a TPU alone": platform.saved_for not in ((), ("tpu",)),
                f"which device it is for must be known: {chip.words} that is here, or in the mesh that is set": (
                    not platform.is_known
                ),
                f"{where} {chip.dtypes_in_words}": any(x.dtype.name not in chip.dtypes for x in arrays),
                f"{where} at most {chip.widest} features": max(x.shape[-1] for x in arrays) > chip.widest,
                "on a TPU there are no positions in 64 bits, as under jax_enable_x64": platform.name == "tpu"
                and jnp.result_type(int) == jnp.int64,
                "it needs an NVIDIA GPU, Ampere or newer": platform.name == "cuda" and platform.capability < 8,
            }
        reason = next((reason for reason, refuse in reasons.items() if refuse), None)
        return formula_refusal(call, platform.name) if reason is None and chip is not None else reason

    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        if platform.is_cpu:
            return -1, "its interpreter computes what an accelerator would"
        if platform.name == "cuda":
            return -1, "it was compiled for GPUs, and measured on none"
        return 2, "a kernel whose logits never leave it"

    def program(self, platform: Platform) -> Any:
        return platform.is_cpu, _machine(platform)

    def run(self, call: Call, platform: Platform) -> Result:
        if platform.name == "cpu" and (reason := formula_refusal(call, "cpu")):
            raise ValueError(f"implementation must be one that honours every argument. Got 'pallas': {reason}.")

        def run(call: Call, attended: Array | None) -> Result:
            return _by_kernel(call, attended, platform)

        def inexact(call: Call, attended: Array | None) -> Result:
            result = streamed_result(call, lambda of: streamed_as_it_is(call, attended, platform, of))
            return result._replace(output=result.output.astype(_output_dtype(call)))

        return by_products(call, run, inexact)


def _machine(platform: Platform) -> str:
    """Whose kernels a platform's program has. Those for GPUs are traced where one is known, as each takes a while."""
    if platform.is_cpu:
        return INTERPRETED
    return "cuda" if platform.name == "cuda" and platform.is_known else "tpu"


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
    for_gpu = _machine(platform) == "cuda"
    if attended is not None:
        attended = jnp.broadcast_to(attended, (*batch, s, k, 1)).reshape(n, s, k, 1)
        attended = jnp.moveaxis(attended, 2, 1)  # as `prepared` has it
    arrays = [x.reshape(n, *x.shape[-3:]) for x in (logits.query, logits.key, value)]
    *features, score = prepared(logits.score, arrays, attended, platform)
    without = dataclasses.replace(logits, query=None, key=None, score=None, sinks=None)
    rules = without.in_kernel().aligned(len(batch)).by_head(batch, h, 1)
    if for_gpu:
        if isinstance(score, DotProduct):
            score = DotProduct(score.scale_of(features[0]))  # of the width without what is padded
        features = [_to_power_of_2(x) for x in features]
        rows, width = tile_of_gpu(t, s, features, rules, platform)
    else:
        rows, width = min(_ROWS, -(-t // _SUBLANES) * _SUBLANES), min(_WIDTH, -(-s // flash.LANES) * flash.LANES)
    by_side = for_gpu or all(x.shape[-1] % flash.LANES == 0 for x in features)
    query, key, value = (
        _in_whole_blocks(x.reshape(n, x.shape[1], -1) if by_side else jnp.moveaxis(x, 2, 1), -2, step)
        for x, step in zip(features, (rows, width, width), strict=True)
    )
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


def _to_power_of_2(x: Array) -> Array:
    """With zeros as further features, which change no product."""
    more = power_of_2(x.shape[-1]) - x.shape[-1]
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
