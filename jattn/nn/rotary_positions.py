"""Rotary positions: pairs of features that turn with the position, so that query and key see how far apart they are."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.nn.rotary_scaling import RotaryScaling, rotary_frequencies, static_number

__all__ = ["Rotary", "rotary"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Turns each pair of a head's features by an angle in proportion to the position.

    Pair i, of n features that turn, becomes
    ``(x cos a - y sin a, y cos a + x sin a)`` with ``a = position * base^(-2i/n)``,
    so that the dot product of a query and a key depends on how far apart they are. Angles are in float32 or wider.

    The value is frozen, equal to others with the same numbers, and hashes: structure for a module and under ``jit``.

    Args:
        base: of the wavelengths.
        features: n, how many of each head's features turn, the first ones; all by default. GPT-NeoX and Phi turn some.
        interleaved: pair features 2i and 2i + 1, as GPT-J and RoFormer do, rather than i and i + n/2, as GPT-NeoX and
            Llama do.
        scaling: for sequences longer than those of the training, such as `LinearScaling` or `YaRNScaling`.

    Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.

    Example (position 0 stays as it is, and so do the features that don't turn):

        >>> turned = Rotary(500.0, features=4)(jnp.ones((3, 1, 6)))
        >>> bool((turned[0] == 1).all()), bool((turned[:, :, 4:] == 1).all())
        (True, True)
        >>> from jattn.nn import LinearScaling
        >>> Rotary(scaling=LinearScaling(2.0)) == Rotary(scaling=LinearScaling(2.0))
        True
    """

    base: float | Array = 10000.0
    _: dataclasses.KW_ONLY
    features: int | None = None
    interleaved: bool = False
    scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        if self.scaling is not None and not isinstance(self.scaling, RotaryScaling):
            raise ValueError(
                "scaling must be a RotaryScaling, such as jattn.nn.LinearScaling(2.0), or None. Got "
                f"{self.scaling!r:.80}."
            )
        if self.scaling is not None or checks.is_concrete(self.base):
            object.__setattr__(self, "base", static_number("base", self.base, "(0, inf)"))
        if self.features is not None:
            features = static_number("features", self.features, "[2, inf)", integer=True)
            if features % 2:
                raise ValueError(f"features must be even, as they turn in pairs. Got {features}.")
            object.__setattr__(self, "features", features)
        object.__setattr__(self, "interleaved", checks.flag("interleaved", self.interleaved))

    def __call__(
        self,
        x: Float[Array, "*b t h d"],
        positions: Float[Array, "..."] | Int[Array, "..."] | None = None,
        *,
        longest: Float[Array, "..."] | Int[Array, "..."] | None = None,
    ) -> Float[Array, "*b t h d"]:
        """x turned by its positions, in its dtype.

        Args:
            x: query or key heads.
            positions: ``t`` or ``*b t``, integers or fractions; 0 to t - 1 by default.
            longest: further positions of the sequence, whose largest counts too where the scaling looks at it: those
                of the keys, where queries are turned.
        """
        x = checks.floating("x", x, "*b t h d", 3)
        n = self._features_of(x)
        sin, cos = self._sin_and_cos(x, n, _of_heads(positions, x), longest)
        turning = x[..., :n].astype(sin.dtype)
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = jnp.split(turning, 2, axis=-1)
        pairs = [first * cos - second * sin, second * cos + first * sin]
        turned = jnp.stack(pairs, -1).reshape(turning.shape) if self.interleaved else jnp.concatenate(pairs, -1)
        return jnp.concatenate([turned.astype(x.dtype), x[..., n:]], axis=-1)

    def _features_of(self, x: Float[Array, "*b t h d"]) -> int:
        d = x.shape[-1]
        if self.features is None and d % 2:
            raise ValueError(f"x must have an even number of features for rotary positions. Got {d}.")
        if self.features is not None and self.features > d:
            raise ValueError(f"x must have at least features = {self.features} features on its last axis. Got {d}.")
        return d if self.features is None else self.features

    def _sin_and_cos(self, x: Array, n: int, positions: Array, longest: Array | None) -> tuple[Array, Array]:
        """Of the angles, ``*b t 1 pairs``; lower precision than float32 would lose late positions."""
        positions = positions.astype(at_least_float32(x))
        if self.scaling is None:
            frequencies, factor = rotary_frequencies(self.base, n), 1.0
        else:
            assert isinstance(self.base, float)
            of_sequence = [z.ravel().astype(positions.dtype) for z in (positions, longest) if z is not None]
            frequencies, factor = self.scaling.frequencies(self.base, n, jnp.concatenate(of_sequence))
        frequencies = jnp.asarray(frequencies, positions.dtype)
        angles = positions * frequencies.reshape((1,) * (x.ndim - 1) + frequencies.shape)
        return factor * jnp.sin(angles), factor * jnp.cos(angles)


def rotary(
    x: Float[Array, "*b t h d"],
    positions: Float[Array, "..."] | Int[Array, "..."] | None = None,
    *,
    base: float | Array = 10000.0,
) -> Float[Array, "*b t h d"]:
    """``Rotary(base)(x, positions)``: every pair of features i and i + d/2 turned, without scaling.

    >>> x = jnp.ones((3, 1, 4))
    >>> bool((rotary(x)[0] == x[0]).all())
    True
    """
    return Rotary(base)(x, positions)


def _of_heads(positions: Array | None, x: Float[Array, "*b t h d"]) -> Array:
    """Positions with as many axes as x, ``*b t 1 1``."""
    batch, t = x.shape[:-3], x.shape[-3]
    if positions is None:
        positions = jnp.arange(t)
    checks.real("positions", positions)
    positions = jnp.asarray(positions)
    if positions.shape[-1:] != (t,) or not checks.broadcasts_to(positions.shape, (*batch, t)):
        raise ValueError(f"positions must have shape {(t,)} or {(*batch, t)}. Got {positions.shape}.")
    return positions.reshape((1,) * (x.ndim - 2 - positions.ndim) + (*positions.shape, 1, 1))
