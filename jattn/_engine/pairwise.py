"""A sum over features for every pair of query and key, and what such sums are of.

Axes beyond the usual: n features.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["square_of_product", "square_of_quotient", "sum_over_features", "tanh_of_sum"]

_CHUNK = 16  # features


# Compiled once: called outside of `jax.jit`, the scan would be compiled at each call.
@functools.partial(jax.jit, static_argnames="term")
def sum_over_features(
    term: Callable[[Array, Array, Array], Array],
    query: Float[Array, "*b t n"],
    key: Float[Array, "*b s n"],
    unit: Float[Array, "n"],
) -> Float[Array, "*b t s"]:
    """``sum over n of term(query, key, unit)``, a chunk of features at a time.

    Of each chunk XLA on a CPU makes one loop over t s, forward and backward. Of the sum over the last axis of an array
    t s n it makes one that is ten times as slow, and in the backward pass that array.
    """

    def add(x: Array, features: tuple[Array, Array, Array]) -> tuple[Array, None]:
        for q, k, u in zip(*features, strict=True):
            x = x + term(q[..., :, None], k[..., None, :], u)
        return x, None

    add = jax.checkpoint(add, prevent_cse=False)
    features = (jnp.moveaxis(query, -1, 0), jnp.moveaxis(key, -1, 0), unit)
    whole = len(unit) - len(unit) % _CHUNK
    # Zeros like a sum of both: inside `jax.shard_map` they vary over the same axes, as a scan wants them to.
    x = jnp.zeros_like(query[..., :, None, :1].sum(-1) + key[..., None, :, :1].sum(-1))
    if whole:
        x, _ = lax.scan(add, x, tuple(a[:whole].reshape(-1, _CHUNK, *a.shape[1:]) for a in features))
    return add(x, tuple(a[whole:] for a in features))[0] if whole < len(unit) else x


def tanh_of_sum(query: Array, key: Array, unit: Array) -> Array:
    return unit * jnp.tanh(query + key)


def square_of_product(query: Array, key: Array, unit: Array) -> Array:
    return ((query - key) * unit) ** 2


def square_of_quotient(query: Array, key: Array, unit: Array) -> Array:
    return ((query - key) / unit) ** 2
