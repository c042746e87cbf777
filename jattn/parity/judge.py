"""How far two sides are apart in what is compared, and whether that is allowed."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from flax import nnx

from jattn.parity.arrays import FLOAT64, error, is_floating, limit, numbers, scales
from jattn.parity.match import apply_renames, is_added
from jattn.parity.report import Entry, RunErrors
from jattn.parity.settings import Comparing
from jattn.parity.sides import Side
from jattn.weights import state_dict
from jattn.weights.table import Table, moved_name

if TYPE_CHECKING:
    import torch

__all__ = ["PortName", "Sides", "as_in_port", "explained_by", "port_names", "run_errors"]


class PortName(NamedTuple):
    """How the port names a parameter of PyTorch's."""

    name: str
    turned: bool = False  # whether the port loads its transpose, as of the Conv1D of Hugging Face's GPT-2


class Sides(NamedTuple):
    """All that ran in one dtype."""

    dtype: str
    theirs: Side
    ours: Side
    truth: Side
    rough: Side  # what PyTorch's own error is taken from
    pairs: Mapping[str, str]  # submodules on PyTorch's side to those of the port
    names: Mapping[str, PortName]  # parameters likewise

    def parts(self, kind: str) -> list[dict[str, np.ndarray]]:
        """One kind of arrays of each of the four."""
        return [getattr(side, kind) for side in (self.theirs, self.ours, self.truth, self.rough)]


def as_in_port(entries: Mapping[str, np.ndarray], sides: Sides, settings: Comparing) -> dict[str, np.ndarray]:
    """Arrays of PyTorch's parameters as the port names them and lays them out."""
    if settings.load or isinstance(settings.rename, Table):
        return apply_renames(entries, settings.rename)
    known = {name: sides.names[name] for name in entries if name in sides.names}
    return {new: entries[name].T if turned else entries[name] for name, (new, turned) in known.items()}


def run_errors(sides: Sides, settings: Comparing) -> RunErrors:
    """All errors in one dtype."""
    kinds = _outputs, _input_gradients, _parameter_gradients
    return RunErrors(sides.dtype, *(kind(sides, settings) for kind in kinds))


def _outputs(sides: Sides, settings: Comparing) -> list[Entry]:
    theirs, ours, true, own = sides.parts("outputs")
    return _compared(
        Allowance(sides.dtype, settings), theirs, ours, true, own, dict.fromkeys(true, None), settings.where
    )


def explained_by(rows: np.ndarray, sides: Sides, settings: Comparing) -> bool:
    """Whether all outputs agree in these rows ``b t``."""
    outputs = _outputs(sides, dataclasses.replace(settings, where=rows))
    return all(entry.equal for entry in outputs)


def _input_gradients(sides: Sides, settings: Comparing) -> list[Entry]:
    """By their order, as the port may name them otherwise."""
    theirs, ours, true, own = sides.parts("input_gradients")
    names = [*theirs, *[f"{name} of the port" for name in ours][len(theirs) :]]
    return _compared(
        Allowance(sides.dtype, settings), theirs, dict(zip(names, ours.values(), strict=False)), true, own, scales(true)
    )


def _parameter_gradients(sides: Sides, settings: Comparing) -> list[Entry]:
    theirs, ours, true, own = sides.parts("parameter_gradients")
    if not ours:  # by name
        return []
    order = _in_call_order(sides.theirs)
    entries = [{name: x[name] for name in order} for x in (theirs, true, own)]
    theirs, true, own = (as_in_port(x, sides, settings) for x in entries)
    ours = {name: x for name, x in ours.items() if name in theirs or not is_added(name, settings.rename)}
    if not settings.load:
        theirs, ours = ({name: x for name, x in y.items() if name in theirs and name in ours} for y in (theirs, ours))
    return _compared(Allowance(sides.dtype, settings), theirs, ours, true, own, scales(true))


def port_names(
    module: "torch.nn.Module", port: nnx.Module, pairs: Mapping[str, str], settings: Comparing
) -> dict[str, PortName]:
    """PyTorch's parameters to those of the port, as far as they are known by name or by their modules."""
    tensors = {name: x for name, x in module.state_dict().items() if is_floating(x)}
    moved = {name: moved_name(name, settings.rename) for name in tensors}
    renamed = {name: PortName(new) for name, new in moved.items() if new is not None}
    if settings.load:
        return renamed
    try:
        ours = state_dict(port)
    except ValueError:  # layers without a map have no names
        return renamed
    for name, x in tensors.items():
        path, _, last = name.rpartition(".")
        paired = f"{pairs[path]}.{last}".removeprefix(".") if path in pairs else ""
        if paired in ours:
            turned = x.ndim == 2 and error(numbers(ours[paired]), numbers(x).T) <= FLOAT64
            renamed[name] = PortName(paired, turned and error(numbers(ours[paired]), numbers(x)) > FLOAT64)
    return renamed


def _in_call_order(side: Side) -> list[str]:
    """The parameters that have gradients, as their modules were called."""
    places = {call.path: place for place, call in enumerate(side.trace.calls)}
    return sorted(side.parameter_gradients, key=lambda name: places.get(name.rpartition(".")[0], len(places)))


class Allowance(NamedTuple):
    """How large an error may be in a dtype."""

    dtype: str
    settings: Comparing

    def limit(self, own: float) -> float:
        """Where PyTorch's own is this."""
        return limit(self.dtype, own, self.settings.tolerance.get(self.dtype))


def _compared(
    rule: Allowance,
    theirs: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    rough: Mapping[str, np.ndarray],
    scale: Mapping[str, float | None],
    where: np.ndarray | None = None,
) -> list[Entry]:
    """What only one side has is infinitely wrong."""
    entries = []
    for name in (*theirs, *[name for name in ours if name not in theirs]):
        if name not in theirs or name not in ours:
            present = theirs if name in theirs else ours
            side = "PyTorch" if name in theirs else "the port"
            entries.append(Entry(f"{name}, only of {side}", present[name].shape, float("inf"), rule.limit(0.0)))
            continue
        own, e = (error(x[name], true[name], scale[name], where) for x in (rough, ours))
        entries.append(Entry(name, theirs[name].shape, e, rule.limit(own)))
    return entries
