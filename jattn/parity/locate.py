"""Where two runs first part, and what is known there on both sides."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jattn.parity.arrays import aligned, error, is_floating, limit, numbers
from jattn.parity.flow import Place
from jattn.parity.pairing import pair_arrays
from jattn.parity.trace import ModuleCall, Trace

if TYPE_CHECKING:
    import torch

__all__ = ["Found", "NamedArray", "Site", "Step", "TorchLayer", "Traces", "first_parting"]


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

    @property
    def has_many_digits(self) -> bool:
        """Whether a number that may be anything explains a difference here; of few digits it does so too easily."""
        return self.tolerance <= 1e-8

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


class Match(NamedTuple):
    """A call on both sides."""

    step: Step
    torch: ModuleCall
    flax: ModuleCall
    equal: list[int]  # the places of PyTorch's outputs that agree


@dataclasses.dataclass
class Traces:
    """A forward run of both sides, and of PyTorch in float64 as the truth."""

    dtype: str
    torch: Trace
    flax: Trace
    truth: Trace
    rough: Trace  # what PyTorch's own error is taken from
    pairs: Mapping[str, str]
    where: np.ndarray | None = None  # which entries of leading axes count
    tolerance: float | None = None

    @functools.cached_property
    def matches(self) -> list[Match]:
        """All calls that have a match, in the order in which they ended on PyTorch's side."""
        return [match for call in self.torch.calls if (match := self._match(call)) is not None]

    @property
    def agree_where_rounding_shows(self) -> bool:
        """Whether the port agrees to all digits with some call on which PyTorch's own rounding has an effect."""
        exact = limit(self.dtype, 0.0)
        return any(match.step.error <= exact < 0.1 * match.step.limit for match in self.matches)

    def _match(self, theirs: ModuleCall) -> Match | None:
        ours = self.flax.find(self.pairs[theirs.path], theirs.number) if theirs.path in self.pairs else None
        true, rough = (trace.find(theirs.path, theirs.number) for trace in (self.truth, self.rough))
        if ours is None or true is None or rough is None or not ours.outputs or not theirs.outputs:
            return None
        apart = {
            i: self._error_and_limit(ours.outputs[j], true.outputs[i], rough.outputs[i])
            for i, j in _output_pairs(theirs, ours)
        }
        e, allowed = max(apart.values(), key=lambda pair: pair[0] - pair[1])
        shapes = theirs.outputs[0].shape, ours.outputs[0].shape
        step = Step(theirs.path, ours.path, theirs.number, *shapes, e, allowed)
        return Match(step, theirs, ours, [i for i, (e, allowed) in apart.items() if e <= allowed])

    def _error_and_limit(self, ours: np.ndarray, true: np.ndarray, rough: np.ndarray) -> tuple[float, float]:
        e, own = (error(x, true, where=self.where) for x in (ours, rough))
        return e, limit(self.dtype, own, self.tolerance)

    def same(self, call: ModuleCall, kind: str, i: int, ours: np.ndarray) -> bool:
        """Whether the port has one of the "inputs" or "outputs" of a call of PyTorch's.

        In low precision it carries the rounding of all that was before.
        """
        theirs = getattr(call, kind)[i]
        allowed = (1 if self.dtype == "float64" else 8) * limit(self.dtype, self.own_error(call, kind, i))
        return error(ours, theirs, where=self.where) <= max(allowed, self.tolerance or 0.0)

    def own_error(self, call: ModuleCall, kind: str, i: int) -> float:
        """PyTorch's, of one of the "inputs" or "outputs" of a call of its own."""
        rough = None if self.rough is self.torch else self.rough.find(call.path, call.number)
        theirs = getattr(call, kind)[i]
        return 0.0 if rough is None else error(getattr(rough, kind)[i], theirs, where=self.where)


class Found(NamedTuple):
    """Where two runs first part."""

    steps: list[Step]  # those that agree, and at the end the one that doesn't
    healed: list[Step]  # those before it that differ, while what is made of them agrees
    site: Site


def first_parting(traces: Traces, module: "torch.nn.Module", ends: Sequence[Place]) -> Found | None:
    """The first difference, in PyTorch's order, that makes these outputs differ."""
    steps, healed = list[Step](), list[Step]()
    agreed = _agreed(traces)
    reaching = traces.torch.flow.back(ends, agreed)
    everything = not traces.torch.flow.known(ends)
    for step, theirs, ours, _ in traces.matches:
        if step.error <= step.limit:
            steps.append(step)
        elif everything or theirs.parent is None or _reaches(traces, theirs, reaching):
            return Found([*steps, step], healed, _site(traces, module, theirs, ours))
        else:
            healed.append(step)
    return None


def _agreed(traces: Traces) -> set[Place]:
    """Where PyTorch has numbers that the port has too: what differed before must have been the same after all."""
    places = set[Place]()
    for _, theirs, ours, equal in traces.matches:
        places.update(theirs.output_places[i] for i in equal)
        for i, j in _input_pairs(theirs, ours):
            if traces.same(theirs, "inputs", i, ours.inputs[j]):
                places.add(theirs.input_places[i])
    return places


def _reaches(traces: Traces, call: ModuleCall, reaching: set[Place]) -> bool:
    """Whether a call's outputs are on the way; of one that no gradient flows through, those of the call around it."""
    if call.parent is None or traces.torch.flow.known(call.output_places):
        return any(place in reaching for place in call.output_places)
    return _reaches(traces, call.parent, reaching)


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
        for step, call, match, _ in traces.matches
        if step.error <= step.limit and call.within(theirs) and match.within(ours)
    ]
    if inside is None:
        pairs = {i: ours.outputs[j] for i, j in _output_pairs(theirs, ours)}
        at = next((i for i, y in pairs.items() if not traces.same(theirs, "outputs", i, y)), min(pairs))
        target, ported, own = theirs.outputs[at], pairs[at], traces.own_error(theirs, "outputs", at)
        where = "its output" if at == 0 else f"its output {at}"
    else:
        given = [(i, inside[1].inputs[j]) for i, j in _input_pairs(*inside)]
        at, ported = next((i, y) for i, y in given if not traces.same(inside[0], "inputs", i, y))
        target, own = inside[0].inputs[at], traces.own_error(inside[0], "inputs", at)
        began = next(i for i, x in enumerate(traces.torch.calls) if x is inside[0] or x.within(inside[0]))
        earlier = set(map(id, traces.torch.calls[:began]))
        done = [call for call, _ in agreed if id(call) in earlier]
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
        tolerance=_tolerance(traces, own, error(ported, target)),
        attributes=_attributes(module, theirs),
        buffers=_buffers(module, theirs),
        pairs=traces.pairs,
    )


def _name(call: ModuleCall, outer: ModuleCall) -> str:
    """Within that call, and which one it is if there are several."""
    return call.path.removeprefix(f"{outer.path}.") + (f" (call {call.number + 1})" if call.number else "")


def _tolerance(traces: Traces, own: float, difference: float) -> float:
    """For a recomputation from numbers that agree: looser than equality, far below the difference to be explained."""
    return min(max(100 * limit(traces.dtype, 0.0), limit(traces.dtype, own)), 0.1 * difference)


def _input_pairs(theirs: ModuleCall, ours: ModuleCall) -> list[tuple[int, int]]:
    """Inputs that belong together.

    Only integers (tokens) are compared where there is nothing else; masks may well have another form or polarity.
    """
    for wanted in (is_floating, lambda x: np.issubdtype(x.dtype, np.integer)):
        at, there = ([i for i, x in enumerate(call.inputs) if wanted(x)] for call in (theirs, ours))
        arrays = [theirs.inputs[i] for i in at], [ours.inputs[j] for j in there]
        names = [theirs.input_names[i] for i in at], [ours.input_names[j] for j in there]
        if pairs := pair_arrays(*arrays, *names):
            return [(at[i], there[j]) for i, j in pairs]
    return []


def _output_pairs(theirs: ModuleCall, ours: ModuleCall) -> list[tuple[int, int]]:
    """Outputs that belong together: by their order, if they have no names and fit in it; and what else is left over."""
    numbers = range(len(theirs.outputs)), range(len(ours.outputs))
    named = set(theirs.output_names) & set(ours.output_names) - {""}
    pairs = list[tuple[int, int]]()
    if named or any(aligned(ours.outputs[i], theirs.outputs[i]) is None for i in min(numbers, key=len)):
        pairs = pair_arrays(theirs.outputs, ours.outputs, theirs.output_names, ours.output_names)
    left = ([i for i in each if i not in {pair[side] for pair in pairs}] for side, each in enumerate(numbers))
    return sorted([*pairs, *zip(*left, strict=False)])


def _inputs_agree(traces: Traces, theirs: ModuleCall, ours: ModuleCall) -> bool:
    return all(traces.same(theirs, "inputs", i, ours.inputs[j]) for i, j in _input_pairs(theirs, ours))


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
