"""The dtype to compute in, also where JAX is told to promote nothing by itself (``jax_numpy_dtype_promotion``)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["at_least_float32", "in_one_dtype", "widest"]


def widest(*dtypes: Any) -> Any:
    """The dtype that holds these dtypes, or those of these arrays."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def at_least_float32(*arrays: Any) -> Any:
    """The dtype to compute in: that of all arrays together, and float32 or wider."""
    return widest(*arrays, jnp.float32)


def in_one_dtype(*arrays: Array) -> list[Array]:
    """Arrays of different dtypes in the one that holds them all."""
    dtype = widest(*arrays)
    return [x.astype(dtype) for x in arrays]
