"""Where two runs first part, and what is known there on both sides."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jattn.parity.arrays import aligned, error, is_floating, limit, numbers
from jattn.parity.trace import ModuleCall, Trace

if TYPE_CHECKING:
    import torch

__all__ = ["NamedArray", "Site", "Step", "TorchLayer", "Traces", "first_parting"]


class Step(NamedTuple):
    """One call on both sides, and how far its outputs are apart."""

    torch_name: str
    flax_name: str
    number: int
    torch_shape: tuple[int, ...]
    flax_shape: tuple[int, ...]
    error: float
    limit: float


class TorchLayer(NamedTuple):
    """A submodule of PyTorch's with parameters of its own."""

    name: str
    parameters: dict[str, np.ndarray]


class NamedArray(NamedTuple):
    """Numbers on which both sides agree, or that only one side has."""

    name: str
    array: np.ndarray


@dataclasses.dataclass
class Site:
    """The innermost module whose inputs agree while something in it does not, for the catalogue to look at."""

    torch_name: str
    flax_name: str
    torch: np.ndarray  # the first numbers that differ, on PyTorch's side
    flax: np.ndarray  # and on Flax's, in PyTorch's layout if there is a way
    inputs: list[NamedArray]  # of the module
    before: list[NamedArray]  # what agreed in it before: its inputs, and those and outputs of its submodules
    torch_calls: list[ModuleCall]  # the calls in it, itself the last
    flax_calls: list[ModuleCall]
    layers: list[TorchLayer]  # itself and the submodules in it
    others: list[TorchLayer]  # all other submodules of PyTorch's
    heads: list[int]  # how many there may be, as its attributes say
    arguments: list[np.ndarray]  # what it and the calls around it were given: masks, lengths, biases
    where: str  # "its output", or what follows which submodule
    tolerance: float
    attributes: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # numbers, from here outwards
    buffers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # of these modules
    pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # PyTorch's submodules to the port's

    def same(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Whether two arrays are the same numbers, in the same layout up to merged axes."""
        if x.shape != y.shape:
            fitting = aligned(x, y) if x.size == y.size and x.ndim != y.ndim else None
            return fitting is not None and self.same(fitting, y)
        return error(x, y) <= self.tolerance

    def is_torch(self, x: np.ndarray) -> bool:
        """Whether a plain recomputation is what PyTorch has."""
        return self.same(x, self.torch)

    def is_flax(self, x: np.ndarray) -> bool:
        """Whether a hypothesis is what Flax has."""
        return self.same(x, self.flax)


@dataclasses.dataclass
class Traces:
    """A forward run of both sides, and of PyTorch in float64 as the truth."""

    dtype: str
    torch: Trace
    flax: Trace
    truth: Trace
    pairs: Mapping[str, str]


def walk(traces: Traces) -> Iterator[tuple[Step, ModuleCall, ModuleCall]]:
    """All calls that have a match, in the order in which they ended on PyTorch's side."""
    for theirs in traces.torch.calls:
        ours = traces.flax.find(traces.pairs[theirs.path], theirs.number) if theirs.path in traces.pairs else None
        true = traces.truth.find(theirs.path, theirs.number)
        if ours is None or true is None or not ours.outputs or not theirs.outputs:
            continue
        outputs = zip(theirs.outputs, ours.outputs, true.outputs, strict=False)
        apart = [_error_and_limit(traces.dtype, *arrays) for arrays in outputs]
        e, allowed = max(apart, key=lambda pair: pair[0] - pair[1])
        shapes = theirs.outputs[0].shape, ours.outputs[0].shape
        yield Step(theirs.path, ours.path, theirs.number, *shapes, e, allowed), theirs, ours


def _error_and_limit(dtype: str, theirs: np.ndarray, ours: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Error and limit."""
    return error(ours, true), limit(dtype, error(theirs, true))


def first_parting(traces: Traces, module: "torch.nn.Module") -> tuple[list[Step], Site] | None:
    """The steps up to the one at which they part, which is the last, and the site."""
    steps: list[Step] = []
    for step, theirs, ours in walk(traces):
        steps.append(step)
        if not step.error <= step.limit:
            return steps, _site(traces, module, theirs, ours)
    return None


def _site(traces: Traces, module: "torch.nn.Module", theirs: ModuleCall, ours: ModuleCall) -> Site:
    """From the call whose output differs, out to the innermost one whose inputs agree."""
    inside = None  # the outermost call whose inputs differ already
    while not _inputs_agree(traces, theirs, ours) and theirs.parent is not None:
        outer = [call for call in theirs.ancestors() if call.path in traces.pairs]
        found = [(call, traces.flax.find(traces.pairs[call.path], call.number)) for call in outer]
        inside = theirs, ours
        theirs, ours = next((call, match) for call, match in found if match is not None)

    in_torch = [call for call in traces.torch.calls if call is theirs or call.within(theirs)]
    in_flax = [call for call in traces.flax.calls if call is ours or call.within(ours)]
    agreed = [
        (call, match)
        for step, call, match in walk(traces)
        if step.error <= step.limit and call.within(theirs) and match.within(ours)
    ]
    if inside is None:
        pairs = list(zip(theirs.outputs, ours.outputs, strict=False))
        at = next((i for i, pair in enumerate(pairs) if not _fits(traces, *pair)), 0)
        target, ported = pairs[at]
        where = "its output" if at == 0 else f"its output {at}"
    else:
        target, ported = next(pair for pair in _input_pairs(*inside) if not _fits(traces, *pair))
        done = [call for call, _ in agreed if not call.within(inside[0])]
        after = f", after {_name(done[-1], theirs)}" if done else ""
        where = f"the input of {_name(inside[0], theirs)}{after}"

    layers = [TorchLayer(path, parameters) for path, m in module.named_modules() if (parameters := _own(m))]
    inner = {call.path for call in in_torch}
    inputs = [NamedArray("its input", x) for x in theirs.inputs if is_floating(x)]
    return Site(
        torch_name=theirs.path,
        flax_name=ours.path,
        torch=target,
        flax=ported if (fitting := aligned(ported, target)) is None else fitting,
        inputs=inputs,
        before=[
            *inputs,
            *[NamedArray(f"the input of {call.path}", x) for call, _ in agreed for x in call.inputs if is_floating(x)],
            *[NamedArray(call.path, x) for call, _ in agreed for x in call.outputs if is_floating(x)],
        ],
        torch_calls=in_torch,
        flax_calls=in_flax,
        layers=[layer for layer in layers if layer.name in inner],
        others=[layer for layer in layers if layer.name not in inner],
        heads=_heads(module, theirs),
        arguments=[x for call in (theirs, *theirs.ancestors()) for x in call.inputs],
        where=where,
        tolerance=_tolerance(traces, error(ported, target)),
        attributes=_attributes(module, theirs),
        buffers=_buffers(module, theirs),
        pairs=traces.pairs,
    )


def _name(call: ModuleCall, outer: ModuleCall) -> str:
    """Within that call, and which one it is if there are several."""
    return call.path.removeprefix(f"{outer.path}.") + (f" (call {call.number + 1})" if call.number else "")


def _tolerance(traces: Traces, difference: float) -> float:
    """For a recomputation from numbers that agree: looser than equality, far below the difference to be explained."""
    return min(100 * limit(traces.dtype, 0.0), 0.1 * difference)


def _fits(traces: Traces, theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Whether inputs agree; in low precision they carry the rounding of all that was before."""
    return error(ours, theirs) <= (1 if traces.dtype == "float64" else 8) * limit(traces.dtype, 0.0)


def _input_pairs(theirs: ModuleCall, ours: ModuleCall) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs that belong together: each of PyTorch's with the one of Flax's that is nearest of those that fit it.

    Only integers (tokens) are compared where there is nothing else; masks may well have another form or polarity.
    """
    pairs = []
    for wanted in (is_floating, lambda x: np.issubdtype(x.dtype, np.integer)):
        for x in (x for x in theirs.inputs if wanted(x)):
            fitting = [y for y in ours.inputs if wanted(y) and aligned(y, x) is not None]
            if fitting:
                pairs.append((x, min(fitting, key=lambda y: error(y, x))))
        if pairs:
            break
    return pairs


def _inputs_agree(traces: Traces, theirs: ModuleCall, ours: ModuleCall) -> bool:
    return all(_fits(traces, *pair) for pair in _input_pairs(theirs, ours))


def _own(module: "torch.nn.Module") -> dict[str, np.ndarray]:
    """A module's own parameters, and those of a part of it that is used without being called."""
    parameters = {name: numbers(x) for name, x in module.named_parameters(recurse=False)}
    if "in_proj_bias" in dict(module.named_parameters(recurse=False)) or hasattr(module, "in_proj_weight"):
        parameters |= {name: numbers(x) for name, x in module.named_parameters() if name.startswith("out_proj.")}
    return parameters


def _around(module: "torch.nn.Module", call: ModuleCall) -> list[str]:
    """The paths of the module, of the modules around it and of those in it."""
    inside = [path for path, _ in module.named_modules() if path.startswith(f"{call.path}." if call.path else "")]
    return list(dict.fromkeys([call.path, *[outer.path for outer in call.ancestors()], *inside]))


_SETTINGS = ("config", "cfg", "args", "params", "settings", "options")


def _attributes(module: "torch.nn.Module", call: ModuleCall) -> dict[str, list[float]]:
    """The numbers that these modules have as attributes, also in their settings and in a dictionary there."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            values = found.setdefault(name.lower(), [])
            values += [float(value)] if value not in values else []
        if isinstance(value, dict):
            for inner, x in value.items():
                note(str(inner), x)

    for path in _around(module, call):
        own = vars(module.get_submodule(path))
        for holder in (own, *[vars(x) for name, x in own.items() if name in _SETTINGS and hasattr(x, "__dict__")]):
            for name, value in holder.items():
                if not name.startswith("_"):
                    note(name, value)
    return found


def _buffers(module: "torch.nn.Module", call: ModuleCall) -> dict[str, np.ndarray]:
    """What these modules hold beside parameters."""
    return {
        f"{path}.{name}": numbers(x)
        for path in _around(module, call)
        for name, x in module.get_submodule(path).named_buffers(recurse=False)
    }


def _heads(module: "torch.nn.Module", call: ModuleCall) -> list[int]:
    """How many heads there may be, as these modules' attributes say; what says how wide one is, comes last."""
    named = [(name, x) for name, xs in _attributes(module, call).items() if "head" in name for x in xs]
    found = [int(x) for name, x in sorted(named, key=lambda pair: "dim" in pair[0]) if x > 0 and x == int(x)]
    return list(dict.fromkeys(found))
