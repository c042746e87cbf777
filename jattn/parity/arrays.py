"""What both sides give as NumPy arrays, and how far two of them are apart."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jattn.weights import to_numpy

__all__ = [
    "FLOAT64",
    "aligned",
    "error",
    "is_floating",
    "kept",
    "largest",
    "leaves",
    "limit",
    "named_leaves",
    "numbers",
    "scales",
    "some",
]

FLOAT64 = 1e-10
# In lower precision the error against PyTorch in float64 on the same rounded numbers may be FACTOR times PyTorch's own
# plus ULPS. That is wide, since a port may add up in another order and both errors are luck; what is wrong with the
# function itself is found in float64, and what is left for float32 is a loss of digits.
FACTOR, ULPS = 4.0, 32.0


def limit(dtype: str, reference_error: float, tolerance: float | None = None) -> float:
    """The largest error that a port may have in ``dtype`` where PyTorch's own is ``reference_error``.

    That is ``tolerance`` where there is one. In float64 PyTorch has an error only where it computes from numbers that
    were made in float32.
    """
    if tolerance is not None:
        return tolerance
    rest = FLOAT64 if dtype == "float64" else ULPS * float(jnp.finfo(dtype).eps)
    return FACTOR * reference_error + rest


def leaves(nest: Any) -> Iterator[Any]:
    """The arrays and tensors of a nest of containers, in order; what is none is left out."""
    for _, x in named_leaves(nest):
        yield x


def named_leaves(nest: Any) -> Iterator[tuple[str, Any]]:
    """Likewise, and their names: keys and fields, joined by dots; empty below a tuple or a list."""
    if hasattr(nest, "shape") and hasattr(nest, "dtype"):
        yield "", nest
        return
    for name, item in _items(nest):
        for inner, (path, x) in enumerate(each := list(named_leaves(item))):
            rest = path or ("" if len(each) == 1 else str(inner))
            yield (".".join(part for part in (name, rest) if part) if name else ""), x


def _items(nest: Any) -> list[tuple[str, Any]]:
    """What a container holds, by name if it has names."""
    if isinstance(nest, Mapping):
        return [(str(key), item) for key, item in nest.items()]
    if hasattr(nest, "_fields"):
        return list(zip(nest._fields, nest, strict=True))
    if isinstance(nest, tuple | list):
        return [("", item) for item in nest]
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return [(field.name, getattr(nest, field.name)) for field in dataclasses.fields(nest)]
    return []


def numbers(x: Any) -> np.ndarray:
    """A copy as float64; integers and booleans stay as they are."""
    array = to_numpy(x)
    return np.array(array, np.float64 if is_floating(array) else None)


def is_floating(x: Any) -> bool:
    """Whether an array or a tensor holds floating-point numbers, bfloat16 among them."""
    return x.is_floating_point() if hasattr(x, "is_floating_point") else bool(jnp.issubdtype(x.dtype, jnp.floating))


def aligned(x: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """``x`` in the layout of ``like``: axes merged or split, broadcast, or, where nothing else fits, in another order.

    A module of a port may well see ``b*t m`` or ``b t h d`` where PyTorch's sees ``b t m``, or the positions ``t m`` of
    all examples. None where nothing fits.
    """
    if x.shape == like.shape:
        return x
    ends, like_ends = (set(itertools.accumulate(reversed((*y.shape, 1)), lambda a, b: a * b)) for y in (x, like))
    if x.size == like.size and (ends <= like_ends or like_ends <= ends):
        return x.reshape(like.shape)
    if x.ndim > 1 and like.ndim > 1 and (broadcast := _broadcast(x, like)) is not None:
        return broadcast
    if x.ndim <= 4 and sorted(x.shape) == sorted(like.shape):
        orders = (order for order in itertools.permutations(range(x.ndim)))
        fitting = [x.transpose(order) for order in orders if tuple(x.shape[i] for i in order) == like.shape]
        return min(fitting, key=lambda y: error(y, like))
    return None


def _broadcast(x: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """The same for all examples on one side: ``x`` repeated, or of its examples those that are furthest away."""
    try:
        shape = np.broadcast_shapes(x.shape, like.shape)
    except ValueError:
        return None
    if shape == like.shape:
        return np.broadcast_to(x, shape)
    if shape != x.shape:
        return None
    full = like.reshape((1,) * (x.ndim - like.ndim) + like.shape)
    repeated = [i for i in range(x.ndim) if full.shape[i] != x.shape[i]]
    rest = [i for i in range(x.ndim) if i not in repeated]
    examples = x.transpose(*repeated, *rest).reshape(-1, *(x.shape[i] for i in rest))
    with np.errstate(invalid="ignore"):
        away = np.abs(examples.astype(np.float64) - like.reshape(examples.shape[1:]))
    worst = np.argmax(np.where(np.isnan(away), np.inf, away), axis=0)
    return np.take_along_axis(examples, worst[None], 0)[0].reshape(like.shape)


def error(x: np.ndarray, true: np.ndarray, scale: float | None = None, where: np.ndarray | None = None) -> float:
    """The largest difference, relative to ``scale``, the largest true entry by default; infinite if shapes differ.

    Equal infinities differ by nothing; NaN by nothing from NaN, and infinitely from any number. Of an array whose
    leading axes ``where`` fits, only the entries where that is True count.
    """
    fitting = x if x.shape == true.shape else aligned(x, true)
    if fitting is None:
        return float("inf")
    x, true = fitting.astype(np.float64), true.astype(np.float64)
    if where is not None and (counted := kept(where, true.shape)) is not None:
        x, true = np.where(counted, x, 0), np.where(counted, true, 0)
    same = (x == true) | (np.isnan(x) & np.isnan(true))
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.where(same, 0, x) - np.where(same, 0, true))
    worst = float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0.0))
    return worst / (largest(true) or 1.0 if scale is None else scale)


def kept(where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask of leading axes for all entries of an array of this shape; None where it fits no such array."""
    lead = shape[: where.ndim]
    if len(lead) < where.ndim or any(n not in (1, full) for n, full in zip(where.shape, lead, strict=True)):
        return None
    return np.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - where.ndim)), shape)


def largest(x: np.ndarray) -> float:
    """The largest finite entry, without its sign."""
    return float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))


def scales(true: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the errors of each gradient are relative to: its largest entry.

    Where that is nothing but rounding (the gradient of a key's bias is zero, as softmax does not see what all keys
    share), the largest entry of all.
    """
    each = {name: largest(x) for name, x in true.items()}
    most = max(each.values(), default=0.0)
    return {name: x if x > 1e-12 * most else most or 1.0 for name, x in each.items()}


def some(names: Sequence[str], number: int = 3) -> str:
    """The first names, and how many there are more, for a report."""
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more
