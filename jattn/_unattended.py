"""Keys that no query may attend to, and their values: made harmless, whatever they hold."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jattn._engine.varying import varying_as
from jattn._score import Score

__all__ = ["an_attended", "harmless_key", "harmless_value"]


def harmless_value(
    value: Float[Array, "*b s k e"], attended: Bool[Array, "*#b #s #k 1"] | None, *, unless_all: bool = False
) -> Float[Array, "*b s k e"]:
    """Values with zeros for those that nobody attends to, as a weight of zero times NaN is NaN.

    ``unless_all``: ask first whether all are attended to, which spares the pass.
    """
    return value if attended is None else _replaced(value, attended, jnp.zeros((), value.dtype), unless_all)


def harmless_key(
    key: Float[Array, "*b s k d"],
    attended: Bool[Array, "*#b #s #k 1"] | None,
    score: Any = None,
    *,
    unless_all: bool = False,
) -> Float[Array, "*b s k d"]:
    """Keys with zeros, or one that somebody attends to, in the place of those that nobody does, which may be NaN.

    Zeros are for a score that says it takes them. Any is sure to take a key that somebody attends to, while zeros may
    have no direction, ones may lie outside of a ball, and the mean of all keys may be asked for.
    """
    if attended is None:
        return key
    zeros = isinstance(score, Score) and score.takes_zeros
    return _replaced(key, attended, jnp.zeros((), key.dtype) if zeros else an_attended(key, attended), unless_all)


def an_attended(key: Float[Array, "*b s k d"], attended: Bool[Array, "*#b #s #k 1"]) -> Float[Array, "*b 1 k d"]:
    """The first key of each example and head that somebody attends to; ones where there is none."""
    attended = jnp.broadcast_to(attended, (*key.shape[:-1], 1))
    first = jnp.take_along_axis(key, jnp.argmax(attended, axis=-3, keepdims=True), axis=-3)
    return jnp.where(attended.any(axis=-3, keepdims=True), first, jnp.ones((), key.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _replaced(x: Array, attended: Array, instead: Array, unless_all: bool) -> Array:
    """Its derivative is that of x itself, as weights that are zero rule out the rest: no further pass backward."""

    def replaced(x: Array) -> Array:
        return jnp.where(attended, x, instead)

    def as_it_is(x: Array) -> Array:
        return varying_as(x, attended, instead)

    return lax.cond(jnp.all(attended), as_it_is, replaced, x) if unless_all else replaced(x)


@_replaced.defjvp
def _replaced_jvp(unless_all: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    replaced = _replaced(*primals, unless_all)
    return replaced, varying_as(tangents[0], replaced)
