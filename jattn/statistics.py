"""What the weights of attention look like, without the weights: numbers of each row and column, in linear memory."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jattn._engine.compiled import compiled
from jattn._engine.dtypes import at_least_float32
from jattn._engine.extents import slice_along
from jattn._engine.grouped_heads import repeat_heads
from jattn._engine.platform import Platform, is_alone, where_lowered
from jattn._engine.varying import varying_as
from jattn.implementations.call import Call
from jattn.implementations.explicit import over_mesh
from jattn.implementations.parts import gathered
from jattn.implementations.streaming import Streaming, streamed
from jattn.logits import Logits
from jattn.softmax import Average, beside_sinks, softmax

__all__ = ["AttentionStatistics", "statistics_of", "weights_of"]


class AttentionStatistics(NamedTuple):
    """What `attention_statistics` returns, in float32 or wider. A query that may attend to nothing has zeros."""

    entropy: Float[Array, "*b h t"]  # in nats: 0 where one key has all weight, log(s) where all keys have the same
    largest: Float[Array, "*b h t"]  # the largest weight
    norm: Float[Array, "*b h t"]  # the root of the sum of the squared weights
    received: Float[Array, "*b h s"]  # the sum of a key's weights over all queries


_AXES_OF_STATISTICS: Any = AttentionStatistics(*("bht",) * 3, received="bhs")  # type: ignore[arg-type]


def weights_of(x: Float[Array, "*b h t s"], sinks: Float[Array, "*#b h #t"] | None) -> Float[Array, "*b h t s"]:
    """The weights under these logits, beside the sinks."""
    weights, log_sum_exp = softmax(x)
    return weights if sinks is None else weights * beside_sinks(log_sum_exp, sinks)[0][..., None]


def statistics_of(call: Call) -> AttentionStatistics:
    """The statistics of the weights of a call."""
    return _statistics(call, is_alone(call))


@compiled("alone")
def _statistics(call: Call, alone: bool) -> AttentionStatistics:
    return over_mesh(functools.partial(_statistics_of_part, alone=alone), call, _AXES_OF_STATISTICS, "s")


def _statistics_of_part(call: Call, alone: bool) -> AttentionStatistics:
    """Those of all keys for a device's queries, and what its own keys receive from all."""
    result = _statistics_here(gathered(call), alone)
    if call.divided is None:
        return result
    axis, s = call.divided.axis, call.logits.key.shape[-3]
    if call.divided.with_queries:
        return result._replace(
            received=lax.psum_scatter(result.received, axis, scatter_dimension=result.received.ndim - 1, tiled=True)
        )
    return result._replace(received=slice_along(result.received, lax.axis_index(axis) * s, s, -1))


def _statistics_here(call: Call, alone: bool) -> AttentionStatistics:
    logits = call.logits
    if not logits.by_pair:
        return _of_matrix(logits)
    key = repeat_heads(logits.key, logits.query.shape[-2])  # as each query head has weights of its own
    logits = dataclasses.replace(logits, key=key)
    # A column's sum is the derivative of all outputs for its value.
    value = jnp.ones((*key.shape[:-1], 1), at_least_float32(logits.query))
    call = Call(logits, varying_as(value, *jax.tree.leaves(logits)))
    streaming = Streaming()

    def of_platform(platform: Platform, call: Call) -> AttentionStatistics:
        if call.is_empty or streaming.refusal(call, platform):
            return _of_matrix(call.logits)
        return _streamed(call, platform)

    return where_lowered(of_platform, call, streaming.program, alone=alone)


def _of_matrix(logits: Logits) -> AttentionStatistics:
    weights = weights_of(logits.matrix(logits.attended()), logits.sinks_of_rows())
    return AttentionStatistics(*_of_rows(weights), weights.sum(axis=-2))


def _streamed(call: Call, platform: Platform) -> AttentionStatistics:
    def total_and_rows(value: Array) -> Any:
        return streamed(dataclasses.replace(call, value=value), platform, _total_and_rows)

    assert call.value is not None
    total, pull, rows = jax.vjp(total_and_rows, call.value, has_aux=True)
    (received,) = pull(jnp.ones_like(total))
    entropy, largest, norm = (jnp.swapaxes(x, -1, -2) for x in rows)
    return AttentionStatistics(entropy, largest, norm, jnp.swapaxes(received[..., 0], -1, -2))


def _total_and_rows(average: Average) -> Any:
    return average.output, _of_rows(average.weights)


def _of_rows(weights: Float[Array, "*b t s"]) -> tuple[Array, Array, Array]:
    """Entropy, largest weight and norm."""
    # 1 in the place of 0 keeps the infinite slopes of the logarithm and of the root at 0 out of the gradients.
    entropy = -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(-1)
    squared = (weights**2).sum(-1)
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return entropy, weights.max(-1, initial=0), norm
