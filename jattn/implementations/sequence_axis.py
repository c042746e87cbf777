"""The caller's ``sequence_axis``: which axes of a mesh divide queries and keys, and whether what lies there fits."""

import dataclasses
from typing import Any

import jax
from jax import lax

from jattn._engine.axes import axis_in
from jattn.implementations.call import Divided
from jattn.logits import Logits

__all__ = ["axes_asked_for", "mesh_of"]


def axes_asked_for(sequence_axis: Any, logits: Logits) -> tuple[tuple[str | None, str] | None, Divided | None, Logits]:
    """The axes that are to divide a whole call; or, inside of a `jax.shard_map` over them, how a part is divided, and
    the logits of such a part, checked.
    """
    names = (sequence_axis, sequence_axis) if isinstance(sequence_axis, str) else sequence_axis
    if (
        not isinstance(names, tuple)
        or len(names) != 2
        or not isinstance(names[1], str)
        or not isinstance(names[0], str | None)
    ):
        raise ValueError(
            "sequence_axis must be the name of a mesh axis, or a pair of names, the queries' (or None) and the keys'. "
            f"Got {sequence_axis!r}."
        )
    sizes, manual = _known_axes(logits)
    for name in filter(None, names):
        if name not in sizes:
            what = f"the mesh has the axes {', '.join(map(repr, sizes))}" if sizes else "no mesh is set"
            raise ValueError(
                f"sequence_axis must name an axis of the mesh. Got {name!r}; {what}. Compute inside of "
                "`with jax.set_mesh(mesh):`, or of a jax.shard_map over that axis."
            )
    queries, keys = names
    if (keys in manual) != (queries in manual if queries else keys in manual):
        raise ValueError(
            f"sequence_axis must name axes that the jax.shard_map around is over, or none of them. Got {names}."
        )
    t, s = logits.query.shape[-3], logits.key.shape[-3]
    if keys not in manual:
        for argument, axis, length in (("query", queries, t), ("key", keys, s)):
            if axis is not None and length % sizes[axis]:
                whole = f" attention(..., sequence_axis=(None, {keys!r})) leaves queries whole."
                raise ValueError(
                    f"{argument} must have tokens that {sizes[axis]} devices, those of sequence_axis {axis!r}, can "
                    f"divide equally. Got {length}. Pad them, and say by a mask what is padding."
                    f"{whole if argument == 'query' else ''}"
                )
        logits.check(logits.shape)
        return names, None, logits
    divided = Divided(keys, sizes[keys], with_queries=queries == keys)
    logits.check(logits.shape._replace(columns=s * divided.parts))
    if not logits.by_pair:
        raise ValueError(
            "score must be one of jattn.scores, or say by_pair = True, where a device has a part of the sequence. Got "
            f"{logits.score!r:.80}, which may depend on positions."
        )
    _check_columns(logits, divided)
    return None, divided, _numbered(logits, queries)


def _known_axes(logits: Logits) -> tuple[dict[str, int], tuple[str, ...]]:
    """The sizes of the axes of the mesh, by name, and which of them a `jax.shard_map` around is over."""
    mesh = mesh_of(logits)
    return ({}, ()) if mesh.empty else (dict(mesh.shape), mesh.manual_axes)


def mesh_of(logits: Logits) -> Any:
    """That of the arrays where they know, else the one that is set."""
    meshes = [jax.typeof(x).sharding.mesh for x in (logits.query, logits.key)]
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


def _numbered(logits: Logits, axis: str | None) -> Logits:
    if axis is None:
        return logits
    return dataclasses.replace(logits, first_query=lax.axis_index(axis) * logits.query.shape[-3])


def _check_columns(logits: Logits, divided: Divided) -> None:
    """What has an entry for each pair is there for all keys, as the device's queries meet them."""
    s = logits.key.shape[-3]
    if s == 1 and divided.parts > 1 and divided.with_queries:
        raise ValueError(
            "key must have at least two keys on each device where a sequence is divided, or an axis of length 1 could "
            "stand for all. Got 1."
        )

    def look(name: str, axes: str | None, x: Any) -> Any:
        t, keys = axis_in("t", axes, x), axis_in("s", axes, x)
        of_pairs = t is not None and keys is not None and x.shape[t] != 1 and x.shape[keys] != 1
        if of_pairs and divided.with_queries and x.shape[keys] != s * divided.parts:
            raise ValueError(
                f"{name} must have all {s * divided.parts} keys for the device's own queries. Got shape {x.shape}. "
                "Divide it over its queries' axis alone, as its partition_specs(t=..., s=...) says."
            )
        return x

    logits.map_fields(look)
