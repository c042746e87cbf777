"""The arguments of `compare` as one value, and what they may be."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from jattn._engine import checks
from jattn.parity.arrays import is_floating, leaves, numbers
from jattn.parity.match import apply_renames, ignored_modules, nearest, wrapper_prefix
from jattn.parity.sides import DTYPES, Arguments, arguments
from jattn.parity.trace import submodules
from jattn.weights.table import Renaming, Table

if TYPE_CHECKING:
    import torch

__all__ = ["Comparing", "checked_comparison", "checked_dtypes", "checked_inputs"]


@dataclasses.dataclass(frozen=True)
class Comparing:
    """How to compare."""

    load: bool
    rename: Renaming
    names: Mapping[str, str]
    ignored: set[str]
    output: str | Callable[[Any], Any] | None
    where: np.ndarray | None  # which entries of the outputs' leading axes count
    tolerance: Mapping[str, float]  # by dtype, where it isn't the usual one
    seed: int | None  # of the cotangents; None if gradients are not compared


def checked_dtypes(dtypes: Sequence[str]) -> Sequence[str]:
    """Those to compare in."""
    if isinstance(dtypes, str):
        raise ValueError(f"dtypes must be a sequence of names. Got the string {dtypes!r}. Write ({dtypes!r},).")
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if unknown or not dtypes:
        raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}. Got {', '.join(unknown) or 'none'}.")
    return dtypes


def checked_inputs(inputs: Any, flax_inputs: Any) -> tuple[Arguments, Arguments]:
    """The arguments of both sides."""
    given = arguments(inputs)
    flax_given = given if flax_inputs is None else arguments(flax_inputs, "flax_inputs")
    for name, each in (("inputs", given), ("flax_inputs", flax_given)):
        if any(np.isnan(numbers(x)).any() for x in leaves(each) if is_floating(x)):
            raise ValueError(f"{name} must hold no NaN, which hides every difference. Got some.")
    return given, flax_given


def checked_comparison(
    torch_module: "torch.nn.Module",
    flax_module: nnx.Module,
    *,
    gradients: bool,
    load: bool,
    rename: Renaming | None,
    names: Mapping[str, str] | None,
    ignore: Sequence[str],
    output: Any,
    where: Any,
    tolerance: Any,
    seed: int,
) -> Comparing:
    """The other arguments of `compare`."""
    names, rename = names or {}, rename or {}
    known = (
        ("PyTorch", dict(torch_module.named_modules()), names),
        ("the port", dict(submodules(flax_module)), names.values()),
    )
    alien = [
        f"{path!r}, which is none of {side}'s.{nearest(path, paths)}"
        for side, paths, given in known
        for path in given
        if path not in paths
    ]
    if alien:
        raise ValueError(f"names must map PyTorch's submodules to the port's. Got {' '.join(alien)}")
    if not (output is None or isinstance(output, str) or callable(output)):
        raise ValueError(f"output must be the name of a field or a function. Got {output!r}.")
    return Comparing(
        load=load,
        rename=_without_prefix(torch_module, flax_module, rename),
        names=names,
        ignored=ignored_modules(torch_module, ignore),
        output=output,
        where=_checked_where(where),
        tolerance=_checked_tolerance(tolerance),
        seed=seed if gradients else None,
    )


def _checked_where(where: Any) -> np.ndarray | None:
    if where is None:
        return None
    if not (hasattr(where, "shape") and hasattr(where, "dtype")):
        raise ValueError(f"where must be a boolean array, True where outputs count. Got {type(where).__name__}.")
    mask = numbers(where)
    if mask.dtype != bool or mask.ndim == 0:
        fact = f"shape {mask.shape} in {mask.dtype}"
        raise ValueError(f"where must be a boolean array, True where outputs count. Got {fact}. Compare it with 0.")
    if not mask.any():
        raise ValueError("where must be True somewhere. Got nothing to compare.")
    return mask


def _checked_tolerance(tolerance: Any) -> Mapping[str, float]:
    """By dtype."""
    if tolerance is None:
        return {}
    each = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(DTYPES, tolerance)
    if unknown := [repr(dtype) for dtype in each if dtype not in DTYPES]:
        raise ValueError(f"tolerance must be by dtype, of {', '.join(DTYPES)}. Got {', '.join(unknown)}.")
    return {dtype: checks.number("tolerance", x, "(0, inf)") for dtype, x in each.items()}


def _without_prefix(torch_module: "torch.nn.Module", flax_module: nnx.Module, rename: Renaming) -> Renaming:
    """What a wrapper puts before the names goes too."""
    if isinstance(rename, Table):  # which says all names
        return rename
    prefix = wrapper_prefix(torch_module, flax_module, rename)
    if not prefix or not any(name.startswith(prefix) for name in apply_renames(torch_module.state_dict(), rename)):
        return rename
    return {**rename, f"^{re.escape(prefix)}": ""}
