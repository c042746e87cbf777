"""PyTorch state dicts in and out: one explicit map for each kind of module, which `jattn.weights` lists."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.nn.multi_head import WideMultiHeadSelfAttention
from jattn.nn.recurrent import GRU
from jattn.nn.torch import MultiheadAttention as TorchMultiheadAttention
from jattn.weights import files, names
from jattn.weights.files import to_tensor

if TYPE_CHECKING:
    import torch

__all__ = ["load_state_dict", "save", "state_dict"]

Conversion = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
LoadedModule = TypeVar("LoadedModule", bound=nnx.Module)


class Map(NamedTuple):
    """Parameters that belong together, the entries that hold the same numbers, and the way from each to the other."""

    parameters: tuple[nnx.Param, ...]
    names: tuple[str, ...]
    to_torch: Conversion
    from_torch: Conversion

    def entries(self) -> dict[str, np.ndarray]:
        """The state dict's entries for the present numbers."""
        arrays = self.to_torch([np.asarray(parameter[...]) for parameter in self.parameters])
        return dict(zip(self.names, arrays, strict=True))


def load_state_dict(
    module: LoadedModule,
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    rename: Mapping[str, str | None] | None = None,
) -> LoadedModule:
    """Put the numbers of a PyTorch state dict into ``module``, in place.

    Args:
        module: any module made of `jattn.nn` and ``flax.nnx`` parts.
        state_dict: names to tensors (PyTorch's, NumPy's or JAX's), or the path of a file or folder that holds them, as
            `jattn.weights.files.load` reads it: safetensors (without PyTorch), or PyTorch's own.
        rename: regular expressions to replacements, applied in turn to each name of the state dict, for models that
            name things otherwise: ``{r"^layers\\.(\\d+)\\.self_attn\\.": r"blocks.\\1.attention."}``. None for a
            replacement drops what its pattern matches: ``{r"\\.position_ids$": None}``. Each pattern must match.

    Returns:
        The module.

    Raises:
        ValueError: if entries are unknown, missing or misshapen (one error that lists them all), or have a dtype that
            JAX doesn't hold. The module is then as it was.

    Example:

        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> weight, bias = np.ones((3, 2), np.float32), np.ones(3, np.float32)
        >>> load_state_dict(linear, {"weight": weight, "bias": bias})(jnp.ones(2))
        Array([3., 3., 3.], dtype=float32)
        >>> load_state_dict(linear, {"weights": weight, "bias": bias[:2]})
        Traceback (most recent call last):
        ValueError: state_dict must fit this Linear, entry for entry.
          unknown: weights, shape (3, 2); nearest missing: weight
          missing: weight, shape (3, 2)
          misshapen: bias must have shape (3,). Got (2,)
    """
    subject = "state_dict"
    if isinstance(state_dict, str | os.PathLike):
        subject, state_dict = str(state_dict), files.load(state_dict)
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be a mapping of names to tensors, or a path. Got {type(state_dict).__name__}."
        )
    if alien := [repr(name) for name in state_dict if not isinstance(name, str)]:
        raise ValueError(f"{subject} must have names that are strings. Got {', '.join(alien)}.")
    arrays = files.to_arrays(subject, names.renamed(state_dict, {} if rename is None else rename))
    maps = _without_aliases(_all_maps(module), arrays)
    shapes = {name: array.shape for m in maps for name, array in m.entries().items()}
    names.check_entries(subject, type(module).__name__, shapes, arrays)
    loaded: dict[int, tuple[nnx.Param, np.ndarray]] = {}
    for m in maps:
        for parameter, value in zip(m.parameters, m.from_torch([arrays[name] for name in m.names]), strict=True):
            if id(parameter) in loaded and loaded[id(parameter)][1].tobytes() != value.tobytes():
                raise ValueError(f"{subject} must agree on a parameter that modules share. Got another {m.names[0]}.")
            loaded[id(parameter)] = parameter, value
    for parameter, value in loaded.values():
        parameter.set_value(jnp.array(value))  # a copy: the tensor's memory stays PyTorch's
    return module


def state_dict(module: nnx.Module) -> "dict[str, torch.Tensor]":
    """The numbers of ``module`` as a PyTorch state dict, each tensor in its parameter's dtype.

    Raises:
        ImportError: if PyTorch is not installed.

    Example:

        >>> tensors = state_dict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        {'weight': (3, 2), 'bias': (3,)}
    """
    return {name: to_tensor(array) for name, array in _all_entries(module).items()}


def save(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict of ``module`` to a safetensors file, without PyTorch.

    Raises:
        ValueError: if the path doesn't end in ``.safetensors``, or its folder is not there.
        ImportError: if safetensors is not installed.

    Example:

        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/linear.safetensors"
        >>> save(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), path)
        >>> load_state_dict(nnx.Linear(2, 3, rngs=nnx.Rngs(1)), path)(jnp.zeros(2))
        Array([0., 0., 0.], dtype=float32)
    """
    files.save(path, _all_entries(module), metadata={"format": "pt"})  # which Hugging Face's loaders look for


# ----------------------------------------------------------------------------------------------------------------------
# The maps, one for each kind of module.


def _all_entries(module: nnx.Module) -> dict[str, np.ndarray]:
    return {name: array for m in _all_maps(module) for name, array in m.entries().items()}


def _all_maps(module: nnx.Module) -> list[Map]:
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
            "The layers with maps are listed in jattn.weights.__doc__."
        )
    return maps


def _without_aliases(maps: Sequence[Map], given: Mapping[str, Any]) -> list[Map]:
    """The maps, less those of shared parameters that are given under another name: files hold tied weights once."""
    filled = {id(parameter) for m in maps if given.keys() >= set(m.names) for parameter in m.parameters}
    return [m for m in maps if given.keys() & set(m.names) or not filled >= set(map(id, m.parameters))]


def _maps(module: nnx.Module, path: str) -> Iterator[Map]:
    """The maps of a module and of all below it; ``path`` ends in a dot, or is empty."""
    for kind, maps in _MAPS.items():
        if isinstance(module, kind):
            yield from maps(module, path)
            return
    # What a layer of Flax's without a map holds itself is laid out in Flax's own way, and would be mistaken.
    foreign = type(module).__module__.startswith("flax.") and not isinstance(module, nnx.List | nnx.Dict)
    for name, child in vars(module).items():
        if not (foreign and isinstance(child, nnx.Param)):
            yield from _child_maps(child, path + name)


def _child_maps(child: Any, name: str) -> Iterator[Map]:
    if isinstance(child, nnx.Param):
        yield _one_to_one(child, name, lambda x: x, lambda x: x)
    elif isinstance(child, nnx.Module):
        yield from _maps(child, f"{name}.")
    elif isinstance(child, dict | list | tuple):
        for key, item in child.items() if isinstance(child, dict) else enumerate(child):
            yield from _child_maps(item, f"{name}.{key}")


def _one_to_one(
    parameter: nnx.Param,
    name: str,
    to_torch: Callable[[np.ndarray], np.ndarray],
    from_torch: Callable[[np.ndarray], np.ndarray],
) -> Map:
    return Map((parameter,), (name,), lambda xs: [to_torch(xs[0])], lambda xs: [from_torch(xs[0])])


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
    TorchMultiheadAttention: _torch_attention_maps,
    WideMultiHeadSelfAttention: _wide_maps,
}
