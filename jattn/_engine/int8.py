"""Numbers kept as int8 with one scale a vector, symmetric around 0."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int8

from jattn._engine.dtypes import at_least_float32

__all__ = ["dequantized", "quantized"]

LARGEST = 127  # and -127, so that no sign reaches further than the other


def quantized(x: Float[Array, "*b f"]) -> tuple[Int8[Array, "*b f"], Float32[Array, "*b"]]:
    """Each vector as int8 codes and their scale.

    ``scale = max|x| / 127, code = round(x / scale)``, half to even

    Rounding has no gradient, so none comes back through either.
    """
    x = lax.stop_gradient(x).astype(at_least_float32(x))
    scales = (jnp.abs(x).max(-1) / LARGEST).astype(jnp.float32)
    divisors = jnp.where(scales == 0, 1, scales).astype(x.dtype)[..., None]
    return jnp.round(x / divisors).astype(jnp.int8), scales


def dequantized(codes: Int8[Array, "*b f"], scales: Float32[Array, "*b"], dtype: Any) -> Float[Array, "*b f"]:
    """``code * scale``, rounded once to the dtype."""
    wide = at_least_float32(jnp.zeros((), dtype))
    return (codes.astype(wide) * scales.astype(wide)[..., None]).astype(dtype)
