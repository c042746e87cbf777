"""What tells attention where a token stands: learned, sinusoidal and rotary positions."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.nn.layers import embedding

__all__ = ["LearnedPositions", "SinusoidalPositions", "rotary", "sinusoidal_positions"]


class LearnedPositions(nnx.Module):
    """Adds a learned vector for each position.

    Args:
        max_length: how many positions there are vectors for.
        features: their width, m.
        embedding_init, dtype, param_dtype: as in ``flax.nnx.Embed``.
        rngs: for the initial parameters.

    Example:

        >>> LearnedPositions(20, 8, rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(self, max_length: int, features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        self.embedding = embedding(max_length, features, rngs=rngs, **options)

    def __call__(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        """x with the vectors of positions 0 to t - 1 added. Raises ValueError if there are not that many."""
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.embedding.features)
        t = x.shape[-2]
        checks.at_most("x", t, "max_length", self.embedding.num_embeddings)
        return x + self.embedding(jnp.arange(t))


class SinusoidalPositions(nnx.Module):
    """Adds `sinusoidal_positions`; has no parameters and no maximum length.

    Args:
        features: m, the width.
        base: of the wavelengths.

    Example:

        >>> SinusoidalPositions(8)(jnp.zeros((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(self, features: int, *, base: float = 10000.0) -> None:
        self.features, self.base = features, base

    def __call__(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        """x with the sines and cosines of positions 0 to t - 1 added."""
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.features)
        return x + sinusoidal_positions(x.shape[-2], self.features, base=self.base, dtype=x.dtype)


def sinusoidal_positions(
    t: int, features: int, *, base: float = 10000.0, dtype: Any = jnp.float32
) -> Float[Array, "t m"]:
    """Sines (even columns) and cosines (odd columns) of each position, at wavelengths from 2 pi to base * 2 pi.

    ``p[i, 2j] = sin(i / base^(2j/m)),  p[i, 2j + 1] = cos(i / base^(2j/m))``

        >>> sinusoidal_positions(3, 4).shape
        (3, 4)

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    angles = _angles(jnp.arange(t), features, base, dtype)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(t, -1)[:, :features].astype(dtype)


def rotary(
    x: Float[Array, "*b t h d"], positions: Int[Array, "..."] | None = None, *, base: float = 10000.0
) -> Float[Array, "*b t h d"]:
    """Rotates each pair of features by an angle in proportion to the position.

    Features i and i + d/2 are a pair and turn by ``position * base^(-2i/d)``, so that the dot product of a query and a
    key depends on how far apart they are. This is the half-split form of GPT-NeoX and Llama.

    Args:
        x: query or key heads, ``*b t h d`` with d even.
        positions: integers ``t`` or ``*b t``; 0 to t - 1 by default.
        base: of the wavelengths.

    Raises:
        ValueError: if d is odd, or the positions are not integers of these shapes.

    Example (position 0 stays as it is):

        >>> x = jnp.ones((3, 1, 4))
        >>> bool((rotary(x)[0] == x[0]).all())
        True

    Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
    """
    x = checks.floating("x", x, "*b t h d", 3)
    t, d = x.shape[-3], x.shape[-1]
    if d % 2:
        raise ValueError(f"x must have an even number of features for rotary positions. Got {d}.")
    positions = jnp.arange(t) if positions is None else checks.integer_axis("positions", positions)
    if positions.shape not in ((t,), x.shape[:-2]):
        raise ValueError(f"positions must have shape {(t,)} or {x.shape[:-2]}. Got {positions.shape}.")
    angles = _angles(positions, d, base, x.dtype)[..., None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(angles.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _angles(positions: Int[Array, "*b t"], d: int, base: float, dtype: Any) -> Float[Array, "*b t pair"]:
    """Position times frequency, in float32 or wider: lower precision loses late positions."""
    dtype = at_least_float32(dtype)
    frequencies = base ** (-jnp.arange(0, d, 2, dtype=dtype) / d)
    return positions[..., None].astype(dtype) * frequencies
