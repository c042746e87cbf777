"""Attention where a mesh has explicit axes, so that arrays say where they lie: each device computes its own part.

Examples and heads need nothing of one another, so with `jax.shard_map` around it any implementation runs on a device's
part as on one device. Queries may be divided, too, as each part sees all keys.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jattn._engine.varying import all_varying
from jattn._kernels import Given
from jattn.implementations.call import Call

__all__ = ["over_mesh"]


def over_mesh(run: Callable[[Call], Any], call: Call, results: Any, whole: str = "") -> Any:
    """``run(call)``, of each device's part where the arrays are divided over explicit axes of a mesh.

    ``results``: as run's, with the letters of each array's axes, such as ``"bthe"``; without t, it is a sum over
    queries. ``whole``: axes, h or t, that run needs whole.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(call) if any(_axes_of(x))]
    if not meshes:
        return run(all_varying(call))
    division = _Division(meshes[0], *_axes(call)).without(whole)
    call = _with_numbers(call, division)
    h, k = call.logits.query.shape[-2], call.logits.key.shape[-2]
    shared = k % division.parts(division.h) != 0  # some devices need the same key head
    specs = _specs(call, division, shared)
    placed = jax.tree.map(division.place, call, specs)
    if not division.axes:
        return run(placed)

    def of_part(part: Call) -> Any:
        result = run(_with_its_own(all_varying(part), h // k, division, shared))
        return jax.tree.map(division.summed, results, result)

    return jax.shard_map(
        of_part,
        mesh=division.mesh,
        in_specs=(specs,),
        out_specs=jax.tree.map(division.spec, results),
        axis_names=division.axes,
    )(placed)


class _Division(NamedTuple):
    """By attention's axes, the axes of a mesh that divide them: a name, several, or None."""

    mesh: Any
    b: tuple[Any, ...]  # one for each
    h: Any
    t: Any
    e: Any

    def without(self, letters: str) -> "_Division":
        """With these axes, h or t, whole."""
        return self._replace(h=None if "h" in letters else self.h, t=None if "t" in letters else self.t)

    @property
    def axes(self) -> set[str]:
        """All of them."""
        return {name for axes in (*self.b, self.h, self.t, self.e) for name in _names_of(axes)}

    def spec(self, letters: str, shape: tuple[int, ...] | None = None) -> PartitionSpec:
        """Of an array whose last axes are these letters, b standing for all of the batch; length 1 is not divided."""
        axes = [x for letter in letters for x in (self.b if letter == "b" else [getattr(self, letter, None)])]
        if shape is not None:
            axes = [None if n == 1 else x for n, x in zip(shape, axes[-len(shape) :], strict=True)]
        return PartitionSpec(*axes)

    def place(self, x: Array, spec: PartitionSpec) -> Array:
        is_there = all(a == b for a, b in itertools.zip_longest(_axes_of(x), spec))
        if is_there or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return jax.sharding.reshard(x, NamedSharding(self.mesh, spec))

    def summed(self, letters: str, x: Array) -> Array:
        """A part's result, and the other parts' where it sums over queries."""
        return x if "t" in letters or self.t is None else lax.psum(x, self.t)

    def parts(self, axes: Any) -> int:
        """How many these axes make."""
        return math.prod(self.mesh.shape[name] for name in _names_of(axes))


def _axes_of(x: Array) -> tuple[Any, ...]:
    """How an array says that it is divided; automatic axes say nothing."""
    return tuple(jax.typeof(x).sharding.spec)


def _names_of(axes: Any) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _axes(call: Call) -> tuple[tuple[Any, ...], Any, Any, Any]:
    """The fields of `_Division`: the axes of query, where it has none those of key and value; each once."""
    logits = call.logits
    *batch, t, h, _ = _axes_of(logits.query)
    others = [_axes_of(x) for x in (logits.key, call.value) if x is not None]
    # A score of the caller's own may depend on positions and heads.
    by_part = logits.by_pair or isinstance(logits.score, Given)
    used: set[str] = set()

    def first_unused(*candidates: Any) -> Any:
        for axes in candidates:
            if (names := _names_of(axes)) and used.isdisjoint(names):
                used.update(names)
                return axes
        return None

    b = tuple(first_unused(axes, *(spec[i] for spec in others)) for i, axes in enumerate(batch))
    h = first_unused(h, *(spec[-2] for spec in others)) if by_part else None
    return b, h, first_unused(t) if by_part else None, first_unused(others[-1][-1]) if call.value is not None else None


def _with_numbers(call: Call, division: _Division) -> Call:
    """With the numbers that a part can't know: of its matrices, and the positions of its queries."""
    logits = call.logits
    if division.t is not None and logits.query_positions is None:
        logits = dataclasses.replace(logits, query_positions=jnp.arange(logits.query.shape[-3]))
    matrices = call.matrix_numbers() if call.dropout_rate > 0 else None
    return dataclasses.replace(call, logits=logits, matrices=matrices)


def _specs(call: Call, division: _Division, shared: bool) -> Call:
    """The call with `PartitionSpec`s in the place of its arrays."""
    logits, of = call.logits, division.spec
    k = "k" if shared else "h"
    score = of("bhts") if isinstance(logits.score, Given) else PartitionSpec()
    fields = logits.partition_specs(batch=len(division.b), b=division.b, h=division.h, t=division.t)
    specs: dict[str, Any] = {
        "logits": dataclasses.replace(
            fields,
            query=of("bthd"),
            key=of(f"bs{k}d"),
            score=jax.tree.map(lambda x: score, logits.score),
        ),
        "value": of(f"bs{k}e"),
        "dropout_rng": PartitionSpec(),
        "head_gates": None if call.head_gates is None else of("bh", call.head_gates.shape),
        "matrices": of("bh"),
    }
    return dataclasses.replace(call, **{name: x for name, x in specs.items() if getattr(call, name) is not None})


def _with_its_own(part: Call, g: int, division: _Division, shared: bool) -> Call:
    """A part with its query heads' key heads alone, each of which g share, and with the number of its first query."""
    logits, value, first_query = part.logits, part.value, part.first_query
    *_, t, h, _ = logits.query.shape
    if shared:
        first = lax.axis_index(division.h) * h

        def own(x: Array) -> Array:
            if g % h == 0:  # one for all of them
                return lax.dynamic_slice_in_dim(x, first // g, 1, -2)
            return jnp.take(x, (first + jnp.arange(h)) // g, axis=-2)

        logits, value = dataclasses.replace(logits, key=own(logits.key)), None if value is None else own(value)
    if division.t is not None:
        first_query = first_query + lax.axis_index(division.t) * t
    return dataclasses.replace(part, logits=logits, value=value, first_query=first_query)
