"""Arrays inside of a `jax.shard_map`, which knows over which axes of its mesh each of them varies."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["all_varying", "varying_as"]


def all_varying(tree: Any) -> Any:
    """A tree whose arrays all vary over the axes that some of them vary over.

    Else a gradient that a rule of our own gives could vary over fewer than the rule was traced for.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    tree = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, int | float) else x, tree)
    numbers = [x for x in jax.tree.leaves(tree) if _is_number(x)]
    return jax.tree.map(lambda x: varying_as(x, *numbers) if _is_number(x) else x, tree)


def _is_number(x: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def varying_as(x: Array, *others: Array) -> Array:
    """x as it is, but said to vary over the axes that the others vary over, too: branches must agree on it, and a
    gradient is summed over the axes that its variable does not vary over.

    JAX's own names for it change between its versions; that a sum varies over the axes of both is its semantics.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x
    for other in others:
        if other.size:
            false = (lax.stop_gradient(other).reshape(-1)[0] != 0) & False
            x = x | false if x.dtype == jnp.bool_ else x + false.astype(x.dtype)
    return x
