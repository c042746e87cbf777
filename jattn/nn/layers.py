"""Flax's own layers where their defaults are not what an attention model from PyTorch means."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn.scores import at_least_float32

Initializer = Callable[..., Array]
default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()


def layer_norm(
    features: int,
    *,
    epsilon: float = 1e-5,
    use_bias: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """`flax.nnx.LayerNorm` as PyTorch has it: epsilon 1e-5, and the variance from the differences to the mean.

    Flax's epsilon is 1e-6, and its fast variance, a difference of squares, loses digits.
    """
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_bias=use_bias,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


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
