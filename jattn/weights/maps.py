"""Where each kind of module keeps the numbers of PyTorch's entries: the maps that `jattn.weights` lists."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jattn.nn.experts import MixtureOfExperts
from jattn.nn.recurrent import GRU
from jattn.nn.torch import MultiheadAttention as TorchMultiheadAttention
from jattn.nn.wide_multi_head import WideMultiHeadSelfAttention
from jattn.weights.table import Table

__all__ = ["Map", "all_maps", "register_map"]

Relayout = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Map(NamedTuple):
    """Parameters that belong together, the entries that hold the same numbers, and the way from each to the other."""

    parameters: tuple[nnx.Variable, ...]
    names: tuple[str, ...]
    to_torch: Relayout
    from_torch: Relayout

    def entries(self) -> dict[str, np.ndarray]:
        """The state dict's entries for the present numbers."""
        arrays = self.to_torch([np.asarray(parameter[...]) for parameter in self.parameters])
        return dict(zip(self.names, arrays, strict=True))


def register_map(kind: type[nnx.Module], table: Table | Callable[[Any], Table]) -> None:
    """Let a module of yours, or a layer of Flax's without a map, take part wherever weights come from PyTorch.

    Its own parameters (and running statistics) go by the paths of its attributes, as they lie; the modules in it by
    theirs and their own maps. The table leads to these from the names of the PyTorch module that stands for it. A
    subclass has the map of its nearest base.

    Args:
        kind: the class.
        table: from PyTorch's names to the module's; or a function from a module of that kind to one, where it depends
            on the module's settings. A second one replaces the first.

    Example (a bilinear layer, whose PyTorch twin has the output axis first):

        >>> from jattn.weights import Table, load_state_dict, transposed
        >>> class Bilinear(nnx.Module):
        ...     def __init__(self):
        ...         self.kernel = nnx.Param(np.zeros((2, 3, 4), np.float32))
        >>> register_map(Bilinear, Table([transposed("weight", "kernel", axes=(1, 2, 0))]))
        >>> load_state_dict(Bilinear(), {"weight": np.ones((4, 2, 3), np.float32)}).kernel.shape
        (2, 3, 4)
    """
    if not (isinstance(kind, type) and issubclass(kind, nnx.Module)):
        raise ValueError(f"kind must be a subclass of flax.nnx.Module. Got {kind!r}.")
    if not (isinstance(table, Table) or callable(table)):
        raise ValueError(f"table must be a jattn.weights.Table, or a function to one. Got {type(table).__name__}.")

    def maps(module: Any, path: str) -> Iterator[Map]:
        made = table if isinstance(table, Table) else table(module)
        if not isinstance(made, Table):
            raise ValueError(f"table must lead from a {kind.__name__} to a Table. Got {type(made).__name__}.")
        yield _by_table(module, path, made)

    _MAPS[kind] = maps


def _by_table(module: nnx.Module, path: str, table: Table) -> Map:
    """All that a module holds in one map, the entries named by its table."""
    inner = [m for name, child in vars(module).items() for m in _child_maps(child, name, nnx.Param | nnx.BatchStat)]
    ours = {name: array for m in inner for name, array in m.entries().items()}
    shapes = {name: array.shape for name, array in ours.items()}

    def to_torch(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        rest, entries = list(xs), dict[str, np.ndarray]()
        for m in inner:
            taken, rest = rest[: len(m.parameters)], rest[len(m.parameters) :]
            entries |= dict(zip(m.names, m.to_torch(taken), strict=True))
        return list(table.dump(entries).values())

    def from_torch(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entries = table.load(dict(zip(theirs, xs, strict=True)), shapes)
        if wrong := [f"{n} {entries[n].shape}, not {s}" for n, s in shapes.items() if entries[n].shape != s]:
            raise ValueError(f"table of {type(module).__name__} must lead back and forth. Got {', '.join(wrong)}.")
        return [x for m in inner for x in m.from_torch([entries[name] for name in m.names])]

    theirs = tuple(table.dump(ours))
    parameters = tuple(parameter for m in inner for parameter in m.parameters)
    return Map(parameters, tuple(path + name for name in theirs), to_torch, from_torch)


def all_maps(module: nnx.Module) -> list[Map]:
    """The maps of a module, found to leave none of its numbers out."""
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be a flax.nnx.Module. Got {type(module).__name__}.")
    maps = list(_maps(module, ""))
    mapped = {id(parameter) for m in maps for parameter in m.parameters}
    left_out = [
        ".".join(map(str, path))
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Param | nnx.BatchStat) and id(node) not in mapped
    ]
    if left_out:
        raise ValueError(
            f"module must be made of layers that have a map to PyTorch's. Got {', '.join(left_out)} without one. "
            "The layers with maps are listed in jattn.weights.__doc__; jattn.weights.register_map gives others one."
        )
    return maps


def _maps(module: nnx.Module, path: str) -> Iterator[Map]:
    """The maps of a module and of all below it; ``path`` ends in a dot, or is empty."""
    for kind in type(module).__mro__:  # the nearest first, so that a subclass may have a map of its own
        if kind in _MAPS:
            yield from _MAPS[kind](module, path)
            return
    # What a layer of Flax's without a map holds itself is laid out in Flax's own way, and would be mistaken.
    foreign = type(module).__module__.startswith("flax.") and not isinstance(module, nnx.List | nnx.Dict)
    for name, child in vars(module).items():
        if not (foreign and isinstance(child, nnx.Param)):
            yield from _child_maps(child, path + name)


def _child_maps(child: Any, name: str, kinds: Any = nnx.Param) -> Iterator[Map]:
    if isinstance(child, kinds):
        yield _one_to_one(child, name, lambda x: x, lambda x: x)
    elif isinstance(child, nnx.Module):
        yield from _maps(child, f"{name}.")
    elif isinstance(child, dict | list | tuple):
        for key, item in child.items() if isinstance(child, dict) else enumerate(child):
            yield from _child_maps(item, f"{name}.{key}", kinds)


def _one_to_one(
    parameter: nnx.Variable,
    name: str,
    to_torch: Callable[[np.ndarray], np.ndarray],
    from_torch: Callable[[np.ndarray], np.ndarray],
) -> Map:
    return Map((parameter,), (name,), lambda xs: [to_torch(xs[0])], lambda xs: [from_torch(xs[0])])


# ----------------------------------------------------------------------------------------------------------------------
# One for each kind of module.


def _kernel_and_bias(module: Any, weight: str, bias: str) -> Iterator[Map]:
    """A kernel of any axes, flattened to (in, out) and transposed; PyTorch's Linear computes x W^T."""
    shape = module.kernel.shape
    inner = tuple(np.atleast_1d(module.in_features).tolist())
    _check_one_model(weight, shape, (*inner, *np.atleast_1d(module.out_features).tolist()))
    width = math.prod(inner)
    yield _one_to_one(module.kernel, weight, lambda x: x.reshape(width, -1).T, lambda x: x.T.reshape(shape))
    if module.bias is not None:
        bias_shape = module.bias.shape
        yield _one_to_one(module.bias, bias, lambda x: x.reshape(-1), lambda x: x.reshape(bias_shape))


def _check_one_model(weight: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"module must hold one model. Got {weight} of a kernel of shape {shape}, not {expected}.")


def _linear_maps(module: Any, path: str) -> Iterator[Map]:
    return _kernel_and_bias(module, f"{path}weight", f"{path}bias")


def _convolution_maps(module: nnx.Conv, path: str) -> Iterator[Map]:
    """A kernel (k, in, out) or (height, width, in, out) as (out, in, k) or (out, in, height, width)."""
    _check_one_model(f"{path}weight", module.kernel.shape, tuple(module.kernel_shape))
    channels_first, channels_last = ((-1, -2), (0, 1)), ((0, 1), (-1, -2))
    yield _one_to_one(
        module.kernel,
        f"{path}weight",
        lambda x: np.moveaxis(x, *channels_first),
        lambda x: np.moveaxis(x, *channels_last),
    )
    if module.bias is not None:
        yield from _child_maps(module.bias, f"{path}bias")


def _norm_maps(module: Any, path: str) -> Iterator[Map]:
    for parameter, name in ((module.scale, "weight"), (getattr(module, "bias", None), "bias")):
        if parameter is not None:
            yield from _child_maps(parameter, path + name)


def _embed_maps(module: nnx.Embed, path: str) -> Iterator[Map]:
    return _child_maps(module.embedding, f"{path}weight")


def _gru_maps(module: GRU, path: str) -> Iterator[Map]:
    for i, layer in enumerate(module.layers):
        yield from _kernel_and_bias(layer.input, f"{path}weight_ih_l{i}", f"{path}bias_ih_l{i}")
        yield from _kernel_and_bias(layer.hidden, f"{path}weight_hh_l{i}", f"{path}bias_hh_l{i}")


def _wide_maps(module: WideMultiHeadSelfAttention, path: str) -> Iterator[Map]:
    """One Linear for each head: kernel m h d as h matrices (d, m), bias h d as h vectors."""
    for name, child in vars(module).items():
        if name not in ("query", "key", "value"):
            yield from _child_maps(child, path + name)
            continue
        heads = range(child.kernel.shape[1])
        yield Map(
            (child.kernel,),
            tuple(f"{path}{name}.{i}.weight" for i in heads),
            lambda xs: [xs[0][:, i].T for i in range(xs[0].shape[1])],
            lambda xs: [np.stack([x.T for x in xs], axis=1)],
        )
        if child.bias is not None:
            each = tuple(f"{path}{name}.{i}.bias" for i in heads)
            yield Map((child.bias,), each, lambda xs: list(xs[0]), lambda xs: [np.stack(xs)])


def _experts_maps(module: MixtureOfExperts, path: str) -> Iterator[Map]:
    """A network for each expert: kernels e m f as e matrices (f, m), biases e f as e vectors."""
    yield from _linear_maps(module.router, f"{path}router.")
    for name in ("linear1", "gate", "linear2"):
        layer = getattr(module, name)
        if layer is None:
            continue
        experts = [f"{path}experts.{i}.{name}" for i in range(layer.kernel.shape[0])]
        yield Map(
            (layer.kernel,),
            tuple(f"{expert}.weight" for expert in experts),
            lambda xs: [x.T for x in xs[0]],
            lambda xs: [np.stack([x.T for x in xs])],
        )
        if layer.bias is not None:
            biases = tuple(f"{expert}.bias" for expert in experts)
            yield Map((layer.bias,), biases, lambda xs: list(xs[0]), lambda xs: [np.stack(xs)])


def _torch_attention_maps(module: TorchMultiheadAttention, path: str) -> Iterator[Map]:
    """Kernels m h d as matrices (h d, m), packed where all have the same m; biases always; bias_k h d as 1 1 (h d)."""
    projections = (module.query, module.key, module.value)
    kernels = tuple(p.kernel for p in projections)
    shapes = [kernel.shape for kernel in kernels]

    def matrices(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [x.reshape(x.shape[0], -1).T for x in xs]

    def unpacked(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [x.T.reshape(shape) for x, shape in zip(xs, shapes, strict=True)]

    if len({shape[0] for shape in shapes}) == 1:
        yield Map(
            kernels,
            (f"{path}in_proj_weight",),
            lambda xs: [np.concatenate(matrices(xs))],
            lambda xs: unpacked(np.split(xs[0], 3)),
        )
    else:
        yield Map(kernels, tuple(f"{path}{name}_proj_weight" for name in "qkv"), matrices, unpacked)
    biases = tuple(p.bias for p in projections if p.bias is not None)
    if biases:
        yield Map(
            biases,
            (f"{path}in_proj_bias",),
            lambda xs: [np.stack(xs).reshape(-1)],
            lambda xs: list(xs[0].reshape(3, *shapes[0][1:])),
        )
    for name in ("bias_k", "bias_v"):
        if getattr(module, name) is not None:
            yield _one_to_one(
                getattr(module, name), path + name, lambda x: x.reshape(1, 1, -1), lambda x: x.reshape(shapes[0][1:])
            )
    yield from _linear_maps(module.out_proj, f"{path}out_proj.")


_MAPS: dict[type, Callable[[Any, str], Iterator[Map]]] = {
    nnx.Linear: _linear_maps,
    nnx.LinearGeneral: _linear_maps,
    nnx.Conv: _convolution_maps,
    nnx.LayerNorm: _norm_maps,
    nnx.RMSNorm: _norm_maps,
    nnx.Embed: _embed_maps,
    GRU: _gru_maps,
    MixtureOfExperts: _experts_maps,
    TorchMultiheadAttention: _torch_attention_maps,
    WideMultiHeadSelfAttention: _wide_maps,
}
