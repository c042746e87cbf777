"""What dropout keeps: random bits that belong to a position, so that whoever computes a part draws the same ones.

`jax.random` draws the bits of a whole array; here those of any block are a plain formula of its indices. Being nothing
but additions, rotations and exclusive ors of each element, it becomes one loop with the product that it decides about,
where ``jax.random.bernoulli`` is a chain of loops on a CPU and takes about four times as long.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, UInt32

__all__ = ["Words", "dropout_keep", "dropout_keep_at", "threefry2x32", "words_of"]

Words = tuple[UInt32[Array, ""], UInt32[Array, ""]]  # what is random in it

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def dropout_keep(rng: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Which elements survive dropout, each with probability ``1 - rate``.

    The bits of an element depend on rng, on where it is along the last axis and along the one before, and on the
    number of its matrix among all those of the leading axes. They do not depend on how long the last two axes are.

    Args:
        rng: a ``jax.random.key`` of any kind.
        rate: in [0, 1).
        shape: ``*b h t s`` for weights; any other will do.

    Example:

        >>> print(dropout_keep(jax.random.key(0), 0.5, (2, 4)))
        [[False  True  True  True]
         [ True  True False  True]]
    """
    *lead, rows, columns = (1,) * (2 - len(shape)) + shape
    ones = (1,) * len(lead)
    matrix = jnp.arange(math.prod(lead)).reshape(*lead, 1, 1)
    row, column = jnp.arange(rows).reshape(*ones, rows, 1), jnp.arange(columns).reshape(*ones, 1, columns)
    return dropout_keep_at(rng, rate, matrix, row, column).reshape(shape)


def words_of(rng: PRNGKeyArray) -> Words:
    """The key of the cipher."""
    words = jax.random.bits(rng, (2,), jnp.uint32)
    return words[0], words[1]


def dropout_keep_at(
    rng: PRNGKeyArray | Words,
    rate: float,
    matrix: Int[Array, "..."],
    row: Int[Array, "..."],
    column: Int[Array, "..."],
    *,
    rolled: bool = False,
) -> Bool[Array, "..."]:
    """`dropout_keep` of the elements at these indices, which broadcast; ``matrix`` counts those of the leading axes.

    ``rolled`` as of `threefry2x32`.
    """
    words = rng if isinstance(rng, tuple) else words_of(rng)
    ndim = max(x.ndim for x in (matrix, row, column))
    matrix, row, column = (jnp.expand_dims(x.astype(jnp.uint32), range(ndim - x.ndim)) for x in (matrix, row, column))
    key = threefry2x32(words, matrix, jnp.zeros_like(matrix))
    bits, _ = threefry2x32(key, row, column, rolled=rolled)
    return bits >= jnp.uint32(int(rate * 2**32))


def threefry2x32(
    key: tuple[UInt32[Array, "..."], UInt32[Array, "..."]],
    x: UInt32[Array, "..."],
    y: UInt32[Array, "..."],
    *,
    rolled: bool = False,
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The block cipher under JAX's own random numbers, Threefry-2x32 with 20 rounds, of the counters x and y.

    ``rolled``: four rounds at a time in a loop. Triton computes anew what it needs in another layout, and follows both
    counters of a round to those of the round before: without a loop it compiles for minutes.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = x + keys[0], y + keys[1]
    if rolled:
        return _four_rounds_at_a_time(keys, *jnp.broadcast_arrays(x, y, keys[0])[:2])
    for i in range(1, 6):
        x, y = _rounds(x, y, _ROTATIONS[(i - 1) % 2])
        x, y = x + keys[i % 3], y + keys[(i + 1) % 3] + jnp.uint32(i)
    return x, y


def _rounds(x: Array, y: Array, rotations: Iterable[int | Array]) -> tuple[Array, Array]:
    for bits in rotations:
        x = x + y
        y = (y << bits | y >> (32 - bits)) ^ x
    return x, y


def _four_rounds_at_a_time(keys: tuple[Array, ...], x: Array, y: Array) -> tuple[Array, Array]:
    def four(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, y, first, second, third = state
        even = (i & jnp.int32(1)) == 0
        rotations = (jnp.where(even, jnp.uint32(a), jnp.uint32(b)) for a, b in zip(*_ROTATIONS, strict=True))
        x, y = _rounds(x, y, rotations)
        return x + second, y + third + (i + jnp.int32(1)).astype(jnp.uint32), second, third, first

    x, y, *_ = lax.fori_loop(jnp.int32(0), jnp.int32(5), four, (x, y, *keys))
    return x, y
