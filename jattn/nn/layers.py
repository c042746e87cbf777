"""Flax's own layers where their defaults are not what an attention model from PyTorch means."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

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
