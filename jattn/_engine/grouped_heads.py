"""Query heads that share a key head, side by side in one axis or another.

g query heads for each of k key heads · r query rows of a tile · w keys of a tile
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

__all__ = ["as_queries", "by_head", "by_key_head", "by_query_head", "in_rows", "repeat_heads"]


def repeat_heads(x: Shaped[Array, "*b s k d"], h: int) -> Shaped[Array, "*b s h d"]:
    """Each key or value head, once for each of the h / k consecutive query heads that share it."""
    *batch, s, k, d = x.shape
    if k == h:
        return x
    # As jnp.repeat, which asks for a sharding where axes of a mesh are explicit.
    return jnp.broadcast_to(x[..., None, :], (*batch, s, k, h // k, d)).reshape(*batch, s, h, d)


def as_queries(query: Float[Array, "*b t h c"], k: int) -> Float[Array, "*b gt k c"]:
    """The g query heads that share a key head as so many queries of it, those of a head one after the other.

    A repeated key would be kept in memory: for one new token, that is g times a cache.
    """
    *batch, t, h, c = query.shape
    if h == k:
        return query
    return jnp.moveaxis(query.reshape(*batch, t, k, h // k, c), -2, -4).reshape(*batch, h // k * t, k, c)


def by_key_head(x: Shaped[Array, "*b h t s"], k: int) -> Shaped[Array, "*b k gt s"]:
    """What there is of each pair, as those queries have it."""
    *batch, h, t, s = x.shape
    return x.reshape(*batch, k, h // k * t, s)


def by_query_head(x: Shaped[Array, "*b k gt s"], h: int) -> Shaped[Array, "*b h t s"]:
    """The same for each head and query again."""
    *batch, k, rows, s = x.shape
    return x.reshape(*batch, h, rows // (h // k), s)


def in_rows(x: Shaped[Array, "..."], g: int, rows: int) -> Shaped[Array, "rg _"]:
    x = x.reshape((1,) * (3 - x.ndim) + x.shape)
    if g == 1:
        return jnp.broadcast_to(x[0], (rows, x.shape[-1]))
    return jnp.swapaxes(jnp.broadcast_to(x, (g, rows, x.shape[-1])), 0, 1).reshape(rows * g, -1)


def by_head(x: Float[Array, "rg w"], g: int) -> Float[Array, "g r w"]:
    if g == 1:
        return x[None]
    return jnp.swapaxes(x.reshape(-1, g, x.shape[-1]), 0, 1)
