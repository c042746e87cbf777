"""What devices along an axis of a mesh send each other, inside of a `jax.shard_map` over it.

Where other axes are automatic, it is messages from one device to another: by a collective among some of the axes XLA
would first bring together what it divides over the others.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

__all__ = ["automatic_beside", "exchanged_over", "gathered_over"]


def gathered_over(x: Shaped[Array, "..."], axis: Any, at: int) -> Shaped[Array, "..."]:
    """The parts of all devices, side by side along an array's axis ``at``, counted from the end."""
    if automatic_beside(axis) == 1:
        return lax.all_gather(x, axis, axis=x.ndim + at, tiled=True)
    return _from_each(x, axis, at, lambda x, _: x)


def exchanged_over(x: Shaped[Array, "..."], axis: Any, split: int, joined: int) -> Shaped[Array, "..."]:
    """Of an array that is cut along ``split``, each device's own piece of all devices' parts, side by side along
    ``joined``."""
    if automatic_beside(axis) == 1:
        return lax.all_to_all(x, axis, x.ndim + split, x.ndim + joined, tiled=True)
    length = x.shape[split] // lax.axis_size(axis)
    return _from_each(
        x, axis, joined, lambda x, to: lax.dynamic_slice_in_dim(x, to * length, length, axis=x.ndim + split)
    )


def automatic_beside(axis: Any) -> int:
    """Over how many devices XLA may divide arrays by itself, over other axes of the mesh than these."""
    mesh = jax.sharding.get_abstract_mesh()
    own = (axis,) if isinstance(axis, str) else tuple(axis)
    return math.prod(mesh.shape[name] for name in mesh.auto_axes if name not in own)


def _from_each(x: Array, axis: Any, at: int, piece_for: Callable[[Array, Array], Array]) -> Array:
    """``piece_for(x, device)`` of every device for this one, side by side in their order."""
    n, own = lax.axis_size(axis), lax.axis_index(axis)
    pieces = []
    for by in range(n):
        piece = piece_for(x, (own + by) % n)
        pieces.append(lax.ppermute(piece, axis, [(i, (i + by) % n) for i in range(n)]) if by else piece)
    # The piece of step ``by`` is that of the device so many before.
    in_order = jnp.stack(pieces)[(own - jnp.arange(n)) % n]
    return jnp.concatenate(list(in_order), axis=at)
