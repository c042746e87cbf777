"""Flax's own layers where their defaults are not what an attention model from PyTorch means."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn.scores import at_least_float32

Initializer = Callable[..., Array]
default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` over the last axis as PyTorch has it: epsilon 1e-5, and the variance from the differences to
    the mean.

    Flax's epsilon is 1e-6, its fast variance, a difference of squares, loses digits, and XLA's own derivative of either
    is slow on a CPU.

    Args:
        features: m, the width.
        epsilon: added to the variance.
        use_scale, use_bias, dtype, param_dtype, rngs: as in ``flax.nnx.LayerNorm``.

    Source: Ba, Kiros and Hinton, Layer Normalization, 2016.

    Example:

        >>> LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0]]))
        Array([[-0.999995,  0.999995]], dtype=float32)
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            features,
            epsilon=epsilon,
            use_scale=use_scale,
            use_bias=use_bias,
            use_fast_variance=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "... m"]) -> Float[Array, "... m"]:  # type: ignore[override]
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        y = _normalize(x.astype(at_least_float32(x)), self.epsilon)
        y = y if scale is None else y * scale
        return (y if bias is None else y + bias).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _normalize(x: Float[Array, "... m"], epsilon: float) -> Float[Array, "... m"]:
    """``(x - mean) / sqrt(variance + epsilon)``, over the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(_mean_square(centered) + epsilon)


@_normalize.defjvp
def _normalize_jvp(epsilon: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """``d y = (d x - mean(d x) - y mean(y d x)) / sqrt(variance + epsilon)``"""
    (x,), (change,) = primals, tangents
    centered = x - x.mean(axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(_mean_square(centered) + epsilon)
    y = centered * rate
    along = (y * change).mean(axis=-1, keepdims=True)
    return y, rate * (change - change.mean(axis=-1, keepdims=True) - y * along)


def _mean_square(x: Array) -> Array:
    return (x * x).mean(axis=-1, keepdims=True)


def embedding(num_embeddings: int, features: int, *, dtype: Any = None, rngs: nnx.Rngs, **options: Any) -> nnx.Embed:
    """`flax.nnx.Embed` in the dtype of its present parameters, like the other layers.

    Flax fixes the dtype when the layer is made, so that float64 weights loaded later would be looked up in float32.
    """
    layer = nnx.Embed(num_embeddings, features, rngs=rngs, **options)
    layer.dtype = dtype
    return layer


class Linear(nnx.Linear):
    """`flax.nnx.Linear` whose bias gets its gradient summed in float32 or wider.

    Flax sums it over all positions in the bias's own dtype, and XLA on a CPU rounds that at each addition: in bfloat16,
    16,384 gradients of 1 add up to 8,192.
    """

    def __call__(self, inputs: Float[Array, "... m"]) -> Float[Array, "... n"]:  # type: ignore[override]
        return _affine(self, inputs, 1)


class LinearGeneral(nnx.LinearGeneral):
    """`flax.nnx.LinearGeneral` over the last axes, with such a bias."""

    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:  # type: ignore[override]
        return _affine(self, inputs, len(self.in_features))


def _affine(layer: Any, inputs: Array, n: int) -> Array:
    """The product over the last ``n`` axes, plus the bias."""
    bias = None if layer.bias is None else layer.bias[...]
    inputs, kernel, bias = layer.promote_dtype((inputs, layer.kernel[...], bias), dtype=layer.dtype)
    product = jnp.tensordot(inputs, kernel, n)
    if bias is None:
        return product
    # The gradient of a broadcast is a sum, in the dtype of the broadcast.
    wide = jnp.broadcast_to(bias.astype(at_least_float32(bias)), product.shape)
    return product + wide.astype(product.dtype)
