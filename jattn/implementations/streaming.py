"""The definition over blocks of queries: memory linear in the sequence, and no work on keys that a mask rules out.

`streamed` calls `jattn.softmax.Average` on one block of queries of one key head, with the keys in the mask's range, and
each row's softmax whole: one block at a time on a CPU, many side by side on an accelerator. Nothing here has a
derivative rule: a block is recomputed in the backward pass, and forward mode and second order are JAX's.

Axes beyond the usual: n examples · g query heads of a group, side by side at each position in rg and tg · r query rows
of a block · w keys of a block.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine.extents import Extent, clip, slice_along
from jattn._engine.grouped_heads import repeat_heads
from jattn._engine.loops import a_few_at_once, broadcast_map, largest_divisor, largest_of_all, one_by_one
from jattn._engine.plan import key_ranges, plan
from jattn._engine.platform import Platform
from jattn._kernels import Products
from jattn._score import Score
from jattn._unattended import harmless_key, harmless_value
from jattn.implementations.call import Call, Implementation, Result
from jattn.implementations.dense import Dense
from jattn.logits import Logits
from jattn.softmax import Average

__all__ = [
    "BY_PAIR",
    "Streaming",
    "by_products",
    "output",
    "output_and_log_sum_exp",
    "prepared",
    "streamed",
    "streamed_as_it_is",
    "streamed_result",
]

# Entries of queries, keys and values that are copied at a time, heads first: up to the first number all, which is
# faster; beyond it as many heads as fit into the second, and at least one.
_COPIED_AT_ONCE = 2**23
_COPIED_IN_PARTS = 2**21


BY_PAIR = "a score that is not one of jattn.scores may depend on positions, unless it says by_pair = True"


class Streaming(Implementation):
    """Blocks of queries, in plain JAX."""

    name = "streaming"

    def refusal(self, call: Call, platform: Platform) -> str | None:
        query, key = call.logits.query, call.logits.key
        if call.return_weights:
            return "return_weights=True asks for the whole matrix; attention_weights computes chosen rows of it"
        if not all(isinstance(n, int) for n in (query.shape[-3], key.shape[-3])):
            return "blocks are cut while tracing, so it needs lengths that are known then"
        if not call.logits.by_pair:
            return BY_PAIR
        return None

    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        return 1, "memory linear in the sequence, and faster than the matrix at this size"

    def program(self, platform: Platform) -> Any:
        return platform.is_cpu

    def run(self, call: Call, platform: Platform) -> Result:
        if call.is_empty:
            return Dense().run(call, platform)
        return streamed_result(call, lambda of: streamed(call, platform, of))


def output(average: Average) -> Any:
    """What is kept of a block, for `streamed`."""
    return average.output


def output_and_log_sum_exp(average: Average) -> Any:
    """Likewise, with the logarithm of the sum under the softmax."""
    return average.output, average.log_sum_exp


def streamed_result(call: Call, compute: Callable[[Callable[[Average], Any]], Any]) -> Result:
    """What the call asks for, of ``compute(of)``, as of `streamed`."""
    if not call.return_log_sum_exp:
        return Result(compute(output))
    averages, log_sum_exp = compute(output_and_log_sum_exp)
    return Result(averages, log_sum_exp=log_sum_exp)


def streamed(call: Call, platform: Platform, of: Callable[[Average], Any] = output) -> Any:
    """What ``of`` takes of each row of a block's `Average`, for all rows: by default the output ``*b t h e``."""
    return by_products(call, lambda call, attended: streamed_as_it_is(call, attended, platform, of))


def streamed_as_it_is(
    call: Call, attended: Bool[Array, "..."] | None, platform: Platform, of: Callable[[Average], Any] = output
) -> Any:
    """Likewise, with the score as it is; ``attended`` are the keys that some query may attend to."""
    return _over_examples(_divisible(call, platform), platform, of, attended)


def by_products(call: Call, run: Callable[[Call, Any], Any], inexact: Callable[[Call, Any], Any] | None = None) -> Any:
    """``run(call, attended)``, with features whose products are the logits where the score has such; or ``inexact``, by
    default the same, of the call as it is where those would lose digits.

    ``attended`` are the keys that some query may attend to, None if all.
    """
    logits, score = call.logits, call.logits.score
    assert isinstance(score, Score)
    attended = logits.attended()
    if type(score).as_products is Score.as_products:
        return run(call, attended)
    query, key = logits.query, harmless_key(logits.key, attended)  # as a mean of all keys is taken
    products = score.as_products(query, key)
    assert products is not None
    queries, keys, exact = products

    def with_score(score: Score, query: Array, key: Array, run: Callable[[Call, Any], Any]) -> Any:
        return run(
            dataclasses.replace(call, logits=dataclasses.replace(logits, query=query, key=key, score=score)), attended
        )

    return lax.cond(
        exact,
        lambda: with_score(Products(), queries, keys, run),
        lambda: with_score(score, query, key, inexact or run),
    )


def _divisible(call: Call, platform: Platform) -> Call:
    """With a key head for each query head, where there may be more devices than key heads, which would wait for the
    queries of a group."""
    *_, h, _ = call.logits.query.shape
    k = call.logits.key.shape[-2]
    if platform.devices == 1 or k == h or k % platform.devices == 0:
        return call
    assert call.value is not None
    logits = dataclasses.replace(call.logits, key=repeat_heads(call.logits.key, h))
    return dataclasses.replace(call, logits=logits, value=repeat_heads(call.value, h))


def _over_examples(
    call: Call, platform: Platform, of: Callable[[Average], Any], attended: Bool[Array, "..."] | None
) -> Any:
    """`streamed`, with the score as it is: all heads of all examples."""
    logits, value = call.logits, call.value
    assert value is not None
    *batch, t, h, _ = logits.query.shape
    s, k = logits.key.shape[-3:-1]
    n, g = math.prod(batch), h // k
    score = logits.score
    assert isinstance(score, Score)
    block = functools.partial(_block, g=g, call=call, platform=platform, of=of)

    def some(arrays: list[Array], beside: Any) -> Any:
        """Of a few examples, and of a few key heads of each."""
        query, key, value, of_features = prepared(score, arrays, beside[-1], platform)
        some_n, _, some_k, _ = key.shape
        # The g heads of a group are further queries of its one key head: g rows in place of each.
        queries = jnp.moveaxis(query.reshape(some_n, t, some_k, g, -1), 1, 2).reshape(some_n, some_k, t * g, -1)
        # Features before positions, since then no product has to transpose an array of logits, nor has its gradient.
        keys, values = (jnp.moveaxis(x, 1, 3) for x in (key, value))  # n k d s

        def head(xs: Any) -> Any:
            query, key, value, numbers, rules = xs
            one = functools.partial(block, score=of_features, key=key, value=value, numbers=numbers)
            return _over_rows(one, query, rules, numbers, g, s, some_n * some_k, platform)

        def example(xs: Any) -> Any:
            return broadcast_map(head, xs, platform.each_matrix)

        return broadcast_map(example, (queries, keys, values, *beside[:-1]), platform.each_matrix)

    def heads_last(x: Array) -> Array:  # of n k (t g) ...
        x = x.reshape(n, k, t, g, *x.shape[3:])
        return jnp.moveaxis(x, 1, 2).reshape(*batch, t, h, *x.shape[4:])

    rules = dataclasses.replace(logits, query=None, key=None, score=None).aligned(len(batch)).by_head(batch, k, g)
    numbers = call.matrix_numbers().reshape(-1, k, g)
    if attended is not None:
        attended = jnp.broadcast_to(attended, (*batch, *attended.shape[len(batch) :]))
        attended = attended.reshape(n, *attended.shape[len(batch) :])
        attended = jnp.broadcast_to(jnp.moveaxis(attended, 2, 1), (n, k, s, 1))
    arrays = [x.reshape(n, *x.shape[-3:]) for x in (logits.query, logits.key, value)]
    results = _some_at_a_time(some, arrays, (numbers, rules, attended), platform)
    return jax.tree.map(heads_last, results)


def prepared(
    score: Score, arrays: list[Array], attended: Bool[Array, "n k s 1"] | None, platform: Platform
) -> tuple[Array, Array, Array, Score]:
    """Features of query and key, the value, and a score of those features; without harm from what nobody attends to."""
    query, key, value = arrays
    if attended is not None:
        # A pass over all of them is a sixth of a processor's time on 2,048 tokens in segments of 512, all attended to.
        attended, unless_all = jnp.moveaxis(attended, 1, 2), platform.is_cpu
        key = harmless_key(key, attended, score, unless_all=unless_all)
        value = harmless_value(value, attended, unless_all=unless_all)
    query, key, of_features = score.prepare(query, key)
    return query, key, value, of_features


def _some_at_a_time(
    f: Callable[[Any, Any], Any],
    arrays: list[Array],
    beside: Any,
    platform: Platform,
) -> Any:
    """``f(arrays, beside)``, which is ``n k ...``, of all; but taken of so few examples and key heads that little is
    copied at a time. The arrays are query, key and value ``n s k d``; what is ``beside`` them has the axes ``n k``.
    """
    n, _, k, _ = arrays[1].shape
    some_n, some_k = _together(n, k, arrays, platform)
    if (some_n, some_k) == (n, k):
        return f(arrays, beside)

    # Heads and features are one axis, or XLA would copy the whole arrays, heads first.
    whole = [x.reshape(*x.shape[:2], -1) for x in arrays]
    features = [x.shape[-1] for x in arrays]

    def part_of(x: Any, i: Extent, j: Extent) -> Any:
        return x if isinstance(x, int | float) else slice_along(slice_along(x, i, some_n, 0), j, some_k, 1)

    def examples(x: Any) -> Any:
        i, arrays = x
        return f(arrays, jax.tree.map(lambda x: part_of(x, i, 0), beside))

    def heads(number: Array) -> Any:
        i, j = number // (k // some_k), number % (k // some_k) * some_k

        def cut_out(x: Array, features: int) -> Array:
            rows, per_key_head = x.shape[1], x.shape[2] // k
            x = lax.dynamic_slice(x, (i, 0, j * per_key_head), (1, rows, some_k * per_key_head))
            return x.reshape(1, rows, -1, features)

        few = [cut_out(x, width) for x, width in zip(whole, features, strict=True)]
        return f(few, jax.tree.map(lambda x: part_of(x, i, j), beside))

    one: Callable[..., Any]
    xs: Any
    if some_k == k:  # whole examples need not be cut out
        one, xs = examples, (jnp.arange(0, n, some_n), [x.reshape(-1, some_n, *x.shape[1:]) for x in arrays])
    else:
        one, xs = heads, jnp.arange(n * k // some_k)
    # Without a checkpoint the copies of all heads would be kept for the backward pass.
    results = lax.map(jax.checkpoint(one, prevent_cse=False), xs)
    return jax.tree.map(lambda x: x.reshape(n, k, *x.shape[3:]), results)


def _together(n: int, k: int, arrays: list[Array], platform: Platform) -> tuple[int, int]:
    """How many of n examples, and how many of the k key heads of each: some whole examples or some heads of one, a
    number that divides all of them.
    """
    # An accelerator takes all heads at once, and where the number of examples is not known there is nothing to divide.
    if not platform.is_cpu or not isinstance(n, int):
        return n, k
    size = sum(x.size for x in arrays)
    if size <= _COPIED_AT_ONCE:
        return n, k
    heads = _COPIED_IN_PARTS * n * k // size
    return (largest_divisor(n, heads // k), k) if heads >= k else (1, largest_divisor(k, heads))


def _block(
    first: Extent,
    start: Extent,
    query: Float[Array, "rg c"],
    rules: Logits,
    *,
    g: int,
    width: int,
    score: Score,
    key: Float[Array, "d s"],
    value: Float[Array, "e s"],
    numbers: Array,
    call: Call,
    platform: Platform,
    of: Callable[[Average], Any],
) -> Any:
    """What ``of`` takes of `Average` for ``width`` keys from ``first`` on and the queries from ``start`` on."""
    r, s = query.shape[0] // g, key.shape[-1]
    first = clip(first, s - width)
    logits = dataclasses.replace(rules, query=query, key=key, score=score)
    # A choice between a logit and minus infinity, in its own place, LLVM makes a masked store, which takes an AMD
    # processor without AVX-512 many times as long as storing all.
    tile, sinks = logits.tile(start, r, first, width, g, by_sum=platform.is_cpu)
    average = Average(
        tile,
        slice_along(value, first, width, -1).T,
        sinks=sinks,
        keep=_keep(call, numbers, start, r, first, width),
        dropout_rate=call.dropout_rate,
        divide_last=platform.is_cpu,
    )
    return of(average)


def _keep(call: Call, numbers: Array, start: Extent, r: int, first: Extent, width: int) -> Array | None:
    """What dropout keeps of a block, ``rg w``."""
    rows, columns = start + jnp.arange(r)[None, :, None], first + jnp.arange(width)[None, None, :]
    keep = call.keep(numbers[:, None, None], rows, columns)
    if keep is None:
        return None
    keep = jnp.broadcast_to(keep, (numbers.shape[0], r, width))
    return jnp.swapaxes(keep, 0, 1).reshape(r * numbers.shape[0], width)


def _over_rows(
    block: Callable[..., Any],
    query: Float[Array, "tg c"],
    rules: Logits,
    numbers: Array,
    g: int,
    s: int,
    matrices: int,
    platform: Platform,
) -> Any:
    """All blocks of a group of heads, of ``matrices`` such groups."""
    t = query.shape[0] // g
    key_range = functools.partial(rules.key_range, s=s)
    pieces = []
    at_once = 1 if platform.is_cpu or not isinstance(matrices, int) else matrices
    for blocks, widths, by_data in plan(t, g, s, key_range, platform, at_once):
        start, rows, first, _ = blocks[0]
        stop = start + len(blocks) * rows
        starts = start + rows * jnp.arange(len(blocks))
        if platform.is_cpu:
            # What depends on nothing but constants JAX computes ahead of a loop around this one, and keeps for its
            # backward pass: the masks of all blocks. Hence starts that depend on the matrix.
            starts = starts + 0 * numbers[0]
        xs: tuple[Any, ...] = (
            starts,
            query[start * g : stop * g].reshape(len(blocks), rows * g, -1),
            rules.over_blocks(start, len(blocks), rows),
        )
        one, chosen = block, jnp.asarray([widths.index(x.width) for x in blocks])
        if by_data:
            firsts, chosen = key_ranges(key_range, starts, rows, widths, platform)
            xs = (firsts, *xs)
        elif len({x.first for x in blocks}) == 1:  # a number that is known is faster to slice at
            one = functools.partial(block, first)
        else:
            xs = (jnp.asarray([x.first for x in blocks]), *xs)
        run = _one_after_the_other if platform.is_cpu else functools.partial(_side_by_side, at_once, platform)
        results = run(one, widths, chosen, xs)
        pieces.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results))
    return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *pieces)


def _one_after_the_other(block: Callable[..., Any], widths: list[int], chosen: Array, xs: tuple[Any, ...]) -> Any:
    """A loop over blocks, each with the width whose number is chosen for it."""

    def of_width(x: Any) -> Any:
        chosen, *rest = x
        if len(widths) == 1:
            return block(*rest, width=widths[0])
        # Each branch keeps its arguments and nothing else for the backward pass, where all branches' arrays have a
        # place.
        branches = [jax.checkpoint(functools.partial(block, width=width), prevent_cse=False) for width in widths]
        return lax.switch(chosen, branches, *rest)

    # In a loop XLA can't take the first computation for the second.
    return broadcast_map(jax.checkpoint(of_width, prevent_cse=False), (chosen, *xs), one_by_one)


def _side_by_side(
    matrices: int, platform: Platform, block: Callable[..., Any], widths: list[int], chosen: Array, xs: tuple[Any, ...]
) -> Any:
    """As many blocks at once as fit, with the width that the widest of all examples and heads needs.

    An accelerator would wait for each choice of its own, and be idle with a single block.
    """
    count, rows, _ = xs[-2].shape

    def of_width(width: int, xs: tuple[Any, ...]) -> Any:
        turns = -(-count * rows * width * matrices // platform.logits)
        at_once = -(-count // min(turns, count))
        one = jax.checkpoint(functools.partial(block, width=width), prevent_cse=at_once == count)
        return broadcast_map(lambda x: one(*x), xs, a_few_at_once(at_once))

    if len(widths) == 1:
        return of_width(widths[0], xs)
    branches = [jax.checkpoint(functools.partial(of_width, width), prevent_cse=False) for width in widths]
    return lax.switch(largest_of_all(chosen), branches, xs)
