"""PyTorch state dicts in and out."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.weights import files, names
from jattn.weights.files import to_tensor
from jattn.weights.maps import Map, all_maps
from jattn.weights.table import Renaming, Table

if TYPE_CHECKING:
    import torch

__all__ = ["load_state_dict", "save", "state_dict"]

LoadedModule = TypeVar("LoadedModule", bound=nnx.Module)


def load_state_dict(
    module: LoadedModule,
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    rename: Renaming | None = None,
) -> LoadedModule:
    """Put the numbers of a PyTorch state dict into ``module``, in place.

    Args:
        module: any module made of `jattn.nn` and ``flax.nnx`` parts, and of those that `register_map` knows.
        state_dict: names to tensors (PyTorch's, NumPy's or JAX's), or the path of a file or folder that holds them, as
            `jattn.weights.files.load` reads it: safetensors (without PyTorch), or PyTorch's own.
        rename: for models that name things otherwise, or lay them out otherwise: a `Table`. Or regular expressions to
            replacements, applied in turn to each name of the state dict:
            ``{r"^layers\\.(\\d+)\\.self_attn\\.": r"blocks.\\1.attention."}``. None for a replacement drops what its
            pattern matches: ``{r"\\.position_ids$": None}``. Each pattern must match.

    Returns:
        The module.

    Raises:
        ValueError: if entries are unknown, missing or misshapen, or lines of the table find nothing (one error that
            lists them all, and says so if a prefix is all that differs), or have a dtype that JAX doesn't hold. The
            module is then as it was.

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
        >>> load_state_dict(linear, {"module.weight": weight, "module.bias": bias})
        Traceback (most recent call last):
        ValueError: state_dict must fit this Linear, entry for entry.
          prefix: without 'module.' in front of the names, 2 of 2 would fit. Write rename={'^module\\\\.': ''}
    """
    subject = "state_dict"
    if isinstance(state_dict, str | os.PathLike):
        subject, state_dict = str(state_dict), files.load(state_dict)
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be a mapping of names to tensors, or a path. Got {type(state_dict).__name__}."
            f"{' Pass its .state_dict().' if hasattr(state_dict, 'state_dict') else ''}"
        )
    if alien := [repr(name) for name in state_dict if not isinstance(name, str)]:
        raise ValueError(f"{subject} must have names that are strings. Got {', '.join(alien)}.")
    maps, arrays = _fitted(module, subject, state_dict, {} if rename is None else rename)
    loaded: dict[int, tuple[nnx.Variable, np.ndarray]] = {}
    for m in maps:
        for parameter, value in zip(m.parameters, m.from_torch([arrays[name] for name in m.names]), strict=True):
            if id(parameter) in loaded and loaded[id(parameter)][1].tobytes() != value.tobytes():
                raise ValueError(f"{subject} must agree on a parameter that modules share. Got another {m.names[0]}.")
            loaded[id(parameter)] = parameter, value
    for parameter, value in loaded.values():
        parameter.set_value(jnp.array(value))  # a copy: the tensor's memory stays PyTorch's
    return module


def state_dict(module: nnx.Module, *, rename: Table | None = None) -> "dict[str, torch.Tensor]":
    """The numbers of ``module`` as a PyTorch state dict, each tensor in its parameter's dtype.

    Args:
        module: as for `load_state_dict`.
        rename: the `Table` that `load_state_dict` takes, gone through backwards, for the names and layouts of the model
            that it was made for.

    Raises:
        ValueError: if the table does not lead back from all entries (one error that lists them).
        ImportError: if PyTorch is not installed.

    Example:

        >>> from jattn.weights import rename
        >>> linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> {name: tuple(tensor.shape) for name, tensor in state_dict(linear).items()}
        {'weight': (3, 2), 'bias': (3,)}
        >>> list(state_dict(linear, rename=Table([rename("layer.weight", "weight"), rename("layer.bias", "bias")])))
        ['layer.weight', 'layer.bias']
    """
    return {name: to_tensor(array) for name, array in _all_entries(module, rename).items()}


def save(module: nnx.Module, path: str | os.PathLike[str], *, rename: Table | None = None) -> None:
    """Write the state dict of ``module`` to a safetensors file, without PyTorch.

    Args:
        module, rename: as for `state_dict`.
        path: where to; its name ends in ``.safetensors``.

    Raises:
        ValueError: if the path doesn't end in ``.safetensors``, its folder is not there, or the table does not lead
            back from all entries.
        ImportError: if safetensors is not installed.

    Example:

        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/linear.safetensors"
        >>> save(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), path)
        >>> load_state_dict(nnx.Linear(2, 3, rngs=nnx.Rngs(1)), path)(jnp.zeros(2))
        Array([0., 0., 0.], dtype=float32)
    """
    files.save(path, _all_entries(module, rename), metadata={"format": "pt"})  # which Hugging Face's loaders look for


def _all_entries(module: nnx.Module, rename: Table | None) -> dict[str, np.ndarray]:
    entries = {name: array for m in all_maps(module) for name, array in m.entries().items()}
    if rename is None:
        return entries
    if not isinstance(rename, Table):
        raise ValueError(
            f"rename must be a jattn.weights.Table on the way back, which regular expressions have not. "
            f"Got a {type(rename).__name__}."
        )
    return rename.dump(entries)


# ----------------------------------------------------------------------------------------------------------------------
# What is given, held against what is expected.


def _fitted(
    module: nnx.Module, subject: str, entries: Mapping[str, Any], rename: Renaming
) -> tuple[list[Map], dict[str, np.ndarray]]:
    """The maps of a module and the arrays for them, with an error that names a prefix if that is what differs."""
    maps = all_maps(module)
    kind = type(module).__name__
    try:
        return _checked(maps, subject, kind, entries, rename)
    except ValueError as error:
        prefix = _fitting_prefix(maps, entries, rename)
        if prefix is None:
            raise
        headline, rest = f"{subject} must fit this {kind}, entry for entry.", ""
        try:
            _checked(maps, subject, kind, {prefix.change(name): x for name, x in entries.items()}, rename)
        except ValueError as other:
            rest = f"\n  {str(other).removeprefix(headline).strip()}"
        raise ValueError(f"{headline}\n  {_prefix_line(prefix, entries, rename)}{rest}") from error


def _checked(
    maps: Sequence[Map], subject: str, kind: str, entries: Mapping[str, Any], rename: Renaming
) -> tuple[list[Map], dict[str, np.ndarray]]:
    shapes = {name: array.shape for m in maps for name, array in m.entries().items()}
    found: dict[str, Any] = {}
    if isinstance(rename, Table):
        passage = rename.passage(entries, shapes)
        found = {"problems": passage.problems, "lost": passage.lost, "origins": passage.origins}
        arrays = files.to_arrays(subject, passage.entries)
    else:
        arrays = files.to_arrays(subject, names.renamed(entries, rename))
    maps = _without_aliases(maps, arrays)
    names.check_entries(subject, kind, {name: shapes[name] for m in maps for name in m.names}, arrays, **found)
    return list(maps), arrays


def _fitting_prefix(maps: Sequence[Map], entries: Mapping[str, Any], rename: Renaming) -> names.Prefixing | None:
    expected = [name for m in maps for name in m.names]
    if isinstance(rename, Table):
        heads = [head for line in rename.lines for head in line.heads]
        return names.fitting_prefix(entries.keys(), expected, rename.new_names, heads)

    if not isinstance(rename, Mapping):  # which is an error of its own
        return None

    def move(name: str) -> list[str]:
        new = names.new_name(name, rename)
        return [] if new is None else [new]

    return names.fitting_prefix(entries.keys(), expected, move)


def _prefix_line(prefix: names.Prefixing, entries: Mapping[str, Any], rename: Renaming) -> str:
    """What the prefix would do, and what to write."""
    change = f"without {prefix.goes!r}" if prefix.goes else f"with {prefix.comes!r}"
    pattern = {f"^{re.escape(prefix.goes)}": ""} if prefix.goes else {"^": prefix.comes}
    if isinstance(rename, Table):
        line = f"prefixed({prefix.goes!r})" if prefix.goes else f"prefixed('', {prefix.comes!r})"
        remedy = f"Put {line} first in the table"
    else:
        remedy = f"Put {str(pattern)[1:-1]} first in rename" if rename else f"Write rename={pattern}"
    return f"prefix: {change} in front of the names, {prefix.fitting} of {len(entries)} would fit. {remedy}"


def _without_aliases(maps: Sequence[Map], given: Mapping[str, Any]) -> list[Map]:
    """The maps, less those of shared parameters that are given under another name: files hold tied weights once."""
    filled = {id(parameter) for m in maps if given.keys() >= set(m.names) for parameter in m.parameters}
    return [m for m in maps if given.keys() & set(m.names) or not filled >= set(map(id, m.parameters))]
