"""Where a model's parameters lie on a mesh of devices, as JAX's own shardings.

A parameter's axes have names ("embed", "heads", "mlp", "vocab" ..., which `axes` lists). A table of rules leads from
these names to axes of the mesh; some tables have names of their own, which `layout` spells out:

    "data"      parameters whole on each device, batches split
    "fsdp"      batches split, and parameters along the model's width (fully sharded data parallelism, ZeRO)
    "tensor"    heads, inner widths of networks and the vocabulary split (Megatron)
    "sequence"  the tokens that attention sees, in `jattn.training.fit`

and several of the last three, such as "fsdp+tensor". The mesh's axes are called so there; batches are split over "data"
and "fsdp" where the mesh has them. All else is a table of your own, such as
``{"batch": "hosts", "heads": "chips", "experts": "chips"}``.

An axis that the devices do not divide stays whole, as do fewer key and value heads than devices; of several axes of the
mesh, as many are taken as do. No axis of a mesh splits a parameter twice: the first of its axes gets it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jattn._axis_names import KNOWN, Names, names_of
from jattn._engine import checks
from jattn._engine.mesh_axes import axis_names, spec_of
from jattn.nn import AdditiveAttention, DotProductAttention, MultiHeadAttention, NadarayaWatson, torch

__all__ = ["Rules", "axes", "check_mesh", "divide_sequence", "layout", "mesh_axes_of", "shard", "specs"]

Rules = Mapping[str, str | tuple[str, ...] | None]

_SPLIT: dict[str, dict[str, str]] = {
    "fsdp": {"embed": "fsdp"},
    "tensor": dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), "tensor"),
    "sequence": {"sequence": "sequence"},
}
_LAYOUTS = ("data", *("+".join(some) for n in (1, 2, 3) for some in itertools.combinations(_SPLIT, n)))
_OF_BATCHES = ("data", "fsdp")
_WHOLE_SEQUENCES = (DotProductAttention, AdditiveAttention, NadarayaWatson)  # attend to these alone


def layout(mesh: Mesh | AbstractMesh, kind: str | None = None) -> dict[str, str | tuple[str, ...] | None]:
    """The rules that go by this name, on this mesh: from names of axes to axes of the mesh, to be changed at will.

    Args:
        mesh: with the axes that the name stands for.
        kind: ``"data"``, ``"fsdp"``, ``"tensor"``, ``"sequence"``, or several of the last three in this order, joined
            by ``+``; by default what the mesh has the axes for.

    Example:

        >>> mesh = jax.make_mesh((1, 1), ("data", "fsdp"))
        >>> layout(mesh, "fsdp")
        {'batch': ('data', 'fsdp'), 'embed': 'fsdp'}
    """
    check_mesh(mesh)
    if kind is None:
        _check_each_has_a_use(mesh)
        kind = "+".join(axis for axis in _SPLIT if axis in mesh.axis_names) or "data"
    checks.one_of("rules", kind, _LAYOUTS)
    needed = kind.split("+")
    if missing := [axis for axis in needed if axis not in mesh.axis_names]:
        raise ValueError(
            f"mesh must have the axes {', '.join(needed)} for the layout {kind!r}. Got {_joined(mesh.axis_names)}, "
            f"without {', '.join(missing)}. Name them so, or give rules from names of parameters' axes to the mesh's."
        )
    over = tuple(axis for axis in _OF_BATCHES if axis in mesh.axis_names)
    split = {name: axis for part in needed if part in _SPLIT for name, axis in _SPLIT[part].items()}
    return {"batch": over or None, **split}


def axes(model: nnx.Module) -> dict[str, Names | None]:
    """The names of the axes of a model's variables, by their paths; None for a variable that nobody has named.

    A module of yours names its own as Flax does: ``nnx.Param(x, out_sharding=("embed", "mlp"), eager_sharding=False)``.

    Example:

        >>> from jattn import nn
        >>> axes(nn.FeedForward(4, 8, use_bias=False, rngs=nnx.Rngs(0)))
        {'linear1.kernel': ('embed', 'mlp'), 'linear2.kernel': ('mlp', 'embed')}
    """
    _check_model(model)
    return {".".join(map(str, path)): names for path, names in names_of(model).items()}


def specs(model: nnx.Module, mesh: Mesh | AbstractMesh, rules: str | Rules) -> PyTree:
    """A `NamedSharding` for each of the model's variables, in a nest like ``nnx.state(model)``.

    It fits ``jax.device_put``, ``in_shardings``, orbax. A model that need not exist yet, as ``nnx.eval_shape`` makes
    it, will do.

    Args:
        model: its variables' names, shapes and no more are looked at.
        mesh: of any axis types; an AbstractMesh, whose devices need not be there, will do.
        rules: a layout's name, or a table from names of axes to an axis of the mesh, a tuple of them, or None; what it
            leaves out stays whole. "batch" is what `jattn.training.fit` splits.

    Example:

        >>> from jattn import nn
        >>> mesh = jax.make_mesh((1,), ("tensor",))
        >>> network = nn.FeedForward(4, 8, use_bias=False, rngs=nnx.Rngs(0))
        >>> specs(network, mesh, "tensor")["linear1"]["kernel"].get_value().spec[1]
        'tensor'
    """
    _check_model(model)
    names = names_of(model)
    rules = _table_of_rules(rules, mesh, names.values())
    state = nnx.state(model)
    flat = {path: _spec(names.get(path), x.shape, mesh, rules) for path, x in nnx.to_flat_state(state)}
    return nnx.from_flat_state(
        [(path, x.replace(NamedSharding(mesh, flat[path]))) for path, x in nnx.to_flat_state(state)]
    )


def shard(model: nnx.Module, mesh: Mesh, rules: str | Rules) -> None:
    """Put the model's variables where the rules say, in place. Arguments as in `specs`, the mesh of devices.

    Example:

        >>> from jattn import nn
        >>> network = nn.FeedForward(4, 8, rngs=nnx.Rngs(0))
        >>> shard(network, jax.make_mesh((1,), ("fsdp",)), "fsdp")
        >>> network.linear1.kernel.sharding.spec[0]
        'fsdp'
    """
    check_mesh(mesh, Mesh)
    nnx.update(model, jax.device_put(nnx.state(model), specs(model, mesh, rules)))


def divide_sequence(model: nnx.Module, axis: str | None) -> None:
    """Have a model's attention divide the sequence over an axis of the mesh, in place; None undoes it.

    It is that of all `jattn.nn.MultiHeadAttention`, also PyTorch's (`jattn.nn.torch`), and so of all blocks and models
    that have it. Arguments of `jattn.attention` that this rules out are refused when the model is called, within a mesh
    that has the axis (``jax.set_mesh``); `jattn.training.fit` does all of it by the rule "sequence". A cache is divided
    if its room can be, which `jattn.nn.new_cache` sees to within the mesh.

    Raises:
        ValueError: if there is no such attention in the model, or another one of `jattn.nn` beside it.

    Example:

        >>> from jattn import nn
        >>> block = nn.TransformerBlock(num_heads=2, features=4, feedforward_features=8, rngs=nnx.Rngs(0))
        >>> divide_sequence(block, "seq")
        >>> with jax.set_mesh(jax.make_mesh((1,), ("seq",))):
        ...     block(jax.numpy.ones((1, 6, 4))).shape
        (1, 6, 4)
    """
    _check_model(model)
    if not isinstance(axis, str | None):
        raise ValueError(f"axis must be the name of an axis of the mesh, or None. Got {axis!r:.80}.")
    parts = [part for _, part in nnx.iter_graph(model)]
    found: list[Any] = [part for part in parts if isinstance(part, MultiHeadAttention | torch.MultiheadAttention)]
    whole = {type(part).__name__ for part in parts if isinstance(part, _WHOLE_SEQUENCES)}
    if not found or whole:
        raise ValueError(
            "model must attend by jattn.nn.MultiHeadAttention, which can divide the sequence. Got a model with "
            f"{_joined(sorted(whole)) if whole else 'none'}. In one of your own, pass sequence_axis to jattn.attention."
        )
    for part in found:
        part.sequence_axis = axis


def mesh_axes_of(name: str, mesh: Mesh | AbstractMesh, rules: str | Rules) -> tuple[str, ...]:
    """Over which axes of the mesh the rules split axes of this name, "batch" and "sequence" among others."""
    return axis_names(_table_of_rules(rules, mesh, None).get(name))


def _spec(names: Names | None, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules) -> PartitionSpec:
    taken: set[str] = set()
    parts = []
    for name, n in zip(names or (None,) * len(shape), shape, strict=True):
        over = [axis for axis in axis_names(rules.get(name) if name else None) if axis not in taken]
        while over and n % math.prod(mesh.shape[axis] for axis in over):
            over.pop()
        taken.update(over)
        parts.append(over)
    return spec_of(parts)


def _table_of_rules(rules: str | Rules, mesh: Mesh | AbstractMesh, names: Iterable[Names | None] | None) -> Rules:
    """The rules as a table, which leads from names that there are, where those are said, to axes of the mesh."""
    check_mesh(mesh)
    if isinstance(rules, str):
        return layout(mesh, rules)
    if not isinstance(rules, Mapping):
        raise ValueError(
            f"rules must be one of {', '.join(map(repr, _LAYOUTS))}, or a table from names of parameters' axes to axes "
            f"of the mesh. Got {rules!r:.80}."
        )
    known = {"batch", "sequence", *KNOWN, *(name for of in names or () for name in of or () if name)}
    for name, over in rules.items():
        if names is not None and name not in known:
            raise ValueError(
                f"rules must be of the names that axes have: {_joined(sorted(known))}. Got {name!r}. "
                "jattn.sharding.axes(model) lists those of each parameter."
            )
        if not isinstance(over, str | tuple | None) or set(axis_names(over)) - set(mesh.axis_names):
            raise ValueError(
                f"rules must lead to axes of the mesh, {_joined(mesh.axis_names)}, to tuples of them, or to None. "
                f"Got {over!r} for {name!r}."
            )
        if len(set(axis_names(over))) < len(axis_names(over)):
            raise ValueError(f"rules must lead to different axes of the mesh. Got {over!r} for {name!r}.")
    return rules


def _check_each_has_a_use(mesh: Mesh | AbstractMesh) -> None:
    known = ("data", *_SPLIT)
    if unused := [axis for axis in mesh.axis_names if axis not in known and mesh.shape[axis] > 1]:
        raise ValueError(
            f"mesh must have no axes but {', '.join(known)}, where no rules say what others are for. Got "
            f"{_joined(unused)}. Name them so, or give rules."
        )


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def check_mesh(mesh: Any, kind: Any = Mesh | AbstractMesh) -> None:
    """Raise ValueError unless it is a mesh, of devices or abstract."""
    if not isinstance(mesh, kind):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, as jax.make_mesh makes. Got {mesh!r:.80}.")


def _check_model(model: Any) -> None:
    if not isinstance(model, nnx.Module):
        raise ValueError(f"model must be a flax.nnx.Module. Got {type(model).__name__}.")
