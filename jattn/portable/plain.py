"""Values as those have them who know no classes of jattn's: an array, or a dict of names to arrays."""

from typing import Any

import jax

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
    """Of all arrays in a pytree, such as ``0.keys``; of a parameter that of its module's attribute."""
    paths = jax.tree_util.tree_flatten_with_path(value)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in paths]
