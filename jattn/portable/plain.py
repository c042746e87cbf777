"""Values as those have them who know no classes of jattn's: an array, or a dict of names to arrays."""

from collections import Counter
from typing import Any

import jax
from flax import nnx
from jax.tree_util import keystr, tree_flatten_with_path

__all__ = ["array_names", "plain", "rebuilt"]


def plain(value: Any) -> Any:
    """An array as it is; of any other pytree its arrays, by the names of where they stand."""
    if jax.tree_util.all_leaves([value]):
        return value
    return dict(zip(array_names(value), jax.tree.leaves(value), strict=True))


def rebuilt(like: Any, arrays: Any) -> Any:
    """A pytree like another out of what `plain` made of one."""
    if jax.tree_util.all_leaves([like]):
        return arrays
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in array_names(like)])


def array_names(value: Any) -> list[str]:
    """Of all arrays in a pytree, such as ``0.keys``; of a parameter that of its module's attribute.

    Raises:
        ValueError: if two have one name.
    """
    names = []
    for path, x in tree_flatten_with_path(value, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]:
        own = 1 if path and isinstance(x, nnx.Variable) else 0  # Flax's "value" within a variable
        names += [
            keystr((*path, *below[own:]), simple=True, separator=".") for below, _ in tree_flatten_with_path(x)[0]
        ]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(
            f"f must have parameters and results of different names, with dots between their parts. Got several of "
            f"{', '.join(map(repr, twice))}. Rename those with dots in a key."
        )
    return names
