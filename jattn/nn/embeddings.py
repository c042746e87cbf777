"""Vectors that are looked up by number."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn._engine.mesh_axes import axis_names
from jattn.nn.layers import Initializer

__all__ = ["Embed"]

_default_embedding_init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Embed(nnx.Embed):
    """`flax.nnx.Embed` in the dtype of its present parameters, with PyTorch's padding, and a scale.

    Flax fixes the dtype when the layer is made, so that float64 weights loaded later would be looked up in float32.

    Args:
        num_embeddings: how many vectors.
        features: m, their width.
        padding_idx: the number of the vector for padding, from the end if negative: zero at first, and, having no
            gradient, unchanged in training.
        scale: what the vectors that are looked up are multiplied by, rounded to their dtype, as Gemma's ``sqrt(m)`` is.
            ``attend``, the products with all vectors, takes them as they are.
        embedding_init, dtype, param_dtype, rngs, options: as in ``flax.nnx.Embed``.

    Raises:
        ValueError: if there is no vector of the number padding_idx, or the scale is not a finite number.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.4, for the scale.

    Example:

        >>> embed = Embed(10, 4, padding_idx=0, scale=2.0, rngs=nnx.Rngs(0))
        >>> embed(jnp.array([0]))
        Array([[0., 0., 0., 0.]], dtype=float32)
        >>> embed.attend(jnp.ones((2, 5, 4))).shape
        (2, 5, 10)
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_idx: int | None = None,
        scale: float | None = None,
        embedding_init: Initializer = _default_embedding_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(num_embeddings=num_embeddings, features=features)
        if padding_idx is not None:
            padding_idx = int(checks.selection("padding_idx", padding_idx, num_embeddings)[0])
        if scale is not None:
            scale = checks.number("scale", scale, "(-inf, inf)")
        types: dict[str, Any] = dict(embedding_init=embedding_init, param_dtype=param_dtype)
        super().__init__(num_embeddings, features, rngs=rngs, **types, **options)
        self.dtype = dtype
        self.padding_idx = padding_idx
        self.scale = scale
        if padding_idx is not None:
            self.embedding[...] = self.embedding[...].at[padding_idx].set(0)

    def __call__(self, inputs: Int[Array, "..."], out_sharding: Any = None) -> Float[Array, "... m"]:
        if out_sharding is None:
            out_sharding = _along(inputs, 0, self.embedding[...], 1)
        x = super().__call__(inputs, out_sharding=out_sharding)
        if self.padding_idx is not None:
            stop = self._stop_gradient_of_padding
            if out_sharding is not None:  # which need not be that of the inputs
                stop = jax.sharding.auto_axes(stop, out_sharding=out_sharding)
            x = stop(inputs, x)
        return x if self.scale is None else x * jnp.asarray(self.scale, x.dtype)

    def attend(self, query: Float[Array, "... m"], out_sharding: Any = None) -> Float[Array, "... v"]:
        """The products of query with all vectors, unscaled."""
        if out_sharding is None:
            out_sharding = _along(query, 1, self.embedding[...], 0)
        return super().attend(query, out_sharding=out_sharding)

    def _stop_gradient_of_padding(self, inputs: Array, x: Array) -> Array:
        return jnp.where(inputs[..., None] == self.padding_idx, jax.lax.stop_gradient(x), x)


def _along(x: Array, without: int, table: Array, axis: int) -> NamedSharding | None:
    """The sharding of x, without so many of its last axes, and one axis of the table's; None unless JAX asks for it.

    Under explicit axes JAX will not guess how the result of a lookup lies. What splits x does not split the table's
    axis, too.
    """
    sharding, own = jax.typeof(table).sharding, jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    kept = tuple(own.spec[: x.ndim - without])
    used = {name for part in kept for name in axis_names(part)}
    last = sharding.spec[axis]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept, None if used & set(axis_names(last)) else last))
