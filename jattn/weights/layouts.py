"""How numbers lie in arrays, there and back: cut from one axis, put together along it, turned, in part.

What does not fit is a ValueError that goes on after the entry's name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jattn.weights.files import to_numpy

__all__ = ["bits", "cut", "put_together", "refilled", "taken", "turned", "unstacked"]


def bits(x: Any) -> tuple[Any, ...]:
    """What two arrays have in common if they are the same."""
    x = to_numpy(x)
    return x.dtype, x.shape, x.tobytes()


def turned(x: Any, axes: tuple[int, ...] | None) -> np.ndarray:
    """With the axes in this order, or the last two swapped if there are two."""
    x = to_numpy(x)
    if axes is not None:
        if x.ndim != len(axes):
            raise ValueError(f"must have {len(axes)} axes to be transposed. Got shape {x.shape}")
        return x.transpose(axes)
    return x if x.ndim < 2 else np.swapaxes(x, -1, -2)


def cut(x: Any, sizes: Sequence[int], num_heads: int, axis: int) -> list[np.ndarray]:
    """The parts of an axis, of these relative sizes in each of num_heads blocks."""
    x = _axis_first(x, axis)
    unit, rest = divmod(len(x), num_heads * sum(sizes))
    if rest:
        raise ValueError(f"must be cut {_blocks(sizes, num_heads)} along axis {axis}, of size {len(x)}")
    blocked = x.reshape(num_heads, sum(sizes), unit, *x.shape[1:])
    parts = np.split(blocked, np.cumsum(sizes)[:-1].tolist(), axis=1)
    return [
        np.moveaxis(part.reshape(num_heads * size * unit, *x.shape[1:]), 0, axis)
        for part, size in zip(parts, sizes, strict=True)
    ]


def put_together(xs: Sequence[Any], sizes: Sequence[int], num_heads: int, axis: int) -> np.ndarray:
    """The inverse of `cut`."""
    arrays = [_axis_first(x, axis) for x in xs]
    units = {divmod(len(x), num_heads * size) for x, size in zip(arrays, sizes, strict=True)}
    (unit, rest), *others = units
    if others or rest or len({x.shape[1:] for x in arrays}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        raise ValueError(f"must be put together {_blocks(sizes, num_heads)} along axis {axis}. Got shapes {shapes}")
    if len({x.dtype for x in arrays}) > 1:  # all would become the widest
        raise ValueError(f"must be of one dtype with its other parts. Got {', '.join(str(x.dtype) for x in arrays)}")
    blocked = [x.reshape(num_heads, size, unit, *x.shape[1:]) for x, size in zip(arrays, sizes, strict=True)]
    whole = np.concatenate(blocked, axis=1)
    return np.moveaxis(whole.reshape(num_heads * sum(sizes) * unit, *arrays[0].shape[1:]), 0, axis)


def unstacked(x: Any, n: int) -> list[np.ndarray]:
    """The n parts of the first axis, without that axis."""
    x = to_numpy(x)
    if x.ndim < 2 or len(x) != n:
        raise ValueError(f"must have {n} parts along its first axis. Got shape {x.shape}")
    return list(x)


def taken(x: Any, where: slice, axis: int) -> np.ndarray:
    """A stretch of an axis."""
    return np.moveaxis(_axis_first(x, axis)[where], 0, axis)


def refilled(x: Any, where: slice, axis: int, fill: int | float, size: int | None) -> np.ndarray:
    """The inverse of `taken`, with ``fill`` in the rest."""
    x = _axis_first(x, axis)
    start, stop = where.start or 0, where.stop
    if size is None:
        if start < 0 or (stop is not None and stop >= 0):
            raise ValueError("is a part of something of unknown size; give size")
        size = start + len(x) - (stop or 0)
    whole = np.full((size, *x.shape[1:]), fill, x.dtype)
    if len(whole[where]) != len(x):
        raise ValueError(f"must have {len(whole[where])} along axis {axis} to be that part of {size}. Got {len(x)}")
    whole[where] = x
    return np.moveaxis(whole, 0, axis)


def _axis_first(x: Any, axis: int) -> np.ndarray:
    x = to_numpy(x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"must have an axis {axis}. Got shape {x.shape}")
    return np.moveaxis(x, axis, 0)


def _blocks(sizes: Sequence[int], num_heads: int) -> str:
    parts = ":".join(map(str, sizes))
    return f"{parts} in each of {num_heads} blocks" if num_heads > 1 else parts
