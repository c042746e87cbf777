"""Self-attention that goes on where a cache ends."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn._engine import checks
from jattn.cache import Cache
from jattn.masks import Mask, all_of, dense
from jattn.nn.weights import Cached, as_pair

__all__ = ["attend_with_cache", "new_cache", "parts_of"]


def new_cache(layer: Any, batch: tuple[int, ...], room: int, *, window: int | None = None, dtype: Any = None) -> Cache:
    """A cache without tokens for one layer.

    Args:
        layer: a `MultiHeadAttention`.
        batch: the batch axes.
        room: for how many tokens; somewhat more where the devices divide the cache (``layer.sequence_axis``).
        window: how many tokens each token sees, its own among them; then no more slots than that are kept. All by
            default.
        dtype: of keys and values as they are kept, ``jnp.int8`` among others, as in `Cache.empty`; by default that in
            which the layer computes them.
    """
    checks.positive_integers(room=room, window=window)
    kernel = layer.key.kernel
    kept = room if window is None else min(room, window)
    n = parts_of(layer.sequence_axis)
    kept = -(-kept // n) * n
    return Cache.empty(
        batch,
        room=kept,
        num_heads=kernel.shape[1],
        features=kernel.shape[2],
        value_features=layer.value.kernel.shape[2],
        dtype=(layer.key.dtype or kernel.dtype) if dtype is None else dtype,
        ring=window is not None and window < room,
    )


def parts_of(axis: str | None) -> int:
    """Into how many an axis of the mesh that is set divides a sequence."""
    return 1 if axis is None else jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def attend_with_cache(
    layer: Any,
    x: Float[Array, "*b t m"],
    cache: Cache,
    *,
    positions: Int[Array, "..."] | None,
    real: Bool[Array, "..."] | None,
    mask: Mask | Bool[Array, "..."] | None,
    return_weights: bool,
    **options: Any,
) -> Cached:
    """What a layer gives for tokens that come after those of the cache, and the cache with them."""
    x = checks.floating("query", x, "*b t m", 2)
    _check_made_for(layer, cache, x.shape[:-2])
    if positions is not None:
        positions = checks.positions("positions", positions, x.shape[:-2], x.shape[-2])
    cache.check(x.shape[-2], positions, real)
    fresh = cache.is_known_empty
    if positions is None and not (fresh and real is None):  # counted from 0, masks know which keys are out of reach
        positions = cache.next_positions(x.shape[-2], real)
    new = layer.project(x, positions=positions)
    now = cache.append(new.keys, new.values, positions=positions, real=real)
    if fresh:  # then the new tokens are all that there is, and no slot without one need be looked at
        seen = type(new)(*cache.rounded(new.keys, new.values), positions)
        used = None if real is None else dense(jnp.broadcast_to(real, x.shape[:-1])[..., None, None, :])
    else:
        seen = type(new)(now.keys.astype(new.keys.dtype), now.values.astype(new.values.dtype), now.positions)
        positions, used = now.query_positions, now.used
    attended = layer(x, seen, positions=positions, mask=all_of(used, mask), return_weights=return_weights, **options)
    output, weights = as_pair(attended, return_weights)
    return Cached(output, now.cache, weights)


def _check_made_for(layer: Any, cache: Any, batch: tuple[int, ...]) -> None:
    """Raise ValueError unless the cache was made for this layer and batch."""
    if not isinstance(cache, Cache):
        raise ValueError(f"cache must be a jattn.Cache, such as jattn.nn.new_cache makes. Got {type(cache).__name__}.")
    kernels = (projection.kernel.shape for projection in (layer.key, layer.value))
    own = [(*batch, heads, "n", features) for _, heads, features in kernels]
    given = [(*x.shape[:-2], "n", x.shape[-1]) for x in (cache.keys, cache.values)]
    if own != given:
        raise ValueError(
            f"cache must hold keys {own[0]} and values {own[1]} of this layer and batch. Got {given[0]} and "
            f"{given[1]}. Make it by jattn.nn.new_cache."
        )
