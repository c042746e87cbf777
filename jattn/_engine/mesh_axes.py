"""What divides an axis of an array, as a `PartitionSpec` says it: an axis of a mesh, several, or None."""

from collections.abc import Iterable, Sequence
from typing import Any

from jax.sharding import PartitionSpec

__all__ = ["axis_names", "spec_of"]


def axis_names(axes: Any) -> tuple[str, ...]:
    """The names, however many.

    >>> axis_names("data"), axis_names(("data", "model")), axis_names(None)
    (('data',), ('data', 'model'), ())
    """
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def spec_of(divided: Iterable[Sequence[str]]) -> PartitionSpec:
    """From the names of each axis, without the last axes that are whole.

    >>> spec_of([("data",), (), ("model", "data"), ()])
    P('data', None, ('model', 'data'))
    """
    parts = [None if not names else names[0] if len(names) == 1 else tuple(names) for names in divided]
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)
