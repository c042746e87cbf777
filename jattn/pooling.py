"""The one idea, in its dense form.

    weights = softmax over keys of ( score(query, key) + bias, where mask allows )
    output  = weights @ value

Every attention in jattn is `pool` with some score: on all queries at once (dense), or on a block of them at a time
(streaming).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jattn import checks
from jattn.mask_types import Mask, as_mask
from jattn.scores import Number, Score, at_least_float32

ScoreFn = Callable[[Float[Array, "*b t h c"], Float[Array, "*b s h d"]], Float[Array, "*b h t s"]]


class Pooled(NamedTuple):
    """What `pool` and `average` return, in float32 or wider; here with the axes of `pool`."""

    output: Float[Array, "*b t h e"]
    weights: Float[Array, "*b h t s"]  # from before dropout
    log_sum_exp: Float[Array, "*b h t"]  # minus infinity, with zero gradient, for a query that may attend to nothing


def masked_softmax(
    logits: Float[Array, "*b t s"], mask: Mask | Bool[Array, "..."] | None = None
) -> Float[Array, "*b t s"]:
    """Softmax over the keys that the mask allows; the others get exactly 0.

    ``weights[i, j] = exp(logits[i, j]) / sum of exp(logits[i, k]) over the allowed k``

    A query that may attend to nothing gets zeros, with zero gradients. A logit of minus infinity counts as masked.

    Args:
        logits: ``*b t s`` or ``*b h t s``.
        mask: a mask of `jattn.masks`, or a boolean array that broadcasts to logits, ``True`` where attention is
            allowed.

    Returns:
        The weights, in float32 or wider.

    Raises:
        ValueError: if logits are not floating point ``*b t s``, or the mask is not boolean or does not fit.

    Example (two examples, of valid lengths 2 and 3):

        >>> from jattn.masks import lengths
        >>> print(masked_softmax(jnp.zeros((2, 1, 4)), lengths(jnp.array([2, 3]))))
        [[[0.5        0.5        0.         0.        ]]
        <BLANKLINE>
         [[0.33333334 0.33333334 0.33333334 0.        ]]]
    """
    logits = checks.array("logits", logits)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating point with the axes *b t s. Got shape {logits.shape}, {logits.dtype}."
        )
    allowed = None
    if mask is not None:
        allowed = as_mask(mask).as_array(*logits.shape[-2:])
        if isinstance(mask, Mask) and allowed.ndim == logits.ndim + 1 and allowed.shape[-3] == 1:
            allowed = allowed.squeeze(-3)  # logits without heads
        if not checks.broadcasts_to(allowed.shape, logits.shape):
            raise ValueError(f"mask must broadcast to the shape of logits, {logits.shape}. Got shape {allowed.shape}.")
    return _softmax(_masked(logits, allowed), never_empty=False)[0]


def pool(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: ScoreFn,
    bias: Float[Array, "..."] | None = None,
    logits_soft_cap: Number | None = None,
    **rest: Any,
) -> Pooled:
    """The definition: the average of the values, weighted by the softmax of the scores.

    Arguments as in `attention`, but the mask is an array; the rest as in `average`.
    """
    h = query.shape[-2]
    key, value = repeat_heads(key, h), repeat_heads(value, h)
    x = logits(query, key, score=score, bias=bias, logits_soft_cap=logits_soft_cap)
    reaches_all = isinstance(score, Score) and score.reaches_all and bias is None and key.shape[-3] > 0
    pooled = average(x, jnp.swapaxes(value, -2, -3), reaches_all=reaches_all, **rest)
    return pooled._replace(output=jnp.swapaxes(pooled.output, -2, -3))


def average(
    logits: Float[Array, "*b t s"],
    value: Float[Array, "*b s e"],
    *,
    allowed: Bool[Array, "..."] | None = None,
    keep: Bool[Array, "*b t s"] | None = None,
    dropout_rate: float = 0.0,
    reaches_all: bool = False,
    divide_last: bool = False,
) -> Pooled:
    """The values' average under the softmax of the logits; any head axis is in front. ``keep`` survives dropout.

    ``reaches_all`` says that there are keys, and that no logit is minus infinity before the mask. ``divide_last``,
    with no axis in front and no dropout, saves a pass over the logits on a CPU; it would break up an accelerator's
    fused softmax.
    """
    x = _masked(logits, allowed)
    weights, log_sum_exp = _softmax(x, never_empty=reaches_all and allowed is None)
    value = value.astype(jnp.promote_types(value.dtype, x.dtype))  # wide, so that the output is rounded once
    if keep is None and divide_last:
        output = _divided_last(x, value)
    else:
        kept = weights if keep is None else jnp.where(keep, weights / (1 - dropout_rate), 0)
        output = jnp.matmul(kept, value)
    return Pooled(output, weights, log_sum_exp)


def logits(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s h d"],
    *,
    score: ScoreFn,
    bias: Float[Array, "..."] | None = None,
    logits_soft_cap: Number | None = None,
) -> Float[Array, "*b h t s"]:
    """The scores, then the bias, then the soft cap."""
    x = score(query, key)
    *b, t, h, _ = query.shape
    if jnp.shape(x) != (*b, h, t, key.shape[-3]):
        raise ValueError(
            f"score must return the shape {(*b, h, t, key.shape[-3])}, the axes *b h t s. Got shape {jnp.shape(x)}."
        )
    return biased_and_capped(x, bias, logits_soft_cap)


def biased_and_capped(
    x: Float[Array, "*b t s"], bias: Float[Array, "..."] | None, logits_soft_cap: Number | None
) -> Float[Array, "*b t s"]:
    """Scores with their bias, then ``cap tanh(x / cap)``, which leaves minus infinity as it is."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(f"score must return floating-point logits. Got {jnp.result_type(x)}.")
    if bias is not None:
        x = x + bias
    if logits_soft_cap is not None:
        ruled_out = x == -jnp.inf
        # The inner where keeps -inf times 0 out of the cap's gradient.
        capped = logits_soft_cap * jnp.tanh(jnp.where(ruled_out, 0, x) / logits_soft_cap)
        x = jnp.where(ruled_out, -jnp.inf, capped)
    return x


def repeat_heads(x: Float[Array, "*b s k d"], h: int) -> Float[Array, "*b s h d"]:
    """Each key or value head, once for each of the h / k consecutive query heads that share it."""
    return x if x.shape[-2] == h else jnp.repeat(x, h // x.shape[-2], axis=-2)


def _masked(logits: Float[Array, "*b t s"], allowed: Bool[Array, "..."] | None) -> Float[Array, "*b t s"]:
    """In float32 or wider, minus infinity where the mask does not allow it."""
    logits = logits.astype(at_least_float32(logits))
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def _exponentials(x: Float[Array, "*b t s"], never_empty: bool) -> tuple[Array, Array, Array]:
    """Of the logits with the row's largest taken off, their sum (0 in an empty row), and that largest.

    Where no row is empty, XLA on a CPU makes one loop of this and the product before it, which a floor under the
    largest would keep apart: a sixth to a quarter of the time on short sequences.
    """
    peak = jnp.max(x, axis=-1, keepdims=True, initial=None if never_empty else jnp.finfo(x.dtype).min)
    exponentials = jnp.exp(x - peak)
    return exponentials, jnp.sum(exponentials, axis=-1, keepdims=True), peak


@functools.partial(jax.custom_jvp, nondiff_argnames=("never_empty",))
def _softmax(x: Float[Array, "*b t s"], never_empty: bool) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    """The weights and the logarithm of the sum under them."""
    exponentials, total, peak = _exponentials(x, never_empty)
    weights = exponentials / (total if never_empty else jnp.maximum(total, 1))  # the largest's exponential is 1
    return weights, (peak + jnp.log(total)).squeeze(-1)


@_softmax.defjvp
def _softmax_jvp(never_empty: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    """``d w = w (d x - sum of w d x)``: JAX's own keeps more arrays, and takes a small model's step 1.7 times."""
    weights, log_sum_exp = _softmax(*primals, never_empty=never_empty)
    mean = jnp.sum(weights * tangents[0], axis=-1, keepdims=True)
    return (weights, log_sum_exp), (weights * (tangents[0] - mean), mean.squeeze(-1))


@jax.custom_jvp
def _divided_last(x: Float[Array, "t s"], value: Float[Array, "s e"]) -> Float[Array, "t e"]:
    """``softmax(x) @ value`` with one pass over a t s array less."""
    exponentials, total, _ = _exponentials(x, never_empty=False)
    return jnp.matmul(exponentials, value) / jnp.maximum(total, 1)


@_divided_last.defjvp
def _divided_last_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, value), (dx, dvalue) = primals, tangents
    weights, d_weights = jax.jvp(lambda x: _softmax(x, never_empty=False)[0], (x,), (dx,))
    return _divided_last(x, value), jnp.matmul(d_weights, value) + jnp.matmul(weights, dvalue)
