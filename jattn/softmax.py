"""The softmax over the keys that a mask allows, and the average of values under it.

    weights = exp(logits) / ( sum of exp(logits) + exp(sink) );  output = weights @ value

Every attention in jattn is an `Average` under some logits: of all at once (dense), or of a block of them at a time
(streaming). Averages over parts of the keys are merged by their log-sum-exp.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine import checks
from jattn._engine.compiled import compiled
from jattn._engine.dtypes import at_least_float32, widest
from jattn._mask import Mask, as_mask

__all__ = ["Average", "Partial", "beside_sinks", "masked_softmax", "merged_over", "merged_pair", "share_of", "softmax"]


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


@dataclasses.dataclass(frozen=True)
class Average:
    """The values' average under the softmax of the logits, minus infinity counting as masked.

    In float32 or wider; any head axis is in front. What nobody asks for is not even traced.
    """

    logits: Float[Array, "*b t s"]
    value: Float[Array, "*b s e"]
    sinks: Float[Array, "*#b #t"] | None = None  # further logits, one for each query, that have no value
    keep: Bool[Array, "*#b t s"] | None = None  # what survives dropout
    dropout_rate: float = 0.0
    never_empty: bool = False  # whether there are keys, and no logit is minus infinity
    # A CPU is spared a pass over the logits, where no axis is in front; an accelerator's fused softmax would break up.
    divide_last: bool = False

    @functools.cached_property
    def output(self) -> Float[Array, "*b t e"]:
        value = self.value.astype(widest(self.value, self.logits))  # wide, so that the output is rounded once
        if self.keep is None and self.divide_last:
            output = _divided_last(self.logits, value)
        else:
            weights = self._of_keys[0]
            kept = weights if self.keep is None else jnp.where(self.keep, weights / (1 - self.dropout_rate), 0)
            output = jnp.matmul(kept.astype(value.dtype), value)
        return output if self.sinks is None else output * self._beside_sinks[0][..., None]

    @functools.cached_property
    def weights(self) -> Float[Array, "*b t s"]:
        """From before dropout."""
        weights = self._of_keys[0]
        return weights if self.sinks is None else weights * self._beside_sinks[0][..., None]

    @functools.cached_property
    def log_sum_exp(self) -> Float[Array, "*b t"]:
        """Minus infinity, with zero gradient, for a query that may attend to nothing."""
        return self._of_keys[1] if self.sinks is None else self._beside_sinks[1]

    @functools.cached_property
    def _of_keys(self) -> tuple[Array, Array]:
        return softmax(self.logits, never_empty=self.never_empty)

    @functools.cached_property
    def _beside_sinks(self) -> tuple[Array, Array]:
        assert self.sinks is not None
        return beside_sinks(self._of_keys[1], self.sinks)


def beside_sinks(log_sum_exp: Float[Array, "*b t"], sinks: Float[Array, "*#b #t"]) -> tuple[Array, Array]:
    """What share of the weights the sinks leave to the keys, and the log-sum-exp of both."""
    sinks = sinks.astype(log_sum_exp.dtype)
    empty = jnp.isneginf(log_sum_exp)
    share = jnp.where(empty, 0, jax.nn.sigmoid(jnp.where(empty, 0, log_sum_exp) - sinks))
    return share, jnp.logaddexp(log_sum_exp, sinks)


Partial = tuple[Float[Array, "*b e"], Float[Array, "*b"]]  # an output over some of the keys, and its log-sum-exp


def share_of(part: Float[Array, "*b"], whole: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """What share of the weights keys of the one log-sum-exp have among those of the other; 0 in an empty row."""
    empty = jnp.isneginf(part)
    return jnp.where(empty, 0, jnp.exp(jnp.where(empty, 0, part) - jnp.where(empty, 0, whole)))


def merged_pair(a: Partial, b: Partial) -> Partial:
    """The result over the keys of both."""
    whole = jnp.logaddexp(a[1], b[1])
    return sum(x * share_of(part, whole)[..., None] for x, part in (a, b)), whole  # type: ignore[return-value]


def merged_over(
    output: Float[Array, "*b e"], log_sum_exp: Float[Array, "*b"], axis: Any, sinks: Float[Array, "..."] | None = None
) -> Partial:
    """Likewise of the keys of all devices along an axis of a mesh, of which each has one result; beside the sinks."""
    sinks = None if sinks is None else sinks.astype(log_sum_exp.dtype)
    highest = log_sum_exp if sinks is None else jnp.maximum(log_sum_exp, sinks)
    peak = lax.pmax(lax.stop_gradient(highest), axis)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    mass = jnp.exp(log_sum_exp - peak)
    beside = mass
    if sinks is not None:  # they count once
        beside = mass + jnp.where(lax.axis_index(axis) == 0, jnp.exp(sinks - peak), 0)
    output, total = lax.psum((output * mass[..., None], beside), axis)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    return output / total[..., None], jnp.where(empty, -jnp.inf, peak + jnp.log(total))


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
    d_weights, mean = _d_weights(weights, tangents[0])
    return (weights, log_sum_exp), (d_weights, mean.squeeze(-1))


def _d_weights(weights: Float[Array, "*b t s"], dx: Float[Array, "*b t s"]) -> tuple[Array, Float[Array, "*b t 1"]]:
    mean = jnp.sum(weights * dx, axis=-1, keepdims=True)
    return weights * (dx - mean), mean


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
    weights, _ = _softmax(x)
    d_weights, _ = _d_weights(weights, dx)
    return _divided_last(x, value), jnp.matmul(d_weights, value) + jnp.matmul(weights, dvalue)
