"""The arrays of a cache, slot by slot, as one value. n is the number of slots, t of new tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jattn._engine.int8 import dequantized

__all__ = ["Slots"]


class Slots(NamedTuple):
    """All that has the axis of the slots, or of new tokens on their way there."""

    keys: Any  # *b k n d
    values: Any  # *b k n e
    positions: Any  # *b n
    key_scales: Any  # *b k n, or None
    value_scales: Any

    def map(self, f: Callable[..., Any], *others: "Slots") -> "Slots":
        """``f(axis, x, *those of others)`` of each that is there, where axis is that of the slots."""
        nd = self.positions.ndim - 1

        def of(name: str) -> Any:
            x = getattr(self, name)
            return None if x is None else f(nd + (name != "positions"), x, *(getattr(y, name) for y in others))

        return Slots(*map(of, self._fields))

    def read(self, key_dtype: Any, value_dtype: Any) -> tuple[Array, Array]:
        """Keys and values, heads after slots: of int8 in these dtypes, others as they are."""
        keys, values = self.keys, self.values
        if self.key_scales is not None:
            keys = dequantized(keys, self.key_scales, key_dtype)
            values = dequantized(values, self.value_scales, value_dtype)
        return jnp.swapaxes(keys, -3, -2), jnp.swapaxes(values, -3, -2)

    def written(self, at: Int[Array, "*b t"], new: "Slots") -> "Slots":
        """With new entries in these slots; n is nowhere."""

        def of(axis: int, old: Any, x: Array) -> Array:
            write = _write if axis < at.ndim else jax.vmap(_write, (0, None, 0))  # of each head
            for _ in at.shape[:-1]:
                write = jax.vmap(write)
            return write(old, at, x)

        return self.map(of, new)

    def taken(self, at: Int[Array, "*b t"]) -> "Slots":
        """What is in these slots."""

        def of(axis: int, x: Any) -> Array:
            return jnp.take_along_axis(x, _beside(x, at, axis), axis)

        return self.map(of)

    def without(self, unused: Bool[Array, "*b n"]) -> "Slots":
        """With zeros in these slots, but for their positions."""

        def zeroed(axis: int, x: Any) -> Array:
            return jnp.where(_beside(x, unused, axis), 0, x)

        return self.map(zeroed)._replace(positions=self.positions)


def _beside(x: Any, of_slots: Array, axis: int) -> Array:
    """What is of slots, with the axes of x, which has heads before them or not, and perhaps features after."""
    aligned = of_slots if axis < of_slots.ndim else of_slots[..., None, :]
    return aligned.reshape(*aligned.shape, *(1,) * (x.ndim - aligned.ndim))


def _write(held: Array, slots: Int[Array, "t"], new: Array) -> Array:
    """Of one example, with the new entries in their slots."""
    if slots.shape[0] == 1:  # XLA would make a slice of a single one, and write it anew, into a copy, where it is read
        slots, new = jnp.append(slots, len(held)), jnp.concatenate([new, new])
    return held.at[slots].set(new, mode="drop")
