"""How far two sides are apart in what is compared, and whether that is allowed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jattn.parity.arrays import error, limit, scales
from jattn.parity.match import apply_renames, is_added
from jattn.parity.report import Entry, RunErrors
from jattn.parity.settings import Comparing
from jattn.parity.sides import Side

__all__ = ["Sides", "explained_by", "port_names", "run_errors"]


class Sides(NamedTuple):
    """All that ran in one dtype."""

    dtype: str
    theirs: Side
    ours: Side
    truth: Side
    rough: Side  # what PyTorch's own error is taken from
    pairs: Mapping[str, str]  # submodules on PyTorch's side to those of the port

    def parts(self, kind: str) -> list[dict[str, np.ndarray]]:
        """One kind of arrays of each of the four."""
        return [getattr(side, kind) for side in (self.theirs, self.ours, self.truth, self.rough)]


def run_errors(sides: Sides, settings: Comparing) -> RunErrors:
    """All errors in one dtype."""
    kinds = _outputs, _input_gradients, _parameter_gradients
    return RunErrors(sides.dtype, *(kind(sides, settings) for kind in kinds))


def _outputs(sides: Sides, settings: Comparing) -> list[Entry]:
    theirs, ours, true, own = sides.parts("outputs")
    return _compared(Rule(sides.dtype, settings), theirs, ours, true, own, dict.fromkeys(true, None), settings.where)


def explained_by(rows: np.ndarray, sides: Sides, settings: Comparing) -> bool:
    """Whether all outputs agree in these rows ``b t``."""
    outputs = _outputs(sides, dataclasses.replace(settings, where=rows))
    return all(entry.equal for entry in outputs)


def _input_gradients(sides: Sides, settings: Comparing) -> list[Entry]:
    """By their order, as the port may name them otherwise."""
    theirs, ours, true, own = sides.parts("input_gradients")
    names = [*theirs, *[f"{name} of the port" for name in ours][len(theirs) :]]
    return _compared(
        Rule(sides.dtype, settings), theirs, dict(zip(names, ours.values(), strict=False)), true, own, scales(true)
    )


def _parameter_gradients(sides: Sides, settings: Comparing) -> list[Entry]:
    theirs, ours, true, own = sides.parts("parameter_gradients")
    if not ours:  # by name
        return []
    order = _in_call_order(sides.theirs)
    renamed = (port_names({name: x[name] for name in order}, sides.pairs, settings) for x in (theirs, true, own))
    theirs, true, own = renamed
    ours = {name: x for name, x in ours.items() if name in theirs or not is_added(name, settings.rename)}
    if not settings.load:
        theirs, ours = ({name: x for name, x in y.items() if name in theirs and name in ours} for y in (theirs, ours))
    return _compared(Rule(sides.dtype, settings), theirs, ours, true, own, scales(true))


def port_names(entries: Mapping[str, Any], pairs: Mapping[str, str], settings: Comparing) -> dict[str, Any]:
    """PyTorch's parameters under the names of the port's, as far as they are known."""
    if settings.load:
        return apply_renames(entries, settings.rename)
    modules = {name: name.rpartition(".") for name in entries}
    paired = {name: f"{pairs[at]}.{last}".removeprefix(".") for name, (at, _, last) in modules.items() if at in pairs}
    rest = apply_renames({name: x for name, x in entries.items() if name not in paired}, settings.rename)
    return {to: entries[name] for name, to in paired.items()} | rest


def _in_call_order(side: Side) -> list[str]:
    """The parameters that have gradients, as their modules were called."""
    places = {call.path: place for place, call in enumerate(side.trace.calls)}
    return sorted(side.parameter_gradients, key=lambda name: places.get(name.rpartition(".")[0], len(places)))


class Rule(NamedTuple):
    """How large an error may be in a dtype."""

    dtype: str
    settings: Comparing

    def limit(self, own: float) -> float:
        """Where PyTorch's own is this."""
        return limit(self.dtype, own, self.settings.tolerance.get(self.dtype))


def _compared(
    rule: Rule,
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
