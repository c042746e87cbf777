"""The randomness of each example: its own key, whatever else is in the batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jattn._engine import checks

__all__ = ["rngs_of", "with_number"]


def rngs_of(rng: Any, b: int, sequences: int | None = None) -> Key[Array, "_"] | None:
    """A key for each continuation, of one key or of one for each prompt; None of None."""
    if rng is None:
        return None
    if jnp.ndim(rng) != 1 or not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        checks.check_rng("rng", rng)
        rng = jax.random.wrap_key_data(rng) if jnp.issubdtype(rng.dtype, jnp.unsignedinteger) else rng
    elif rng.shape != (b,):
        raise ValueError(f"rng must be one key, or one for each of {b} prompts. Got shape {rng.shape}.")
    each = with_number(jnp.broadcast_to(rng, b), jnp.arange(b)) if rng.ndim == 0 else rng
    if sequences is None:
        return each
    return with_number(jnp.repeat(each, sequences), jnp.tile(jnp.arange(sequences), b))


def with_number(rngs: Key[Array, "b"], numbers: Int[Array, "b"]) -> Key[Array, "b"]:
    """Another key for each number, such as that of a token."""
    return jax.vmap(jax.random.fold_in)(rngs, numbers)
