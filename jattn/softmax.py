"""The softmax over the keys that a mask allows, and the average of values under it.

    weights = exp(logits) / ( sum of exp(logits) + exp(sink) );  output = weights @ value

Every attention in jattn is `average` of some logits: of all at once (dense), or of a block of them at a time
(streaming).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.dtypes import at_least_float32, widest
from jattn._masks import Mask, as_mask

__all__ = ["Pooled", "average", "beside_sinks", "masked_softmax", "softmax"]


class Pooled(NamedTuple):
    """What `average` returns, in float32 or wider; any head axis is in front."""

    output: Float[Array, "*b t e"]
    weights: Float[Array, "*b t s"]  # from before dropout
    log_sum_exp: Float[Array, "*b t"]  # minus infinity, with zero gradient, for a query that may attend to nothing


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
        allowed = allowed.reshape((1,) * (logits.ndim - allowed.ndim) + allowed.shape)
    return _of_allowed(logits, allowed)


# Compiled, so that the minus infinity never leaves a program, which jax_debug_infs would reject.
@compiled()
def _of_allowed(logits: Array, allowed: Array | None) -> Array:
    x = logits.astype(at_least_float32(logits))
    return softmax(x if allowed is None else jnp.where(allowed, x, -jnp.inf))[0]


def average(
    logits: Float[Array, "*b t s"],
    value: Float[Array, "*b s e"],
    *,
    sinks: Float[Array, "*#b #t"] | None = None,
    keep: Bool[Array, "*b t s"] | None = None,
    dropout_rate: float = 0.0,
    never_empty: bool = False,
    divide_last: bool = False,
) -> Pooled:
    """The values' average under the softmax of the logits, minus infinity counting as masked.

    ``sinks`` are further logits, one for each query, that have no value. ``keep`` survives dropout. ``never_empty``
    says that there are keys, and that no logit is minus infinity. ``divide_last``, with no axis in front, saves a pass
    over the logits on a CPU; it would break up an accelerator's fused softmax.
    """
    weights, log_sum_exp = softmax(logits, never_empty=never_empty)
    value = value.astype(widest(value, logits))  # wide, so that the output is rounded once
    if keep is None and divide_last:
        output = _divided_last(logits, value)
    else:
        kept = weights if keep is None else jnp.where(keep, weights / (1 - dropout_rate), 0)
        output = jnp.matmul(kept.astype(value.dtype), value)
    if sinks is None:
        return Pooled(output, weights, log_sum_exp)
    share, log_sum_exp = beside_sinks(log_sum_exp, sinks)
    return Pooled(output * share[..., None], weights * share[..., None], log_sum_exp)


def beside_sinks(log_sum_exp: Float[Array, "*b t"], sinks: Float[Array, "*#b #t"]) -> tuple[Array, Array]:
    """What share of the weights the sinks leave to the keys, and the log-sum-exp of both."""
    sinks = sinks.astype(log_sum_exp.dtype)
    empty = jnp.isneginf(log_sum_exp)
    share = jnp.where(empty, 0, jax.nn.sigmoid(jnp.where(empty, 0, log_sum_exp) - sinks))
    return share, jnp.logaddexp(log_sum_exp, sinks)


def _exponentials(x: Float[Array, "*b t s"], never_empty: bool) -> tuple[Array, Array, Array]:
    """Of the logits with the row's largest taken off, their sum (0 in an empty row), and that largest.

    Where no row is empty, XLA on a CPU makes one loop of this and the product before it, which a floor under the
    largest would keep apart: a sixth to a quarter of the time on short sequences.
    """
    peak = jnp.max(x, axis=-1, keepdims=True, initial=None if never_empty else jnp.finfo(x.dtype).min)
    exponentials = jnp.exp(x - peak)
    return exponentials, jnp.sum(exponentials, axis=-1, keepdims=True), peak


def softmax(
    x: Float[Array, "*b t s"], never_empty: bool = False
) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    """The weights and the logarithm of the sum under them."""
    return _softmax_of_full_rows(x) if never_empty else _softmax(x)


@jax.custom_jvp
def _softmax(x: Float[Array, "*b t s"]) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    exponentials, total, peak = _exponentials(x, never_empty=False)
    # The largest's exponential is 1, so that only an empty row's sum is below 1.
    return exponentials / jnp.maximum(total, 1), (peak + jnp.log(total)).squeeze(-1)


@jax.custom_jvp
def _softmax_of_full_rows(x: Float[Array, "*b t s"]) -> tuple[Float[Array, "*b t s"], Float[Array, "*b t"]]:
    exponentials, total, peak = _exponentials(x, never_empty=True)
    return exponentials / total, (peak + jnp.log(total)).squeeze(-1)


def _softmax_jvp(softmax: Callable[[Array], Any], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    """``d w = w (d x - sum of w d x)``: JAX's own keeps more arrays, and takes a small model's step 1.7 times."""
    weights, log_sum_exp = softmax(*primals)
    mean = jnp.sum(weights * tangents[0], axis=-1, keepdims=True)
    return (weights, log_sum_exp), (weights * (tangents[0] - mean), mean.squeeze(-1))


for _of_rows in (_softmax, _softmax_of_full_rows):
    _of_rows.defjvp(functools.partial(_softmax_jvp, _of_rows))


@jax.custom_jvp
def _divided_last(x: Float[Array, "t s"], value: Float[Array, "s e"]) -> Float[Array, "t e"]:
    """``softmax(x) @ value`` with one pass over a t s array less."""
    exponentials, total, _ = _exponentials(x, never_empty=False)
    return jnp.matmul(exponentials, value) / jnp.maximum(total, 1)


@_divided_last.defjvp
def _divided_last_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, value), (dx, dvalue) = primals, tangents
    weights, d_weights = jax.jvp(lambda x: _softmax(x)[0], (x,), (dx,))
    return _divided_last(x, value), jnp.matmul(d_weights, value) + jnp.matmul(weights, dvalue)
