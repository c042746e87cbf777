"""What tells attention where a token stands: learned and sinusoidal positions, which are added."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.nn.embeddings import Embed
from jattn.nn.rotary_scaling import rotary_frequencies

__all__ = ["LearnedPositions", "SinusoidalPositions", "sinusoidal_positions"]


class LearnedPositions(nnx.Module):
    """Adds a learned vector for each position.

    Args:
        max_length: how many positions there are vectors for.
        features: their width, m.
        first: which vector is that of position 0; OPT's and RoBERTa's tables begin with two others.
        embedding_init, dtype, param_dtype: as in ``flax.nnx.Embed``.
        rngs: for the initial parameters.

    Example:

        >>> LearnedPositions(20, 8, rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(self, max_length: int, features: int, *, first: int = 0, rngs: nnx.Rngs, **options: Any) -> None:
        checks.positive_integers(max_length=max_length)
        self.first = checks.count("first", first)
        checks.at_most("first", self.first, "max_length - 1", max_length - 1)
        self.embedding = Embed(max_length, features, rngs=rngs, **options)

    def __call__(
        self, x: Float[Array, "*b t m"], positions: Int[Array, "*b t"] | Int[Array, "t"] | None = None
    ) -> Float[Array, "*b t m"]:
        """x with the vectors of its positions added, 0 to t - 1 by default.

        Raises:
            ValueError: if there are not that many.
        """
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.embedding.features)
        t, room = x.shape[-2], self.embedding.num_embeddings - self.first
        if positions is None:
            checks.at_most("x", t, "max_length", room)
            return _with(x, self.embedding(self.first + jnp.arange(t)))
        positions = checks.positions("positions", positions, x.shape[:-2], t)
        if not jnp.issubdtype(positions.dtype, jnp.integer):
            raise ValueError(f"positions must be integers, as they are looked up. Got {positions.dtype}.")
        if checks.is_concrete(positions) and positions.size:
            checks.at_most("positions", int(np.asarray(positions).max()) + 1, "max_length", room)
        return _with(x, self.embedding(self.first + positions))


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
        checks.positive_integers(features=features)
        self.features = int(features)
        self.base = checks.number("base", base, "(0, inf)")

    def __call__(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        """x with the sines and cosines of positions 0 to t - 1 added."""
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.features)
        return _with(x, sinusoidal_positions(x.shape[-2], self.features, base=self.base, dtype=x.dtype))


def sinusoidal_positions(
    t: int, features: int, *, base: float = 10000.0, dtype: Any = jnp.float32
) -> Float[Array, "t m"]:
    """Sines (even columns) and cosines (odd columns) of each position, at wavelengths from 2 pi to base * 2 pi.

    ``p[i, 2j] = sin(i / base^(2j/m)),  p[i, 2j + 1] = cos(i / base^(2j/m))``

        >>> sinusoidal_positions(3, 4).shape
        (3, 4)

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    wide = at_least_float32(dtype)
    angles = jnp.arange(t, dtype=wide)[:, None] * jnp.asarray(rotary_frequencies(base, features), wide)[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(t, -1)[:, :features].astype(dtype)


def _with(x: Float[Array, "*b t m"], vectors: Float[Array, "..."]) -> Float[Array, "*b t m"]:
    """x with these added, of all examples where they have no axis for them."""
    return x + jnp.expand_dims(vectors, tuple(range(x.ndim - vectors.ndim)))
