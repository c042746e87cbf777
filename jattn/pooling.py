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

from jattn.checks import broadcasts_to
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
    logits = jnp.asarray(logits)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating point with the axes *b t s. Got shape {logits.shape}, {logits.dtype}."
        )
    allowed = None
    if mask is not None:
        allowed = as_mask(mask).as_array(*logits.shape[-2:])
        if isinstance(mask, Mask) and allowed.ndim == logits.ndim + 1 and allowed.shape[-3] == 1:
            allowed = allowed.squeeze(-3)  # logits without heads
        if not broadcasts_to(allowed.shape, logits.shape):
            raise ValueError(f"mask must broadcast to the shape of logits, {logits.shape}. Got shape {allowed.shape}.")
    return _softmax(_masked(logits, allowed), False)[0]


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
    pooled = average(x, jnp.swapaxes(value, -2, -3), whole=reaches_all(score, bias) and key.shape[-3] > 0, **rest)
    return pooled._replace(output=jnp.swapaxes(pooled.output, -2, -3))


def average(
    logits: Float[Array, "*b t s"],
    value: Float[Array, "*b s e"],
    *,
    allowed: Bool[Array, "..."] | None = None,
    keep: Bool[Array, "*b t s"] | None = None,
    dropout_rate: float = 0.0,
    whole: bool = False,
) -> Pooled:
    """The values' average under the softmax of the logits; any head axis is in front. ``keep`` survives dropout.

    ``whole`` says that there are keys, and that no logit is minus infinity before the mask.
    """
    x = _masked(logits, allowed)
    weights, log_sum_exp = _softmax(x, whole and allowed is None)
    value = value.astype(jnp.promote_types(value.dtype, x.dtype))  # wide, so that the output is rounded once
    if keep is None and x.ndim == 2:
        output = _divided_last(x, value)
    else:
        kept = weights if keep is None else jnp.where(keep, weights / (1 - dropout_rate), 0)
        output = jnp.matmul(kept, value)
    return Pooled(output, weights, log_sum_exp)


def reaches_all(score: ScoreFn, bias: Array | None) -> bool:
    """Whether no logit can be minus infinity, so that every query has keys unless a mask takes them all."""
    return isinstance(score, Score) and score.reaches_all and bias is None


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
    if bias is not None:
        x = x + bias
    if logits_soft_cap is not None:
        x = jnp.where(x == -jnp.inf, x, logits_soft_cap * jnp.tanh(x / logits_soft_cap))
    return x


def repeat_heads(x: Float[Array, "*b s k d"], h: int) -> Float[Array, "*b s h d"]:
    """Each key or value head, once for each of the h / k consecutive query heads that share it."""
    return x if x.shape[-2] == h else jnp.repeat(x, h // x.shape[-2], axis=-2)


def _masked(logits: Float[Array, "*b t s"], allowed: Bool[Array, "..."] | None) -> Float[Array, "*b t s"]:
    """In float32 or wider, minus infinity where the mask does not allow it."""
    logits = logits.astype(at_least_float32(logits))
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def _exponentials(x: Float[Array, "*b t s"], whole: bool) -> tuple[Array, Array, Array]:
    """Of the logits, their sum, and the row's largest logit, which is taken off them first."""
    # Without another floor XLA on a CPU fuses this with the product before it.
    peak = jnp.max(x, axis=-1, keepdims=True, initial=None if whole else jnp.finfo(x.dtype).min)
    exponentials = jnp.exp(x - peak)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials, total if whole else jnp.maximum(total, 1), peak


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: Float[Array, "*b t s"], whole: bool) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    """The weights and the logarithm of the sum under them."""
    exponentials, total, peak = _exponentials(x, whole)
    log_sum_exp = peak + jnp.log(total)
    if not whole:
        log_sum_exp = jnp.where(peak == jnp.finfo(x.dtype).min, -jnp.inf, log_sum_exp)
    return exponentials / total, log_sum_exp.squeeze(-1)


@_softmax.defjvp
def _softmax_jvp(whole: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    """``d w = w (d x - sum of w d x)``: JAX's own keeps more arrays, and takes a small model's step 1.7 times."""
    weights, log_sum_exp = _softmax(*primals, whole)
    mean = jnp.sum(weights * tangents[0], axis=-1, keepdims=True)
    return (weights, log_sum_exp), (weights * (tangents[0] - mean), mean.squeeze(-1))


@jax.custom_jvp
def _divided_last(x: Float[Array, "t s"], value: Float[Array, "s e"]) -> Float[Array, "t e"]:
    """``softmax(x) @ value`` with one pass over a t s array less."""
    exponentials, total, _ = _exponentials(x, whole=False)
    return jnp.matmul(exponentials, value) / total


@_divided_last.defjvp
def _divided_last_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, value), (dx, dvalue) = primals, tangents
    (weights, _), (d_weights, _) = jax.jvp(lambda x: _softmax(x, False), (x,), (dx,))
    return _divided_last(x, value), jnp.matmul(d_weights, value) + jnp.matmul(weights, dvalue)
