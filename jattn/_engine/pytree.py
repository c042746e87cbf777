"""What masks, biases and scores are made of: small frozen dataclasses that are pytrees, equal where they are alike."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, dataclass_transform

import jax
import numpy as np

from jattn._engine.captured import as_seen

__all__ = ["Known", "Pytree", "is_structure"]

_Structure = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]


class Known(float):
    """A number that is known while a program is compiled, as structure."""


def is_structure(value: Any) -> bool:
    """Whether a field's value is known while tracing: an integer, a string, a function; not a number to be learned."""
    if isinstance(value, int | str | bytes | type | np.dtype | Known):
        return True
    if isinstance(value, tuple):
        return all(part is None or is_structure(part) for part in value)
    return callable(value) and jax.tree_util.all_leaves([value]) and not hasattr(value, "dtype")


@dataclass_transform(frozen_default=True, eq_default=False)
class Pytree:
    """A base of frozen dataclasses, each of which is a pytree: a subclass needs no decorator.

    Integers, strings and functions in its fields are structure, all else is children. A value is rebuilt without its
    ``__init__``, since JAX also puts gradients, batches and the axes for ``vmap`` in the place of its fields, which
    checks would reject.
    """

    argument: ClassVar[str] = ""  # of `jattn.attention`, which it is made for

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        del cls.__setattr__, cls.__delattr__  # those below do as well, and let a subclass be decorated once more
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"{name} of a {type(self).__name__} can't be changed; make a new one.")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"{name} of a {type(self).__name__} can't be deleted.")

    def _flatten(self) -> tuple[list[tuple[Any, Any]], _Structure]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        names = getattr(self, "_children", None)  # known of a rebuilt value, whose leaves may be of any type
        if names is None:
            names = tuple(name for name, value in fields.items() if not is_structure(value))
        structure = tuple(
            (name, as_seen(value) if callable(value) else value) for name, value in fields.items() if name not in names
        )
        return [(jax.tree_util.GetAttrKey(name), fields[name]) for name in names], (names, structure)

    @classmethod
    def _unflatten(cls, structure: _Structure, values: Iterable[Any]) -> Any:
        names, static = structure
        tree = object.__new__(cls)
        for name, value in (("_children", names), *zip(names, values, strict=True), *static):
            object.__setattr__(tree, name, value)
        return tree

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine: Any = jax.tree.flatten(self)
        theirs: Any = jax.tree.flatten(other)
        return bool(mine[1] == theirs[1]) and all(map(_same, mine[0], theirs[0]))

    def __hash__(self) -> int:
        leaves, structure = jax.tree.flatten(self)
        return hash((structure, tuple(np.shape(x) for x in leaves)))


def _same(x: Any, y: Any) -> bool:
    """Whether two leaves are the same number or numbers, as far as they are known."""
    if x is y:
        return True
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return False
    return (
        np.shape(x) == np.shape(y)
        and getattr(x, "dtype", type(x)) == getattr(y, "dtype", type(y))
        and bool(np.array_equal(x, y))
    )
