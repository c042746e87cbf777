"""The definition over blocks of queries: memory linear in the sequence, and no work on keys that a mask rules out.

`stream` calls `jattn.pooling.average` on one block of queries of one head at a time, with the keys within reach of its
mask's span, and each row's softmax whole. Nothing here has a derivative rule: a block is recomputed in the backward
pass, and forward mode and second order are JAX's.

Axes beyond the usual: n examples · g query heads of a group, side by side at each position in rg and tg · r query rows
of a block · w keys in its reach. An axis of a bias that is written ``#t`` may have length 1, and stands for all
positions then.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jattn.dropout import dropout_keep_at
from jattn.mask_types import Extent, Mask
from jattn.pooling import Pooled, average, biased_and_capped
from jattn.scores import Number, Products, Score

_LOGITS = 2**21  # at most in a block that could have fewer rows, so that they stay near the core that made them
_ROWS = (1024, 512, 256, 128, 64)  # of a block: many keep its products busy, few keep it near what the mask allows
_ROWS_BY_DATA = 512  # at most where data decides which keys a block sees: those of more rows lie further apart
_OVERHEAD = 24  # what a block costs beside its rows, in rows
# How many widths of spans are compiled, to one of which each span is rounded up: where they are known, and where data
# decides, in parts of all keys. Six compile in three quarters of the time, but then blocks of a causal mask share one,
# and with it a loop: on 1,024 tokens that takes 1.4 times as long.
_WIDTHS = 8
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_LEAST_WIDTH = 64


def output(pooled: Pooled) -> Any:
    """What is kept of a block, for `stream`."""
    return pooled.output


def output_and_log_sum_exp(pooled: Pooled) -> Any:
    """Likewise, with the logarithm of the sum under the softmax."""
    return pooled.output, pooled.log_sum_exp


@functools.partial(jax.jit, static_argnames=("dropout_rate", "of"), inline=True)
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
    query, key, score = score.prepare(query, key)
    if bias is not None:
        bias = _by_head(bias, batch, k, g)

    def head(i: Array, j: Array, query: Array, key: Array, value: Array, bias: Array | None) -> Any:
        matrix = i * h + j * g
        part = None if mask is None else mask.part(jnp.unravel_index(i, batch) if batch else (), j * g, g)
        block = functools.partial(
            _block,
            g=g,
            key=key,
            value=value,
            mask=part,
            score=score,
            logits_soft_cap=logits_soft_cap,
            dropout_rate=dropout_rate,
            dropout_rng=dropout_rng,
            matrix=matrix,
            of=of,
        )
        return _over_rows(block, query, bias, part, g, s, matrix)

    def example(i: Array, *rest: Any) -> Any:
        *heads, bias = rest
        return _map(functools.partial(head, i), (jnp.arange(k), *heads), bias)

    # The g heads of a group are further queries of its one key head: g rows in place of each.
    queries = jnp.moveaxis(query.reshape(n, t, k, g, -1), 1, 2).reshape(n, k, t * g, -1)
    # Features before positions, since then no product has to transpose an array of logits, nor has its gradient.
    keys, values = (jnp.moveaxis(x.reshape(n, s, k, x.shape[-1]), 1, 3) for x in (key, value))  # n k d s
    results: Any = _map(example, (jnp.arange(n), queries, keys, values), bias)

    def heads_last(x: Array) -> Array:  # of n k (t g) ...
        x = x.reshape(n, k, t, g, *x.shape[3:])
        return jnp.moveaxis(x, 1, 2).reshape(*batch, t, h, *x.shape[4:])

    return jax.tree.map(heads_last, results)


def _block(
    start: Extent,
    query: Float[Array, "rg c"],
    first: Extent,
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
    """What ``of`` takes of `average` for the queries from ``start`` on and ``width`` keys from ``first`` on."""
    r, s = query.shape[0] // g, key.shape[-1]
    first = 0 if width == s else jnp.clip(first, 0, s - width)

    def in_reach(x: Array) -> Array:
        return x if x.shape[-1] in (1, width) else lax.dynamic_slice_in_dim(x, first, width, -1)

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
    )
    return of(pooled)


class _Group(NamedTuple):
    """Consecutive blocks of ``rows`` queries with ``width`` keys each, or, if that is 0, as many as data says."""

    start: int
    blocks: int
    rows: int
    width: int
    firsts: list[int]  # the first key of each


def _over_rows(
    block: Callable[..., Any],
    query: Float[Array, "tg c"],
    bias: Float[Array, "#g #t #s"] | None,
    mask: Mask | None,
    g: int,
    s: int,
    matrix: Array,
) -> Any:
    """All blocks of a group of heads, one after the other."""
    t = query.shape[0] // g
    pieces = []
    for start, n_blocks, rows, width, firsts in _plan(t, g, s, mask):
        if width or mask is None:
            one = jax.checkpoint(functools.partial(block, width=width), prevent_cse=False)
        else:
            one = jax.checkpoint(functools.partial(_within_span, block, mask=mask, g=g, s=s), prevent_cse=False)
        stop = start + n_blocks * rows
        part = bias
        if bias is not None:
            part = bias[:, start:stop] if bias.shape[1] == t else bias
            part = jnp.moveaxis(part.reshape(part.shape[0], -1, min(rows, part.shape[1]), part.shape[2]), 1, 0)
        # What depends on nothing but constants JAX computes ahead of a loop around this one, and keeps for its backward
        # pass: the masks of all blocks. Hence starts that depend on the matrix.
        starts = start + rows * jnp.arange(n_blocks) + 0 * matrix
        xs = (starts, query[start * g : stop * g].reshape(n_blocks, rows * g, -1), jnp.asarray(firsts))
        blocks = _map(one, xs, part, one_by_one=True)
        pieces.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks))
    return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *pieces)


def _plan(t: int, g: int, s: int, mask: Mask | None) -> list[_Group]:
    """The cheapest way to cut ``t`` queries, with ``g`` heads each, into blocks."""
    spans: Any = functools.partial(mask.span, s=s) if mask is not None else lambda start, stop: (0, s)
    static = all(isinstance(end, int) for end in spans(0, t))
    if not static and jax.default_backend() != "cpu":
        spans, static = lambda start, stop: (0, s), True  # where all heads are taken at once, nothing can be skipped
    sizes = [rows // g for rows in _ROWS if rows * s <= _LOGITS and rows >= g] or [max(_ROWS[-1] // g, 1)]
    if not static:
        return _groups(t, min(sizes[0], max(_ROWS_BY_DATA // g, 1)), None)
    plans = [_groups(t, size, spans, s) for size in sizes]
    return min(plans, key=lambda plan: sum(x.blocks * x.width * (x.rows * g + _OVERHEAD) for x in plan))


def _groups(t: int, rows: int, spans: Callable[[int, int], tuple[int, int]] | None, s: int = 0) -> list[_Group]:
    """Blocks of so many queries; of fewer if those leave no rest."""
    count = -(-t // rows)
    rows = t // count if t % count == 0 else min(rows, t)
    starts = range(0, t, rows)
    sizes = [min(rows, t - start) for start in starts]
    if spans is None:
        reach, widths = [(0, 0)] * len(starts), [0] * len(starts)
    else:
        reach = [spans(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        widths = _rounded([high - low for low, high in reach], s)
    groups = []
    for (size, width), members in itertools.groupby(range(len(starts)), lambda i: (sizes[i], widths[i])):
        blocks = list(members)
        groups.append(_Group(starts[blocks[0]], len(blocks), size, width, [reach[i][0] for i in blocks]))
    return groups


def _rounded(widths: list[int], s: int) -> list[int]:
    """The widths, rounded up until there are few different ones."""
    step = min(_LEAST_WIDTH, s)
    while True:
        rounded = [max(min(-(-width // step) * step, s), min(step, s)) for width in widths]
        if len(set(rounded)) <= _WIDTHS:
            return rounded
        step *= 2


def _within_span(
    block: Callable[..., Any],
    start: Array,
    query: Array,
    first: Array,
    bias: Array | None,
    *,
    mask: Mask,
    g: int,
    s: int,
) -> Any:
    """A block with the least width that holds its mask's span, where that depends on data."""
    low, high = mask.span(start, start + query.shape[0] // g, s)
    widths = sorted({min(max(math.ceil(share * s), _LEAST_WIDTH), s) for share in _SHARES})
    # Each branch keeps its arguments and nothing else for the backward pass, where all branches' arrays have a place.
    branches = [jax.checkpoint(functools.partial(block, width=width), prevent_cse=False) for width in widths]
    chosen = jnp.searchsorted(jnp.asarray(widths), jnp.asarray(high - low))
    return lax.switch(chosen, branches, start, query, low, bias)


def _map(f: Callable[..., Any], xs: tuple[Any, ...], bias: Array | None, one_by_one: bool = False) -> Any:
    """f over the first axis of xs, and over that of the bias, unless its length of 1 stands for all."""

    def each(f: Callable[[Any], Any], xs: Any) -> Any:
        # A processor's cores share the work of one head's block; an accelerator takes all heads' at once.
        return lax.map(f, xs) if one_by_one or jax.default_backend() == "cpu" else jax.vmap(f)(xs)

    if bias is None or bias.shape[0] == 1:
        return each(lambda x: f(*x, None if bias is None else bias[0]), xs)
    return each(lambda x: f(*x), (*xs, bias))


def _by_head(bias: Float[Array, "..."], batch: list[int], k: int, g: int) -> Float[Array, "#n #k #g #t #s"]:
    """A bias with all its axes, and with as many examples as there are, or one for all."""
    bias = bias.reshape((1,) * (len(batch) + 3 - bias.ndim) + bias.shape)
    *lead, heads, t, s = bias.shape
    if math.prod(lead) > 1:
        bias = jnp.broadcast_to(bias, (*batch, heads, t, s))
    return bias.reshape(-1, *((k, g) if heads > 1 else (1, 1)), t, s)
