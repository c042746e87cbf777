"""Flax's own layers where their defaults are not what an attention model from PyTorch means."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32

__all__ = [
    "Initializer",
    "LayerNorm",
    "Linear",
    "LinearGeneral",
    "RMSNorm",
    "add_bias",
    "default_bias_init",
    "default_kernel_init",
]

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
        checks.rngs(rngs)
        _check_norm(features, epsilon, use_scale=use_scale, use_bias=use_bias)
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
        x = checks.floating("x", x, "... m", 1)
        checks.width("x", x, self.num_features)
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        x, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        y = _normalize(x.astype(at_least_float32(x)), self.epsilon)
        y = y if scale is None else y * _aligned(y, scale)
        return (y if bias is None else y + _aligned(y, bias)).astype(x.dtype)


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


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` over the last axis as PyTorch has it, or with an offset to the scale, as Gemma.

        (scale_offset + scale) x / sqrt(mean(x^2) + epsilon)

    Args:
        features: m, the width.
        epsilon: added to the mean square; by default the smallest step from 1 of the type that this is computed in,
            float32 or wider. Flax's is 1e-6.
        scale_offset: added to the scale, in float32 or wider; Gemma's is 1. Offset and scale add up to 1 at first.
        use_scale, dtype, param_dtype, rngs: as in ``flax.nnx.RMSNorm``.

    Raises:
        ValueError: if there is an offset and no scale.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019; the offset, google-deepmind/gemma.

    Example:

        >>> RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 7.0]]))
        Array([[0.2, 1.4]], dtype=float32)
        >>> RMSNorm(2, scale_offset=1.0, rngs=nnx.Rngs(0)).scale[...]
        Array([0., 0.], dtype=float32)
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float | None = None,
        use_scale: bool = True,
        scale_offset: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.rngs(rngs)
        _check_norm(features, epsilon, use_scale=use_scale)
        scale_offset = checks.number("scale_offset", scale_offset, "(-inf, inf)")
        if scale_offset and not use_scale:
            raise ValueError(f"scale_offset must be 0 where use_scale is False. Got {scale_offset}.")
        super().__init__(
            features,
            use_scale=use_scale,
            scale_init=nnx.initializers.constant(1 - scale_offset),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.epsilon = epsilon  # type: ignore[assignment]
        self.scale_offset = scale_offset

    def __call__(self, x: Float[Array, "... m"]) -> Float[Array, "... m"]:  # type: ignore[override]
        x = checks.floating("x", x, "... m", 1)
        checks.width("x", x, self.num_features)
        x, scale = self.promote_dtype((x, None if self.scale is None else self.scale[...]), dtype=self.dtype)
        wide = x.astype(at_least_float32(x))
        y = _divide_by_root_mean_square(wide, float(jnp.finfo(wide).eps) if self.epsilon is None else self.epsilon)
        return (y if scale is None else y * (self.scale_offset + _aligned(y, scale))).astype(x.dtype)


def _aligned(y: Float[Array, "... m"], parameter: Float[Array, "*own m"]) -> Float[Array, "... m"]:
    """With the axes of y, and in its dtype, also where JAX is told to promote nothing by itself."""
    return jnp.expand_dims(parameter.astype(y.dtype), range(y.ndim - parameter.ndim))


def _check_norm(features: Any, epsilon: Any, **flags: Any) -> None:
    remedy = " Normalize over one axis, the last." if isinstance(features, tuple | list) else ""
    if not checks.is_count(features) or features < 1:
        raise ValueError(f"features must be an integer in [1, inf). Got {features!r:.80}.{remedy}")
    if epsilon is not None:
        checks.number("epsilon", epsilon, "[0, inf)")
    for name, given in flags.items():
        checks.flag(name, given)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _divide_by_root_mean_square(x: Float[Array, "... m"], epsilon: float) -> Float[Array, "... m"]:
    """``x / sqrt(mean(x^2) + epsilon)``, over the last axis."""
    return x * jax.lax.rsqrt(_mean_square(x) + epsilon)


@_divide_by_root_mean_square.defjvp
def _divide_by_root_mean_square_jvp(epsilon: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """``d y = (d x - y mean(y d x)) / sqrt(mean(x^2) + epsilon)``"""
    (x,), (change,) = primals, tangents
    rate = jax.lax.rsqrt(_mean_square(x) + epsilon)
    y = x * rate
    return y, rate * (change - y * (y * change).mean(axis=-1, keepdims=True))


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
    return add_bias(jnp.tensordot(inputs, kernel, n), bias)


def add_bias(product: Float[Array, "..."], bias: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """The product plus the bias along its last axes, whose gradient is summed in float32 or wider."""
    if bias is None:
        return product
    # The gradient of a broadcast is a sum, in the dtype of the broadcast.
    wide = jnp.broadcast_to(bias.astype(at_least_float32(bias)), product.shape)
    return product + wide.astype(product.dtype)
