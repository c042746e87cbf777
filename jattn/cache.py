"""Keys and values seen so far, for attention that goes on: token by token, or by chunks of any length.

n is the number of slots, t of new tokens. A cache is a pytree: it is compiled, scanned, mapped, donated and saved as
any other. What its unused slots hold has no effect.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int, Int8

from jattn._engine import checks
from jattn._engine.int8 import quantized
from jattn._engine.pytree import Pytree
from jattn._engine.slots import Slots
from jattn._mask import DenseMask, Mask

__all__ = ["Appended", "Cache", "Used", "positions_of"]

UNUSED = -1  # the position of a slot that holds no token


def positions_of(real: Bool[Array, "*b t"]) -> Int[Array, "*b t"]:
    """Of each token, how many real ones stand before it."""
    return jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)


class Used(DenseMask):
    """Which slots hold a token; the others hold zeros, or a token of before, which can do no harm."""

    @property
    def finite_keys(self) -> bool:
        return True


class Appended(NamedTuple):
    """What `Cache.append` returns: what new queries attend to, and the cache for those after them."""

    keys: Float[Array, "*b s k d"]
    values: Float[Array, "*b s k e"]
    positions: Int[Array, "*b s"]  # of the keys
    used: Mask  # which of them are tokens
    query_positions: Int[Array, "*b t"]  # of the new tokens
    cache: "Cache"


class Cache(Pytree):
    """Keys and values in slots, and the positions of those that are used. `Cache.empty` makes one; in one of your own
    arrays, zeros are put where there is no token.

    Attributes:
        keys: ``*b k n d``: heads first, so that what a head attends to lies together.
        values: ``*b k n e``.
        positions: ``*b n``, of the token in each slot; -1 where there is none.
        length: ``*b``, how many tokens each example has been given.
        ring: whether a token takes the place of the one n tokens before it.
        key_scales, value_scales: ``*b k n``, what keys and values kept as int8 are multiples of; None of others.

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

    keys: Float[Array, "*b k n d"] | Int8[Array, "*b k n d"]
    values: Float[Array, "*b k n e"] | Int8[Array, "*b k n e"]
    positions: Int[Array | np.ndarray, "*b n"]
    length: Int[Array | np.ndarray, "*b"]
    ring: bool = False
    key_scales: Float32[Array, "*b k n"] | None = None
    value_scales: Float32[Array, "*b k n"] | None = None

    def __post_init__(self) -> None:
        """Arrays of the caller's may hold anything where there is no token."""
        if all(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(self._slots)):
            for name, x in self._slots.without(jnp.asarray(self.positions) < 0)._asdict().items():
                object.__setattr__(self, name, x)

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
            dtype: of keys and values as they are kept; they are rounded to it. ``jnp.int8`` keeps of each token and
                head ``round(x / scale)`` and ``scale = max|x| / 127``: what is read back is off by half a scale at
                most, beside the rounding of the dtype that it is read in, and NaN where x is not finite throughout.
                No gradient comes back through int8, so that such a cache is for inference.
            ring: whether tokens that find no free slot take the oldest one's, for windows of at most n tokens.
                Otherwise there must be room for all.
        """
        checks.positive_integers(room=room, num_heads=num_heads, features=features, value_features=value_features)
        checks.flag("ring", ring)
        if not isinstance(batch, tuple) or not all(map(checks.is_length, batch)):
            raise ValueError(f"batch must be a tuple, the lengths of the axes *b. Got {batch!r:.80}.")
        int8 = np.dtype(dtype) == np.int8
        if not int8 and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be floating point or int8. Got {np.dtype(dtype)}.")
        value_features = features if value_features is None else value_features
        numbers: Any = jnp if any(map(checks.is_symbol, batch)) else np  # NumPy's are known to be empty while tracing
        return Cache(
            jnp.zeros((*batch, num_heads, room, features), dtype),
            jnp.zeros((*batch, num_heads, room, value_features), dtype),
            numbers.full((*batch, room), UNUSED, np.int32),
            numbers.zeros(batch, np.int32),
            bool(ring),
            *(jnp.zeros((*batch, num_heads, room), jnp.float32) if int8 else None for _ in range(2)),
        )

    @property
    def is_known_empty(self) -> bool:
        """Whether it is known, also while tracing, that there is no token."""
        return checks.is_concrete(self.length) and not np.asarray(self.length).any()

    @property
    def room(self) -> int:
        """n, how many slots each example has."""
        return self.keys.shape[-2]

    def next_positions(self, t: int, real: Bool[Array, "*b t"] | None = None) -> Int[Array, "*b t"]:
        """The positions of t tokens that come next, if all positions are counted from 0; of padding that before it."""
        steps = jnp.arange(t, dtype=jnp.int32) if real is None else positions_of(real).astype(jnp.int32)
        return jnp.asarray(self.length)[..., None] + jnp.broadcast_to(steps, (*self.length.shape, t))

    def append(
        self,
        keys: Float[Array, "*b t k d"],
        values: Float[Array, "*b t k e"],
        *,
        positions: Int[Array, "..."] | None = None,
        real: Bool[Array, "..."] | None = None,
    ) -> Appended:
        """With further tokens, and what these attend to.

        Args:
            keys: ``*b t k d``.
            values: ``*b t k e``.
            positions: of the tokens, from 0; by default they are counted on.
            real: which of them are tokens and no padding, on whichever side; all by default. Padding is not kept.

        Returns:
            `Appended`. A ring gives more tokens than one both what it held and the new ones, as the first of them see
            what the last of them replace. Of int8, keys and values are read in the dtypes of the new ones.

        Raises:
            ValueError: if the shapes are not those of the cache; or if there is no room, which can be known only where
                ``length`` is.
        """
        for name, x, own in (("keys", keys, self.keys), ("values", values, self.values)):
            x = checks.floating(name, x, "*b t k d", 3)
            axes = (*self.length.shape, "t", own.shape[-3], own.shape[-1])
            if x.shape[:-3] != axes[:-3] or x.shape[-2:] != axes[-2:] or x.shape[-3] != keys.shape[-3]:
                raise ValueError(f"{name} must have the axes {axes} of this cache. Got shape {x.shape}.")
        t = keys.shape[-3]
        self.check(t, positions, real)
        positions = self.next_positions(t, real) if positions is None else positions.astype(jnp.int32)
        positions = jnp.broadcast_to(positions, (*self.length.shape, t))
        real = jnp.ones(positions.shape, bool) if real is None else jnp.broadcast_to(real, positions.shape)
        held, new = self._slots, self._kept(keys, values, jnp.where(real, positions, UNUSED))
        seen = after = held.written(self._slots_of(real), new)
        cache = self._replaced(after, self.length + real.sum(-1, dtype=jnp.int32))
        if self.ring and (checks.is_symbol(t) or t > 1):
            seen = held.map(lambda axis, *x: jnp.concatenate(x, axis), new.without(~real))
        used = Used((seen.positions >= 0)[..., None, None, :])
        keys, values = seen.read(keys.dtype, values.dtype)
        return Appended(keys, values, seen.positions, used=used, query_positions=positions, cache=cache)

    def check(self, t: int, positions: Any = None, real: Any = None) -> None:
        """Raise ValueError if it is known that t tokens can't be appended, at these positions, of which some are real.

        Args:
            t: how many.
            positions, real: as in `append`.
        """
        shape = (*self.length.shape, t)
        for name, x in (("positions", positions), ("real", real)):
            if x is not None and not (x.ndim and x.shape[-1] == t and checks.broadcasts_to(x.shape, shape)):
                raise ValueError(f"{name} must have one entry for each of {t} tokens, {shape}. Got shape {x.shape}.")
        if positions is not None and not jnp.issubdtype(positions.dtype, jnp.integer):
            raise ValueError(f"positions must be integers where there is a cache. Got {positions.dtype}.")
        if real is not None and real.dtype != jnp.bool_:
            raise ValueError(f"real must be boolean, True where a token is no padding. Got {real.dtype}.")
        if any(map(checks.is_symbol, shape)) or (real is not None and not checks.is_concrete(real)):
            return
        real = np.broadcast_to(True if real is None else np.asarray(real), shape)
        if positions is not None and checks.is_concrete(positions):
            first = np.min(np.broadcast_to(np.asarray(positions), shape), initial=0, where=real)
            if first < 0:
                raise ValueError(f"positions must be 0 or more. Got {first}.")
        if not self.ring and checks.is_concrete(self.length):
            most = int(np.max(np.asarray(self.length) + real.sum(-1), initial=0))
            if most > self.room:
                raise ValueError(
                    f"cache must have room for {most} tokens. Got one of {self.room} slots. Make it larger by "
                    f"cache.grown({most})."
                )

    def rounded(
        self, keys: Float[Array, "*b t k d"], values: Float[Array, "*b t k e"]
    ) -> tuple[Float[Array, "*b t k d"], Float[Array, "*b t k e"]]:
        """Keys and values as what is kept of them is read, in their own dtypes."""
        kept = self._kept(keys, values, jnp.zeros(keys.shape[:-2])).read(keys.dtype, values.dtype)
        return kept[0].astype(keys.dtype), kept[1].astype(values.dtype)

    def grown(self, room: int) -> "Cache":
        """With so many slots, at least as many as before; not for a ring, whose tokens stand where its size says."""
        if self.ring:
            raise ValueError("cache must not be a ring to grow. Got one. Make it of its final size.")
        more = checks.number("room", room, f"[{self.room}, inf)", integer=True) - self.room

        def padded(axis: int, x: Any, fill: int = 0) -> Array:
            return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)], constant_values=fill)

        positions = padded(self.length.ndim, jnp.asarray(self.positions), UNUSED)
        return self._replaced(self._slots.map(padded)._replace(positions=positions), self.length)

    def cropped(self, length: Int[ArrayLike, "*b"]) -> "Cache":
        """As it was when each example had been given so many tokens, to take back those that were rejected.

        What a ring has replaced since is gone: it needs as many slots beside its window as tokens may be taken back.

        Args:
            length: ``*b``, from 0 to how many tokens the example has been given; where that is not known while tracing,
                as near to it as that.
        """
        length = self._checked_length(length)
        n, number = self.room, jnp.broadcast_to(jnp.arange(self.room, dtype=jnp.int32), self.positions.shape)
        last = self.length[..., None] - 1
        token = last - (last - number) % n if self.ring else number  # which one a slot holds, counted from 0
        kept = token < length[..., None]
        slots = self._slots.without(jnp.logical_not(kept))
        return self._replaced(slots._replace(positions=jnp.where(kept, self.positions, UNUSED)), length)

    def rewound(self, before: "Cache", n: Int[ArrayLike, "*b"], since: int) -> "Cache":
        """As it was n tokens after an earlier cache, of each example, without those that came then.

        What a ring has replaced is taken from the earlier one. No other slots are touched, so that it costs no more
        than to append as many tokens.

        Args:
            before: the earlier cache.
            n: ``*b``, how many of the tokens since then are kept.
            since: how many there were at most; of a ring no more than it has slots.

        Example (three tokens, of which the first is kept; a ring had put the others in place of two before them):

            >>> x = jax.random.normal(jax.random.key(0), (1, 9, 1, 8))
            >>> before = Cache.empty((1,), room=4, num_heads=1, features=8, ring=True).append(x[:, :6], x[:, :6]).cache
            >>> after = before.append(x[:, 6:], x[:, 6:]).cache
            >>> after.positions, after.rewound(before, 1, since=3).positions
            (Array([[8, 5, 6, 7]], dtype=int32), Array([[4, 5, 6, 3]], dtype=int32))
        """
        if self.ring and checks.number("since", since, "[1, inf)", integer=True) > self.room:
            raise ValueError(f"since must be at most the {self.room} slots of a ring. Got {since}.")
        length = self._checked_length(before.length + jnp.asarray(n, jnp.int32))
        token = before.next_positions(since)  # its number from 0
        gone = (token >= length[..., None]) & (token < self.length[..., None])
        if self.ring:
            token = token % self.room
            earlier = before._slots.taken(token)
        else:  # where there was none
            blank = self._slots.map(lambda axis, x: jnp.zeros((*x.shape[:axis], since, *x.shape[axis + 1 :]), x.dtype))
            earlier = blank._replace(positions=jnp.full_like(blank.positions, UNUSED))
        return self._replaced(self._slots.written(jnp.where(gone, token, self.room), earlier), length)

    def reordered(self, examples: Int[Array, "b"]) -> "Cache":
        """With other examples along the first axis, by number: those of the best beams, or one several times.

        Example (three texts of six tokens share the first four, which are seen once):

            >>> x = jax.random.normal(jax.random.key(0), (3, 6, 1, 8)).at[:, :4].set(1.0)
            >>> prefix = Cache.empty((1,), room=6, num_heads=1, features=8).append(x[:1, :4], x[:1, :4]).cache
            >>> shared = prefix.reordered(jnp.zeros(3, int))
            >>> now = shared.append(x[:, 4:], x[:, 4:])
            >>> bool(jnp.array_equal(now.keys, x)), now.query_positions[2]
            (True, Array([4, 5], dtype=int32))
        """
        if not self.length.ndim:
            raise ValueError("cache must have a batch axis to be reordered. Got one of a single example.")
        numbers = checks.array("examples", examples)
        if numbers.ndim != 1 or not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise ValueError(f"examples must be integers on one axis. Got {numbers.dtype} of shape {numbers.shape}.")
        _check_between("examples", examples, self.length.shape[0] - 1, "the examples' numbers")
        return jax.tree.map(lambda x: jnp.take(x, numbers, axis=0), self)

    @property
    def _slots(self) -> Slots:
        return Slots(self.keys, self.values, self.positions, self.key_scales, self.value_scales)

    def _slots_of(self, real: Bool[Array, "*b t"]) -> Int[Array, "*b t"]:
        """Where each new token goes; n, which is nowhere, for padding and for what a later one replaces."""
        rank = jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1
        number = jnp.asarray(self.length)[..., None] + rank
        if not self.ring:
            return jnp.where(real, number, self.room)
        last = rank[..., -1:]
        return jnp.where(real & (last - rank < self.room), number % self.room, self.room)

    def _kept(self, keys: Array, values: Array, positions: Any) -> Slots:
        """What is kept of new tokens."""
        keys, values = jnp.swapaxes(keys, -3, -2), jnp.swapaxes(values, -3, -2)
        if self.key_scales is None:
            return Slots(keys.astype(self.keys.dtype), values.astype(self.values.dtype), positions, None, None)
        (keys, key_scales), (values, value_scales) = quantized(keys), quantized(values)
        return Slots(keys, values, positions, key_scales, value_scales)

    def _replaced(self, slots: Slots, length: Any) -> "Cache":
        """With other slots, of which those that are unused hold what can do no harm."""
        return self._unflatten(self._flatten()[1], (*slots[:3], length, *slots[3:]))

    def _checked_length(self, length: Any) -> Array:
        batch, numbers = self.length.shape, jnp.asarray(checks.integers("length", length), jnp.int32)
        if not checks.broadcasts_to(numbers.shape, batch):
            raise ValueError(f"length must be one number for each example, {batch}. Got shape {numbers.shape}.")
        _check_between("length", length, self.length, "what the example has been given")
        return jnp.clip(jnp.broadcast_to(numbers, batch), 0, self.length)


def _check_between(name: str, x: Any, most: Any, what: str) -> None:
    """Raise ValueError unless numbers lie between 0 and others, as far as both are known."""
    if not checks.is_concrete(x):
        return
    x = np.asarray(x)
    if np.any(x < 0) and not checks.is_concrete(most):
        raise ValueError(f"{name} must be 0 or more. Got {x.min()}.")
    if checks.is_concrete(most):
        x, most = np.broadcast_arrays(x, np.asarray(most))
        wrong = (x < 0) | (x > most)
        if wrong.any():
            raise ValueError(f"{name} must lie between 0 and {most[wrong][0]}, {what}. Got {x[wrong][0]}.")
