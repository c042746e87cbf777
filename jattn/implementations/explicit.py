"""Attention where a mesh has explicit axes, so that arrays say where they lie: each device computes its own part.

Examples and heads need nothing of one another, so with `jax.shard_map` around it any implementation runs on a device's
part as on one device. Queries may be divided, too, as each part sees all keys. Where keys are, or where the caller
names the axis of a mesh with automatic axes that is to divide them, `sequence` says what the devices send.
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

from jattn._engine.mesh_axes import axis_names
from jattn._engine.varying import all_varying
from jattn._kernels import Given
from jattn._score import Score
from jattn.implementations.call import Call, Divided
from jattn.implementations.sequence_axis import mesh_of

__all__ = ["over_mesh", "part_of"]


def over_mesh(run: Callable[[Call], Any], call: Call, results: Any, whole: str = "") -> Any:
    """``run(call)``, of each device's part where the arrays are divided over explicit axes of a mesh.

    ``results``: as run's, with the letters of each array's axes, such as ``"bthe"``; without t, it is a sum over
    queries. ``whole``: axes, h, t or s, that run needs whole.
    """
    letters = jax.tree.leaves(results)
    # What has none of a value's features would be the same on all devices that divide these, which JAX can't know.
    division = _division(call, whole if all("e" in axes for axes in letters) else f"{whole}e")
    if division is None:
        return run(all_varying(call))
    # Those of a part's matrices it can't know.
    call = dataclasses.replace(call, matrices=call.matrix_numbers() if call.dropout_rate > 0 else None)
    h, k = call.logits.query.shape[-2], call.logits.key.shape[-2]
    shared = division.shares(k)
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
        out_specs=jax.tree.map(division.without("s").spec, results),
        axis_names=division.axes,
    )(placed)


def part_of(call: Call) -> Call:
    """What a device has of a call: shapes and dtypes in the place of its arrays, where these are divided."""
    division = _division(call, "")
    if division is None or not isinstance(call.logits.score, Score):  # a function's logits are computed before
        return call
    shared = division.shares(call.logits.key.shape[-2])

    def of(x: Any, spec: PartitionSpec) -> Any:
        if isinstance(x, int | float):
            return x
        axes = zip(x.shape, itertools.chain(spec, itertools.repeat(None)), strict=False)
        return jax.ShapeDtypeStruct(tuple(n // division.parts(names) for n, names in axes), x.dtype)

    part = jax.tree.map(of, call, _specs(call, division, shared))
    if shared:
        h, g = part.logits.query.shape[-2], call.logits.query.shape[-2] // call.logits.key.shape[-2]

        def own(x: Any) -> Any:
            return jax.ShapeDtypeStruct((*x.shape[:-2], 1 if g % h == 0 else h, x.shape[-1]), x.dtype)

        logits = dataclasses.replace(part.logits, key=own(part.logits.key))
        part = dataclasses.replace(part, logits=logits, value=None if part.value is None else own(part.value))
    return dataclasses.replace(part, sequence_axes=None, divided=division.sequence or part.divided)


class _Division(NamedTuple):
    """By attention's axes, the axes of a mesh that divide them: a name, several, or None."""

    mesh: Any
    b: tuple[Any, ...]  # one for each
    h: Any
    t: Any
    s: Any
    e: Any

    def without(self, letters: str) -> "_Division":
        """With these axes, h, t or s, whole."""
        whole: dict[str, Any] = dict.fromkeys(letters)
        return self._replace(**whole)

    @property
    def axes(self) -> set[str]:
        """All of them."""
        return {name for axes in (*self.b, self.h, self.t, self.s, self.e) for name in axis_names(axes)}

    @property
    def sequence(self) -> Divided | None:
        """What its devices send keys over."""
        if self.s is None:
            return None
        return Divided(self.s, self.parts(self.s), with_queries=axis_names(self.t) == axis_names(self.s))

    def shares(self, k: int) -> bool:
        """Whether some devices need the same one of k key heads."""
        return k % self.parts(self.h) != 0

    def spec(self, letters: str, shape: tuple[int, ...] | None = None) -> PartitionSpec:
        """Of an array whose last axes are these letters, b standing for all of the batch; length 1 is not divided."""
        axes = [x for letter in letters for x in (self.b if letter == "b" else [getattr(self, letter, None)])]
        if shape is not None:
            axes = [None if n == 1 else x for n, x in zip(shape, axes[-len(shape) :], strict=True)]
        return PartitionSpec(*axes)

    def place(self, x: Array, spec: PartitionSpec) -> Array:
        spec = PartitionSpec(*(names if self._is_explicit(names) else None for names in spec))
        is_there = all(a == b for a, b in itertools.zip_longest(_axes_of(x), spec))
        if is_there or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return jax.sharding.reshard(x, NamedSharding(self.mesh, spec))

    def _is_explicit(self, names: Any) -> bool:
        return not set(axis_names(names)) - set(self.mesh.explicit_axes)

    def summed(self, letters: str, x: Array) -> Array:
        """A part's result, and the other parts' where it sums over queries."""
        return x if "t" in letters or self.t is None else lax.psum(x, self.t)

    def parts(self, axes: Any) -> int:
        """How many these axes make."""
        return math.prod(self.mesh.shape[name] for name in axis_names(axes))


def _axes_of(x: Any) -> tuple[Any, ...]:
    """How an array says that it is divided; automatic axes say nothing."""
    return () if isinstance(x, int | float) else tuple(jax.typeof(x).sharding.spec)


def _division(call: Call, whole: str) -> _Division | None:
    """How the arrays of a call are divided, or are to be; None if they aren't, as far as can be known."""
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(call) if any(_axes_of(x))]
    if not meshes and call.sequence_axes is None:
        return None
    mesh = meshes[0] if meshes else mesh_of(call.logits)
    division = _Division(mesh, *_axes(call)).without(whole)
    # An axis of length 1 could be one key, or stand for all.
    single = None not in (division.s, division.t) and call.logits.key.shape[-3] == division.parts(division.s)
    return division.without("s") if single else division


def _axes(call: Call) -> tuple[tuple[Any, ...], Any, Any, Any, Any]:
    """The fields of `_Division`: the axes of query, where it has none those of key and value; each once."""
    logits = call.logits
    *batch, t, h, _ = _axes_of(logits.query)
    s = _axes_of(logits.key)[-3]
    if call.sequence_axes is not None:
        t, s = call.sequence_axes
    others = [_axes_of(x) for x in (logits.key, call.value) if x is not None]
    # A score of the caller's own may depend on positions and heads.
    by_part = logits.by_pair or isinstance(logits.score, Given)
    used: set[str] = set()

    def first_unused(*candidates: Any) -> Any:
        for axes in candidates:
            if (names := axis_names(axes)) and used.isdisjoint(names):
                used.update(names)
                return axes
        return None

    b = tuple(first_unused(axes, *(spec[i] for spec in others)) for i, axes in enumerate(batch))
    h = first_unused(h, *(spec[-2] for spec in others)) if by_part else None
    t = first_unused(t) if by_part else None
    if logits.by_pair and call.divided is None:
        s = t if t is not None and axis_names(s) == axis_names(t) else first_unused(s)
    else:
        s = None
    return b, h, t, s, first_unused(others[-1][-1]) if call.value is not None else None


def _specs(call: Call, division: _Division, shared: bool) -> Call:
    """The call with `PartitionSpec`s in the place of its arrays."""
    logits, of = call.logits, division.spec
    k = "k" if shared else "h"
    score = of("bhts") if isinstance(logits.score, Given) else PartitionSpec()
    fields = logits.partition_specs(batch=len(division.b), b=division.b, h=division.h, t=division.t, s=division.s)
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
    logits, value = part.logits, part.value
    *_, t, h, _ = logits.query.shape
    if shared:
        first = lax.axis_index(division.h) * h

        def own(x: Array) -> Array:
            if g % h == 0:  # one for all of them
                return lax.dynamic_slice_in_dim(x, first // g, 1, -2)
            return jnp.take(x, (first + jnp.arange(h)) // g, axis=-2)

        logits, value = dataclasses.replace(logits, key=own(logits.key)), None if value is None else own(value)
    if division.t is not None:
        logits = dataclasses.replace(logits, first_query=logits.first_query + lax.axis_index(division.t) * t)
    divided = division.sequence or part.divided
    return dataclasses.replace(part, logits=logits, value=value, sequence_axes=None, divided=divided)
