"""What masks and scores are made of: small frozen dataclasses that are pytrees."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax

_Structure = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]


class Pytree:
    """A base of frozen dataclasses, each of which is a pytree with its fields as children.

    A field whose value is of one of the types in ``static`` is structure instead. A value is rebuilt without its
    ``__init__``, since JAX also puts gradients, batches and the axes for ``vmap`` in the place of its fields, which the
    checks would reject.
    """

    static: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[list[tuple[Any, Any]], _Structure]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        names = getattr(self, "_children", None)  # known of a rebuilt value, whose leaves may be of any type
        if names is None:
            names = tuple(name for name, value in fields.items() if not isinstance(value, self.static))
        structure = tuple((name, value) for name, value in fields.items() if name not in names)
        return [(jax.tree_util.GetAttrKey(name), fields[name]) for name in names], (names, structure)

    @classmethod
    def _unflatten(cls, structure: _Structure, values: Iterable[Any]) -> "Pytree":
        names, static = structure
        tree = object.__new__(cls)
        for name, value in (("_children", names), *zip(names, values, strict=True), *static):
            object.__setattr__(tree, name, value)
        return tree
