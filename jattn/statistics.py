"""What the weights of attention look like, without the weights: numbers of each row and column, in linear memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jattn.attention import attention_weights, checked_logits
from jattn.checks import query_and_key
from jattn.mask_types import Mask
from jattn.pooling import Pooled, ScoreFn, repeat_heads
from jattn.scores import Number, is_by_pair
from jattn.streaming import stream


class AttentionStatistics(NamedTuple):
    """What `attention_statistics` returns, in float32 or wider. A query that may attend to nothing has zeros."""

    entropy: Float[Array, "*b h t"]  # in nats: 0 where one key has all weight, log(s) where all keys have the same
    largest: Float[Array, "*b h t"]  # the largest weight
    norm: Float[Array, "*b h t"]  # the root of the sum of the squared weights
    received: Float[Array, "*b h s"]  # the sum of a key's weights over all queries


def attention_statistics(
    query: Float[Array, "*b t h c"],
    key: Float[Array, "*b s k d"],
    *,
    score: ScoreFn | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: Number | None = None,
    logits_soft_cap: Number | None = None,
) -> AttentionStatistics:
    """Entropy, largest weight and norm of each query's weights, and what each key receives, for every head.

    The numbers are those of the weights that `attention_weights` returns, but their matrix is never there whole,
    except for a score that is a function of the caller's, which may depend on positions.

    Args:
        query, key, score, mask, bias, scale, logits_soft_cap: as in `attention`.

    Raises:
        ValueError: naming the argument that doesn't fit.

    Example (no mask and equal keys, so that all weights are 1 / 4):

        >>> statistics = attention_statistics(jnp.ones((3, 1, 2)), jnp.ones((4, 1, 2)))
        >>> print(statistics.entropy.round(3), statistics.received)
        [[1.386 1.386 1.386]] [[0.75 0.75 0.75 0.75]]
    """
    query, key = query_and_key(query, key)
    score, mask, bias = checked_logits(query, key, score, mask, bias, scale, logits_soft_cap)
    options: dict[str, Any] = dict(score=score, mask=mask, bias=bias, logits_soft_cap=logits_soft_cap)
    if not is_by_pair(score) or 0 in (*query.shape, *key.shape):
        weights = attention_weights(query, key, **options)
        entropy, largest, norm = _of_rows(weights)
        return AttentionStatistics(entropy, largest, norm, weights.sum(axis=-2))
    return _streamed(query, key, **options)


@jax.jit
def _streamed(query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"], **options: Any) -> AttentionStatistics:
    key = repeat_heads(key, query.shape[-2])  # as each query head has weights of its own

    def total_and_rows(value: Array) -> Any:
        return stream(query, key, value, of=_total_and_rows, **options)

    # A column's sum is the derivative of all outputs for its value.
    value = jnp.ones((*key.shape[:-1], 1), jnp.promote_types(query.dtype, jnp.float32))
    total, pull, rows = jax.vjp(total_and_rows, value, has_aux=True)
    (received,) = pull(jnp.ones_like(total))
    entropy, largest, norm = (jnp.swapaxes(x, -1, -2) for x in rows)
    return AttentionStatistics(entropy, largest, norm, jnp.swapaxes(received[..., 0], -1, -2))


def _total_and_rows(pooled: Pooled) -> Any:
    return pooled.output, _of_rows(pooled.weights)


def _of_rows(weights: Float[Array, "*b t s"]) -> tuple[Array, Array, Array]:
    """Entropy, largest weight and norm."""
    # 1 in the place of 0 keeps the infinite slopes of the logarithm and of the root at 0 out of the gradients.
    entropy = -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(-1)
    squared = (weights**2).sum(-1)
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return entropy, weights.max(-1, initial=0), norm
