"""Keys and values seen so far, for attention that goes on: token by token, or by chunks of any length.

n is the number of slots, t of new tokens. A cache is a pytree: it is compiled, scanned, mapped, donated and saved as
any other. What its unused slots hold has no effect.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jattn._engine import checks
from jattn._engine.pytree import Pytree
from jattn.masks import Mask, dense

__all__ = ["Appended", "Cache", "positions_of"]

UNUSED = -1  # the position of a slot that holds no token


def positions_of(real: Bool[Array, "*b t"]) -> Int[Array, "*b t"]:
    """Of each token, how many real ones stand before it."""
    return jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)


class _Slots(NamedTuple):
    keys: Any
    values: Any
    positions: Any


class Appended(NamedTuple):
    """What `Cache.append` returns: what new queries attend to, and the cache for those after them."""

    keys: Float[Array, "*b s k d"]
    values: Float[Array, "*b s k e"]
    positions: Int[Array, "*b s"]  # of the keys
    used: Mask  # which of them are tokens
    query_positions: Int[Array, "*b t"]  # of the new tokens
    cache: "Cache"


class Cache(Pytree):
    """Keys and values in slots, and the positions of those that are used. `Cache.empty` makes one.

    Attributes:
        keys: ``*b n k d``.
        values: ``*b n k e``.
        positions: ``*b n``, of the token in each slot; -1 where there is none.
        length: ``*b``, how many tokens each example has been given.
        ring: whether a token takes the place of the one n tokens before it.

    Example (three tokens, then a fourth, of one head):

        >>> import jattn
        >>> from jattn import masks
        >>> x = jax.random.normal(jax.random.key(0), (1, 4, 1, 8))
        >>> cache = Cache.empty((1,), room=6, num_heads=1, features=8)
        >>> for new in (x[:, :3], x[:, 3:]):
        ...     now = cache.append(new, new)
        ...     positions = dict(query_positions=now.query_positions, key_positions=now.positions)
        ...     output = jattn.attention(new, now.keys, now.values, mask=masks.causal() & now.used, **positions)
        ...     cache = now.cache
        >>> bool(jnp.allclose(output, jattn.attention(x, x, x, mask=masks.causal())[:, 3:], atol=1e-6))
        True
    """

    keys: Float[Array, "*b n k d"]
    values: Float[Array, "*b n k e"]
    positions: Int[Array | np.ndarray, "*b n"]
    length: Int[Array | np.ndarray, "*b"]
    ring: bool = False

    @classmethod
    def empty(
        cls,
        batch: tuple[int, ...],
        *,
        room: int,
        num_heads: int,
        features: int,
        value_features: int | None = None,
        dtype: Any = jnp.float32,
        ring: bool = False,
    ) -> "Cache":
        """One without tokens.

        Args:
            batch: the batch axes, ``*b``.
            room: n, how many slots each example has.
            num_heads: k, of keys and values.
            features: d, the width of a key.
            value_features: e, the width of a value; d by default.
            dtype: of keys and values as they are kept; they are rounded to it.
            ring: whether tokens that find no free slot take the oldest one's, for windows of at most n tokens.
                Otherwise there must be room for all.
        """
        checks.positive_integers(room=room, num_heads=num_heads, features=features, value_features=value_features)
        checks.flag("ring", ring)
        value_features = features if value_features is None else value_features
        return Cache(
            jnp.zeros((*batch, room, num_heads, features), dtype),
            jnp.zeros((*batch, room, num_heads, value_features), dtype),
            np.full((*batch, room), UNUSED, np.int32),  # NumPy's, so that it is known to be empty while tracing
            np.zeros(batch, np.int32),
            bool(ring),
        )

    @property
    def is_known_empty(self) -> bool:
        """Whether it is known, also while tracing, that there is no token."""
        return checks.is_concrete(self.length) and not np.asarray(self.length).any()

    @property
    def room(self) -> int:
        """n, how many slots each example has."""
        return self.keys.shape[-3]

    def next_positions(self, t: int, real: Bool[Array, "*b t"] | None = None) -> Int[Array, "*b t"]:
        """The positions of t tokens that come next, if all positions are counted from 0; of padding that before it."""
        steps = jnp.arange(t) if real is None else positions_of(real)
        return (jnp.asarray(self.length)[..., None] + steps).astype(jnp.int32)

    def append(
        self,
        keys: Float[Array, "*b t k d"],
        values: Float[Array, "*b t k e"],
        *,
        positions: Int[Array, "*b t"] | None = None,
        real: Bool[Array, "*b t"] | None = None,
    ) -> Appended:
        """With further tokens, and what these attend to.

        Args:
            keys: ``*b t k d``.
            values: ``*b t k e``.
            positions: of the tokens, from 0; by default they are counted on.
            real: which of them are tokens and no padding, on whichever side; all by default. Padding is not kept.

        Returns:
            `Appended`. A ring gives more tokens than one both what it held and the new ones, as the first of them see
            what the last of them replace.

        Raises:
            ValueError: if the shapes are not those of the cache; or if there is no room, which can be known only where
                ``length`` is.
        """
        t = self._check(keys, values, positions, real)
        positions = self.next_positions(t, real) if positions is None else positions.astype(jnp.int32)
        positions = jnp.broadcast_to(positions, (*self.length.shape, t))
        real = jnp.ones(positions.shape, bool) if real is None else jnp.broadcast_to(real, positions.shape)
        new = keys.astype(self.keys.dtype), values.astype(self.values.dtype), jnp.where(real, positions, UNUSED)
        slots = self._slots(real)
        write = _write
        for _ in self.length.shape:
            write = jax.vmap(write)
        held = _Slots(self.keys, self.values, self.positions)
        after = _Slots(*(write(old, slots, x) for old, x in zip(held, new, strict=True)))
        cache = self._replaced(after, self.length + real.sum(-1, dtype=jnp.int32))
        seen = after
        if self.ring and t > 1:
            axis = self.length.ndim
            seen = _Slots(*(jnp.concatenate([old, x], axis=axis) for old, x in zip(held, new, strict=True)))
        used = dense((seen.positions >= 0)[..., None, None, :])
        return Appended(*seen, used=used, query_positions=positions, cache=cache)

    def grown(self, room: int) -> "Cache":
        """With so many slots, at least as many as before; not for a ring, whose tokens stand where its size says."""
        if self.ring:
            raise ValueError("cache must not be a ring to grow. Got one. Make it of its final size.")
        more = checks.number("room", room, f"[{self.room}, inf)", integer=True) - self.room

        def pad(x: Any, fill: int = 0) -> Array:
            widths = [(0, more if i == self.length.ndim else 0) for i in range(x.ndim)]
            return jnp.pad(x, widths, constant_values=fill)

        return self._replaced(_Slots(pad(self.keys), pad(self.values), pad(self.positions, UNUSED)), self.length)

    def cropped(self, length: Int[ArrayLike, "*b"]) -> "Cache":
        """As it was when each example had been given so many tokens, to take back those that were rejected.

        What a ring has replaced since is gone: it needs as many slots beside its window as tokens may be taken back.
        """
        length = jnp.minimum(jnp.asarray(length, jnp.int32), self.length)
        n, slots = self.room, jnp.arange(self.room)
        last = self.length[..., None] - 1
        number = last - (last - slots) % n if self.ring else slots  # which token a slot holds, counted from 0
        kept = number < length[..., None]
        return self._replaced(_Slots(self.keys, self.values, jnp.where(kept, self.positions, UNUSED)), length)

    def rewound(self, before: "Cache", n: Int[ArrayLike, "*b"]) -> "Cache":
        """As it was n tokens after an earlier cache, of each example, without those that came then.

        What a ring has replaced since is taken from ``before``, from which no more tokens may have come than it has
        slots.

        Example (three tokens, of which the first is kept; a ring had put the others in place of two before them):

            >>> x = jax.random.normal(jax.random.key(0), (1, 9, 1, 8))
            >>> before = Cache.empty((1,), room=4, num_heads=1, features=8, ring=True).append(x[:, :6], x[:, :6]).cache
            >>> after = before.append(x[:, 6:], x[:, 6:]).cache
            >>> after.positions, after.rewound(before, 1).positions
            (Array([[8, 5, 6, 7]], dtype=int32), Array([[4, 5, 6, 3]], dtype=int32))
        """
        back = self.cropped(before.length + jnp.asarray(n, jnp.int32))
        if not self.ring:
            return back
        taken = back.positions != self.positions  # the slots of those that came then

        def chosen(x: Any, earlier: Any) -> Any:
            if x.ndim < taken.ndim:  # the length, which has no slots
                return x
            return jnp.where(taken.reshape(*taken.shape, *(1,) * (x.ndim - taken.ndim)), earlier, x)

        return jax.tree.map(chosen, back, before)

    def reordered(self, examples: Int[Array, "b"]) -> "Cache":
        """With other examples along the first axis, by number: those of the best beams, or one several times."""
        return jax.tree.map(lambda x: jnp.take(x, examples, axis=0), self)

    def _slots(self, real: Bool[Array, "*b t"]) -> Int[Array, "*b t"]:
        """Where each new token goes; n, which is nowhere, for padding and for what a later one replaces."""
        rank = jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1
        number = jnp.asarray(self.length)[..., None] + rank
        if not self.ring:
            return jnp.where(real, number, self.room)
        last = rank[..., -1:]
        return jnp.where(real & (last - rank < self.room), number % self.room, self.room)

    def _replaced(self, slots: "_Slots", length: Any) -> "Cache":
        return Cache(*slots, length, self.ring)

    def _check(self, keys: Array, values: Array, positions: Any, real: Any) -> int:
        """How many new tokens there are."""
        batch = self.length.shape
        for name, x, own in (("keys", keys, self.keys), ("values", values, self.values)):
            x = checks.floating(name, x, "*b t k d", 3)
            if x.shape[:-3] != batch or x.shape[-2:] != own.shape[-2:] or x.shape[-3] != keys.shape[-3]:
                raise ValueError(
                    f"{name} must have the axes {(*batch, 't', *own.shape[-2:])} of this cache. Got shape {x.shape}."
                )
        t = keys.shape[-3]
        for name, x in (("positions", positions), ("real", real)):
            if x is not None and (jnp.ndim(x) == 0 or jnp.shape(x)[-1] != t):
                raise ValueError(f"{name} must have one entry for each of {t} tokens. Got shape {jnp.shape(x)}.")
        if checks.is_concrete(self.length) and (real is None or checks.is_concrete(real)):
            new = t if real is None else np.asarray(real).sum(-1)
            most = int(np.max(np.asarray(self.length) + new, initial=0))
            if most > self.room and not self.ring:
                raise ValueError(
                    f"cache must have room for {most} tokens. Got one of {self.room} slots. Make it larger by "
                    f"cache.grown({most})."
                )
        return t


def _write(held: Array, slots: Int[Array, "t"], new: Array) -> Array:
    """Of one example, with the new entries in their slots."""
    return held.at[slots].set(new, mode="drop")
