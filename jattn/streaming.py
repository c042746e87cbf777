"""The definition over blocks of queries: memory linear in the sequence, and no work on keys that a mask rules out.

`stream` calls `jattn.pooling.average` on one block of queries of one head, with the keys within reach of its mask's
span, and each row's softmax whole: one block at a time on a CPU, many side by side on an accelerator. Nothing here has
a derivative rule: a block is recomputed in the backward pass, and forward mode and second order are JAX's.

Axes beyond the usual: n examples · g query heads of a group, side by side at each position in rg and tg · r query rows
of a block · w keys in its reach. The numbers of an example and of a key head are i and j. An axis of a bias that is
written ``#t`` may have length 1, and stands for all positions then.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jattn.blocks import limits, plan, reach
from jattn.dropout import dropout_keep_at
from jattn.extents import Extent, clip, slice_along
from jattn.loops import each_matrix, largest_divisor, largest_of_all, map_with_bias, on_cpu, one_by_one, some_by_some
from jattn.mask_types import Mask
from jattn.pooling import Pooled, average, biased_and_capped
from jattn.scores import Number, Products, Score

# Entries of queries, keys and values that are copied at a time, heads first: up to the first number all, which is
# faster; beyond it as many heads as fit into the second, and at least one.
_COPIED_AT_ONCE = 2**23
_COPIED_IN_PARTS = 2**21


def output(pooled: Pooled) -> Any:
    """What is kept of a block, for `stream`."""
    return pooled.output


def output_and_log_sum_exp(pooled: Pooled) -> Any:
    """Likewise, with the logarithm of the sum under the softmax."""
    return pooled.output, pooled.log_sum_exp


@functools.partial(jax.jit, static_argnames=("dropout_rate", "of"))
def stream(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: Score,
    mask: Mask | None = None,
    bias: Float[Array, "..."] | None = None,
    logits_soft_cap: Number | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    of: Callable[[Pooled], Any] = output,
) -> Any:
    """What ``of`` takes of each row of a block's `Pooled`, for all rows: by default the output ``*b t h e``.

    The other arguments are `attention`'s.
    """
    options: dict[str, Any] = dict(
        mask=mask,
        bias=bias,
        logits_soft_cap=logits_soft_cap,
        dropout_rate=dropout_rate,
        dropout_rng=dropout_rng,
        of=of,
    )
    products = score.as_products(query, key)
    if products is None:
        return _over_examples(query, key, value, score=score, **options)
    queries, keys, exact = products
    return lax.cond(
        exact,
        lambda: _over_examples(queries, keys, value, score=Products(), **options),
        lambda: _over_examples(query, key, value, score=score, **options),
    )


def _over_examples(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: Score,
    mask: Mask | None,
    bias: Float[Array, "..."] | None,
    logits_soft_cap: Number | None,
    dropout_rate: float,
    dropout_rng: PRNGKeyArray | None,
    of: Callable[[Pooled], Any],
) -> Any:
    """`stream`, with the score as it is: all heads of all examples."""
    *batch, t, h, _ = query.shape
    s, k = key.shape[-3:-1]
    n, g = math.prod(batch), h // k

    def some(i: Extent, j: Extent, query: Array, key: Array, value: Array, bias: Array | None) -> Any:
        """Of a few examples, from i on, and a few key heads of each, from j on."""
        query, key, prepared = score.prepare(query, key)
        some_n, _, some_k, _ = key.shape

        def head(i: Array, j: Array, query: Array, key: Array, value: Array, bias: Array | None) -> Any:
            matrix = i * h + j * g
            part = None if mask is None else mask.part(jnp.unravel_index(i, batch) if batch else (), j * g, g)
            block = functools.partial(
                _block,
                g=g,
                key=key,
                value=value,
                mask=part,
                score=prepared,
                logits_soft_cap=logits_soft_cap,
                dropout_rate=dropout_rate,
                dropout_rng=dropout_rng,
                matrix=matrix,
                of=of,
            )
            return _over_rows(block, query, bias, part, g, s, matrix, some_n * some_k)

        def example(i: Array, *rest: Any) -> Any:
            *heads, bias = rest
            return map_with_bias(functools.partial(head, i), (j + jnp.arange(some_k), *heads), bias, each_matrix)

        # The g heads of a group are further queries of its one key head: g rows in place of each.
        queries = jnp.moveaxis(query.reshape(some_n, t, some_k, g, -1), 1, 2).reshape(some_n, some_k, t * g, -1)
        # Features before positions, since then no product has to transpose an array of logits, nor has its gradient.
        keys, values = (jnp.moveaxis(x, 1, 3) for x in (key, value))  # n k d s
        return map_with_bias(example, (i + jnp.arange(some_n), queries, keys, values), bias, each_matrix)

    def heads_last(x: Array) -> Array:  # of n k (t g) ...
        x = x.reshape(n, k, t, g, *x.shape[3:])
        return jnp.moveaxis(x, 1, 2).reshape(*batch, t, h, *x.shape[4:])

    query, key, value = (x.reshape(n, *x.shape[-3:]) for x in (query, key, value))
    results = _some_at_a_time(some, query, key, value, None if bias is None else _by_head(bias, batch, k, g))
    return jax.tree.map(heads_last, results)


def _some_at_a_time(
    f: Callable[..., Any],
    query: Float[Array, "n t h c"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k e"],
    bias: Float[Array, "#n #k #g #t #s"] | None,
) -> Any:
    """``f(i, j, query, key, value, bias)``, which is ``n k ...``, of all; but taken of so few examples, from i on, and
    key heads, from j on, that little is copied at a time.
    """
    n, _, k, _ = key.shape
    some_n, some_k = _together(n, k, sum(x.size for x in (query, key, value)))
    if (some_n, some_k) == (n, k):
        return f(0, 0, query, key, value, bias)

    # Heads and features are one axis, or XLA would copy the whole arrays, heads first.
    whole = [x.reshape(*x.shape[:2], -1) for x in (query, key, value)]
    features = [x.shape[-1] for x in (query, key, value)]

    def examples(x: tuple[Array, ...]) -> Any:
        i, *arrays = x
        return f(i, 0, *arrays, None if bias is None else slice_along(bias, i, some_n, 0))

    def heads(number: Array) -> Any:
        i, j = number // (k // some_k), number % (k // some_k) * some_k

        def cut_out(x: Array, features: int) -> Array:
            rows, per_key_head = x.shape[1], x.shape[2] // k
            x = lax.dynamic_slice(x, (i, 0, j * per_key_head), (1, rows, some_k * per_key_head))
            return x.reshape(1, rows, -1, features)

        few = None if bias is None else slice_along(slice_along(bias, i, 1, 0), j, some_k, 1)
        return f(i, j, *map(cut_out, whole, features), few)

    one: Callable[..., Any]
    xs: Any
    if some_k == k:  # whole examples need not be cut out
        one, xs = (
            examples,
            (jnp.arange(0, n, some_n), *(x.reshape(-1, some_n, *x.shape[1:]) for x in (query, key, value))),
        )
    else:
        one, xs = heads, jnp.arange(n * k // some_k)
    # Without a checkpoint the copies of all heads would be kept for the backward pass.
    results = lax.map(jax.checkpoint(one, prevent_cse=False), xs)
    return jax.tree.map(lambda x: x.reshape(n, k, *x.shape[3:]), results)


def _together(n: int, k: int, size: int) -> tuple[int, int]:
    """How many of n examples, and how many of the k key heads of each, when all have ``size`` entries: some whole
    examples or some heads of one, a number that divides all of them.
    """
    if size <= _COPIED_AT_ONCE or not on_cpu():  # an accelerator takes all heads at once
        return n, k
    heads = _COPIED_IN_PARTS * n * k // size
    return (largest_divisor(n, heads // k), k) if heads >= k else (1, largest_divisor(k, heads))


def _block(
    first: Extent,
    start: Extent,
    query: Float[Array, "rg c"],
    bias: Float[Array, "#g #r #s"] | None,
    *,
    g: int,
    width: int,
    key: Float[Array, "d s"],
    value: Float[Array, "e s"],
    mask: Mask | None,
    score: Score,
    logits_soft_cap: Number | None,
    dropout_rate: float,
    dropout_rng: PRNGKeyArray | None,
    matrix: Array,
    of: Callable[[Pooled], Any],
) -> Any:
    """What ``of`` takes of `average` for ``width`` keys from ``first`` on and the queries from ``start`` on."""
    r, s = query.shape[0] // g, key.shape[-1]
    first = clip(first, s - width)

    def in_reach(x: Array) -> Array:
        return slice_along(x, first, width, -1)

    def by_row(x: Array) -> Array:
        return jnp.swapaxes(jnp.broadcast_to(x, (g, r, x.shape[-1])), 0, 1).reshape(r * g, -1)

    keep = None
    if dropout_rate > 0:
        assert dropout_rng is not None
        heads = matrix + jnp.arange(g)[:, None, None]
        keep = dropout_keep_at(
            dropout_rng, dropout_rate, heads, start + jnp.arange(r)[:, None], first + jnp.arange(width)
        )
    x = score.pairs(query, in_reach(key).T)
    pooled = average(
        biased_and_capped(x, None if bias is None else by_row(in_reach(bias)), logits_soft_cap),
        in_reach(value).T,
        allowed=None if mask is None else by_row(mask.block(start, r, first, width)),
        keep=None if keep is None else by_row(keep),
        dropout_rate=dropout_rate,
        divide_last=on_cpu(),
    )
    return of(pooled)


def _over_rows(
    block: Callable[..., Any],
    query: Float[Array, "tg c"],
    bias: Float[Array, "#g #t #s"] | None,
    mask: Mask | None,
    g: int,
    s: int,
    matrix: Array,
    matrices: int,
) -> Any:
    """All blocks of a group of heads, of ``matrices`` such groups."""
    t = query.shape[0] // g
    pieces = []
    for blocks, widths, by_data in plan(t, g, s, mask, 1 if on_cpu() else matrices):
        start, rows, first, _ = blocks[0]
        stop = start + len(blocks) * rows
        starts = start + rows * jnp.arange(len(blocks))
        if on_cpu():
            # What depends on nothing but constants JAX computes ahead of a loop around this one, and keeps for its
            # backward pass: the masks of all blocks. Hence starts that depend on the matrix.
            starts = starts + 0 * matrix
        xs: tuple[Array, ...] = (starts, query[start * g : stop * g].reshape(len(blocks), rows * g, -1))
        part = bias
        if bias is not None:
            part = bias[:, start:stop] if bias.shape[1] == t else bias
            part = jnp.moveaxis(part.reshape(part.shape[0], -1, min(rows, part.shape[1]), part.shape[2]), 1, 0)
        one, chosen = block, jnp.asarray([widths.index(x.width) for x in blocks])
        if by_data:
            assert mask is not None
            firsts, chosen = reach(mask, starts, rows, s, widths)
            xs = (firsts, *xs)
        elif len({x.first for x in blocks}) == 1:  # a number that is known is faster to slice at
            one = functools.partial(block, first)
        else:
            xs = (jnp.asarray([x.first for x in blocks]), *xs)
        run = _one_after_the_other if on_cpu() else functools.partial(_side_by_side, matrices=matrices)
        results = run(one, widths, chosen, xs, part)
        pieces.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results))
    return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *pieces)


def _one_after_the_other(
    block: Callable[..., Any], widths: list[int], chosen: Array, xs: tuple[Array, ...], bias: Array | None
) -> Any:
    """A loop over blocks, each with the width whose number is chosen for it."""

    def of_width(chosen: Array, *rest: Any) -> Any:
        if len(widths) == 1:
            return block(*rest, width=widths[0])
        # Each branch keeps its arguments and nothing else for the backward pass, where all branches' arrays have a
        # place.
        branches = [jax.checkpoint(functools.partial(block, width=width), prevent_cse=False) for width in widths]
        return lax.switch(chosen, branches, *rest)

    # In a loop XLA can't take the first computation for the second.
    return map_with_bias(jax.checkpoint(of_width, prevent_cse=False), (chosen, *xs), bias, one_by_one)


def _side_by_side(
    block: Callable[..., Any],
    widths: list[int],
    chosen: Array,
    xs: tuple[Array, ...],
    bias: Array | None,
    matrices: int,
) -> Any:
    """As many blocks at once as fit, with the width that the widest of all examples and heads needs.

    An accelerator would wait for each choice of its own, and be idle with a single block.
    """
    count, rows, _ = xs[-1].shape

    def of_width(width: int, xs: tuple[Array, ...], bias: Array | None) -> Any:
        turns = -(-count * rows * width * matrices // limits().logits)
        at_once = -(-count // min(turns, count))
        one = jax.checkpoint(functools.partial(block, width=width), prevent_cse=at_once == count)
        return map_with_bias(one, xs, bias, some_by_some(at_once))

    if len(widths) == 1:
        return of_width(widths[0], xs, bias)
    branches = [jax.checkpoint(functools.partial(of_width, width), prevent_cse=False) for width in widths]
    return lax.switch(largest_of_all(chosen), branches, xs, bias)


def _by_head(bias: Float[Array, "..."], batch: list[int], k: int, g: int) -> Float[Array, "#n #k #g #t #s"]:
    """A bias with all its axes, and with as many examples as there are, or one for all."""
    bias = bias.reshape((1,) * (len(batch) + 3 - bias.ndim) + bias.shape)
    *lead, heads, t, s = bias.shape
    if math.prod(lead) > 1:
        bias = jnp.broadcast_to(bias, (*batch, heads, t, s))
    return bias.reshape(-1, *((k, g) if heads > 1 else (1, 1)), t, s)
