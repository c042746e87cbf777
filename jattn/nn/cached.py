"""Self-attention that goes on where a cache ends."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from jattn._engine import checks
from jattn.cache import Cache
from jattn.masks import Mask, all_of
from jattn.nn.weights import Cached, as_pair

__all__ = ["attend_with_cache", "new_cache"]


def new_cache(layer: Any, batch: tuple[int, ...], room: int, *, window: int | None = None, dtype: Any = None) -> Cache:
    """A cache without tokens for one layer.

    Args:
        layer: a `MultiHeadAttention`.
        batch: the batch axes.
        room: for how many tokens.
        window: how many tokens each token sees, its own among them; then no more slots than that are kept. All by
            default.
        dtype: of keys and values as they are kept; by default that in which the layer computes them.
    """
    kernel = layer.key.kernel
    kept = room if window is None else min(room, window)
    return Cache.empty(
        batch,
        room=kept,
        num_heads=kernel.shape[1],
        features=kernel.shape[2],
        value_features=layer.value.kernel.shape[2],
        dtype=(layer.key.dtype or kernel.dtype) if dtype is None else dtype,
        ring=kept < room,
    )


def attend_with_cache(
    layer: Any,
    x: Float[Array, "*b t m"],
    cache: Cache,
    *,
    positions: Int[Array, "*b t"] | None,
    real: Bool[Array, "*b t"] | None,
    mask: Mask | Bool[Array, "..."] | None,
    return_weights: bool,
    **options: Any,
) -> Cached:
    """What a layer gives for tokens that come after those of the cache, and the cache with them."""
    x = checks.floating("query", x, "*b t m", 2)
    if cache.is_known_empty and positions is None and real is None:  # then masks know which keys are out of reach
        new = layer.project(x)
        kept = (
            y.astype(held.dtype).astype(y.dtype) for y, held in ((new.keys, cache.keys), (new.values, cache.values))
        )
        attended = layer(x, type(new)(*kept), mask=mask, return_weights=return_weights, **options)
        output, weights = as_pair(attended, return_weights)
        return Cached(output, cache.append(new.keys, new.values).cache, weights)
    if positions is None:
        positions = cache.next_positions(x.shape[-2], real)
    positions = checks.positions("positions", positions, x.shape[:-2], x.shape[-2])
    new = layer.project(x, positions=positions)
    now = cache.append(new.keys, new.values, positions=positions, real=real)
    seen = type(new)(now.keys.astype(new.keys.dtype), now.values.astype(new.values.dtype), now.positions)
    attended = layer(
        x,
        seen,
        positions=now.query_positions,
        mask=all_of(now.used, mask),
        return_weights=return_weights,
        **options,
    )
    output, weights = as_pair(attended, return_weights)
    return Cached(output, now.cache, weights)
