"""A device's part of a call whose sequence is divided: what of it goes where the keys go, and which parts meet.

A field of a mask or a bias lies as `Rule.partition_specs` says: with t it is divided as the queries are, and holds all
keys where it has both t and s; with s alone it goes where the keys go.

Axes beyond the usual: n parts.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jattn._engine.axes import axis_in
from jattn._engine.checks import is_concrete
from jattn._engine.collectives import gathered_over
from jattn._engine.extents import Extent, slice_along
from jattn._engine.grid import Grid, grid_of
from jattn._engine.varying import all_varying
from jattn._mask import And, Mask, Or
from jattn._masks import Segments
from jattn.implementations.call import Call, Divided, Result
from jattn.softmax import beside_sinks

__all__ = [
    "against",
    "arrays_of",
    "beside_all_keys",
    "bytes_of_keys",
    "bytes_of_output",
    "division_of",
    "gathered",
    "hops",
    "reached_parts",
    "sinks_of",
    "travelling",
    "varying_over",
    "with_sinks",
]


def division_of(call: Call) -> Divided:
    assert call.divided is not None
    return call.divided


def arrays_of(call: Call) -> tuple[Any, Any, Any]:
    return call.logits.query, call.logits.key, call.value


def varying_over(call: Call) -> Call:
    """With arrays that are known to differ between the devices."""
    _, varying = all_varying((lax.axis_index(division_of(call).axis), call))
    return varying


def travelling(call: Call) -> list[bool]:
    """For each array of a device's part, in the order of its leaves, whether it goes where the keys go."""

    def of(name: str, axes: str | None, x: Any) -> np.bool_:
        return np.bool_(_of_keys(call, axes, x))

    marks = dict(jax.tree_util.tree_leaves_with_path(call.logits.map_fields(of)))

    def travels(path: tuple[Any, ...]) -> bool:
        room, *inside = path
        if room.name != "logits":
            return bool(room.name == "value")
        mark = marks[tuple(inside)]
        return bool(inside[0].name == "key" or (isinstance(mark, np.bool_) and mark))

    return [travels(path) for path, _ in jax.tree_util.tree_leaves_with_path(call)]


def _of_keys(call: Call, axes: str | None, x: Any) -> bool:
    t, s = axis_in("t", axes, x), axis_in("s", axes, x, call.logits.key.shape[-3])
    return s is not None and (t is None or x.shape[t] == 1 or not division_of(call).with_queries)


def bytes_of_keys(call: Call) -> int:
    """Of a device's part of them, and of what belongs to them."""
    leaves = zip(jax.tree.leaves(call), travelling(call), strict=True)
    return sum(x.size * x.dtype.itemsize for x, travels in leaves if travels)


def bytes_of_output(call: Call) -> int:
    """With what merges it, in float32 or wider."""
    query, _, value = arrays_of(call)
    return int(math.prod(query.shape[:-1]) * (value.shape[-1] + 2) * max(value.dtype.itemsize, 4))


def against(call: Call, number: Extent) -> Call:
    """A device's queries with the part of the keys of that number, which it holds."""
    s, n = call.logits.key.shape[-3], division_of(call).parts
    first = number * s

    def of(name: str, axes: str | None, x: Any) -> Any:
        keys = axis_in("s", axes, x, n * s)
        return x if keys is None else slice_along(x, first, s, keys)

    logits = call.logits.map_fields(of)
    logits = dataclasses.replace(logits, first_key=first, mask=_of_different_tokens(logits.mask))
    return dataclasses.replace(call, logits=logits, divided=None)


def _of_different_tokens(mask: Mask | None) -> Mask | None:
    """A mask that takes the queries and the keys for different tokens."""

    def of(x: Any) -> Any:
        return x._replace(own=False) if isinstance(x, Segments) else x

    return jax.tree.map(of, mask, is_leaf=lambda x: isinstance(x, Segments))


def beside_all_keys(call: Call) -> Call:
    """What a part's result is merged from: without the sinks, which come once, and with the log-sum-exp."""
    logits = dataclasses.replace(call.logits, sinks=None)
    return dataclasses.replace(call, logits=logits, return_log_sum_exp=True, divided=None)


def sinks_of(call: Call) -> Float[Array, "*b #t h"] | None:
    """As a log-sum-exp lies."""
    sinks = call.logits.sinks_of_rows()
    return None if sinks is None else jnp.swapaxes(sinks, -1, -2)


def with_sinks(call: Call, output: Array, log_sum_exp: Array) -> Result:
    """The result of all keys, beside the sinks."""
    sinks = sinks_of(call)
    if sinks is not None:
        share, log_sum_exp = beside_sinks(log_sum_exp, sinks)
        output = output * share[..., None]
    return Result(output, log_sum_exp=log_sum_exp if call.return_log_sum_exp else None)


def gathered(call: Call) -> Call:
    """A device's queries with all keys; as it is where no sequence is divided."""
    if call.divided is None:
        return call
    axis = call.divided.axis

    def whole(x: Array, at: int) -> Array:
        return gathered_over(x, axis, at)

    def of(name: str, axes: str | None, x: Array) -> Array:
        keys = axis_in("s", axes, x)
        return whole(x, keys) if keys is not None and _of_keys(call, axes, x) else x

    logits = dataclasses.replace(call.logits.map_fields(of), key=whole(call.logits.key, -3), first_key=0)
    value = None if call.value is None else whole(call.value, -3)
    return dataclasses.replace(call, logits=logits, value=value, divided=None)


# ----------------------------------------------------------------------------------------------------------------------
# Which parts can reach which.


def reached_parts(call: Call) -> tuple[bool, ...]:
    """For each r, whether the queries of some device can reach the keys of the part r before it, counted around.

    It is decided while tracing: by a mask without data and by positions that are the tokens' numbers.
    """
    logits, n = call.logits, division_of(call).parts
    t, s = logits.query.shape[-3], logits.key.shape[-3]
    if logits.mask is None or logits.query_positions is not None or logits.key_positions is not None:
        return (True,) * n
    reached = np.zeros(n, bool)
    for i in range(n):
        with np.errstate(all="ignore"):
            keys = _reached_keys(logits.mask, grid_of(t, n * s, start=i * t, known=True))
        reached[(i - np.flatnonzero(np.broadcast_to(keys, n * s).reshape(n, s).any(axis=1))) % n] = True
    return tuple(reached.tolist())


def _reached_keys(mask: Mask, grid: Grid) -> np.ndarray | bool:
    """The keys, one after the other, that some query may reach, as far as is known; True: all of them."""
    if isinstance(mask, And | Or):
        joined: Any = mask.join(_reached_keys(mask.a, grid), _reached_keys(mask.b, grid))
        return joined
    if jax.tree.leaves(mask):
        return True
    reachable = mask.reachable(grid)
    if reachable is True or not is_concrete(reachable):
        return True
    keys: Any = np.asarray(reachable).any(axis=tuple(range(np.ndim(reachable) - 1)))
    return keys


def hops(reached: tuple[bool, ...]) -> tuple[int, int]:
    """How far keys go around, onward and back, until all that `reached_parts` says have met: the fewest in all.

    >>> hops((True, True, True, True)), hops((True, True, False, False)), hops((True, True, False, True))
    ((3, 0), (1, 0), (1, 1))
    """
    n = len(reached)
    far = [r for r in range(1, n) if reached[r]]

    def both_ways(most: int) -> tuple[int, int]:
        return max((r for r in far if r <= most), default=0), max((n - r for r in far if r > most), default=0)

    return min(map(both_ways, range(n)), key=lambda ways: (sum(ways), ways[1]))
