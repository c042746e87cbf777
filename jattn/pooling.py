"""The one idea, in its dense form.

    weights = softmax over keys of ( score(query, key) + bias, where mask allows )
    output  = weights @ value

Every attention in jattn is `pool` with some score; the public functions check their arguments and call it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jattn.checks import broadcasts_to
from jattn.dropout import dropout_keep
from jattn.mask_types import Mask, as_mask
from jattn.scores import Number, at_least_float32

ScoreFn = Callable[[Float[Array, "*b t h c"], Float[Array, "*b s h d"]], Float[Array, "*b h t s"]]


class Pooled(NamedTuple):
    """What `pool` returns."""

    output: Float[Array, "*b t h e"]
    weights: Float[Array, "*b h t s"]  # before dropout
    log_sum_exp: Float[Array, "*b t h"]


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
        ValueError: if the mask is not boolean or does not fit.

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
    return _softmax(logits, allowed)[0]


def pool(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    score: ScoreFn,
    mask: Mask | None = None,
    bias: Float[Array, "..."] | None = None,
    logits_soft_cap: Number | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    head_gates: Float[Array, "..."] | None = None,
) -> Pooled:
    """The definition: the average of the values, weighted by the softmax of the scores. Arguments as in `attention`."""
    *_, t, h, _ = query.shape
    s = key.shape[-3]
    key, value = repeat_heads(key, h), repeat_heads(value, h)
    weights, log_sum_exp = _softmax(
        logits(query, key, score=score, bias=bias, logits_soft_cap=logits_soft_cap),
        None if mask is None else mask.as_array(t, s),
    )
    kept = weights
    if dropout_rate > 0:
        assert dropout_rng is not None
        keep = dropout_keep(dropout_rng, dropout_rate, weights.shape)
        kept = jnp.where(keep, weights / (1 - dropout_rate), 0)
    # In this order of the operands XLA on a CPU takes a tenth less time, or more.
    output = jnp.einsum(
        "...she,...hts->...the", value, kept.astype(value.dtype), preferred_element_type=at_least_float32(value)
    )
    if head_gates is not None:
        output = output * head_gates[..., None, :, None]
    return Pooled(output.astype(value.dtype), weights, jnp.swapaxes(log_sum_exp, -1, -2))


def logits(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s h d"],
    *,
    score: ScoreFn,
    bias: Float[Array, "..."] | None = None,
    logits_soft_cap: Number | None = None,
) -> Float[Array, "*b h t s"]:
    """The scores, then the bias, then the soft cap ``cap tanh(x / cap)``, which leaves minus infinity as it is."""
    x = score(query, key)
    *b, t, h, _ = query.shape
    if jnp.shape(x) != (*b, h, t, key.shape[-3]):
        raise ValueError(
            f"score must return the shape {(*b, h, t, key.shape[-3])}, the axes *b h t s. Got shape {jnp.shape(x)}."
        )
    if bias is not None:
        x = x + bias
    if logits_soft_cap is not None:
        x = jnp.where(x == -jnp.inf, x, logits_soft_cap * jnp.tanh(x / logits_soft_cap))
    return x


def repeat_heads(x: Float[Array, "*b s k d"], h: int) -> Float[Array, "*b s h d"]:
    """Each key or value head, once for each of the h / k consecutive query heads that share it."""
    return x if x.shape[-2] == h else jnp.repeat(x, h // x.shape[-2], axis=-2)


@jax.custom_jvp
def _softmax(
    logits: Float[Array, "*b t s"], allowed: Bool[Array, "..."] | None
) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    """The weights and the logarithm of the sum under them: 0 and -inf, both with zero gradient, for an empty row."""
    logits = logits.astype(at_least_float32(logits))
    reachable = logits != -jnp.inf  # true of NaN, which must not disappear
    allowed = reachable if allowed is None else reachable & allowed
    floor = jnp.finfo(logits.dtype).min
    logits = jnp.where(allowed, logits, floor)
    peak = jnp.max(logits, axis=-1, keepdims=True, initial=floor)
    exponentials = jnp.where(allowed, jnp.exp(logits - peak), 0)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    empty = total == 0  # false of NaN, which shows in the logarithm, and in the weights of allowed keys only
    total = jnp.where(total > 0, total, 1)
    log_sum_exp = jnp.where(empty, -jnp.inf, peak + jnp.log(total))
    return exponentials / total, log_sum_exp.squeeze(-1)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    """``d w = w (d x - sum of w d x)``: XLA's own derivative keeps more arrays, and is slow on a CPU."""
    weights, log_sum_exp = _softmax(*primals)
    change = jnp.where(weights == 0, 0, tangents[0].astype(weights.dtype))  # a masked logit may be anything
    mean = jnp.sum(weights * change, axis=-1, keepdims=True)
    return (weights, log_sum_exp), (weights * (change - mean), mean.squeeze(-1))
