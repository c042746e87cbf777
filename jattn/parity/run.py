"""`compare`: both modules once on the same numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jattn.parity import locate
from jattn.parity.arrays import FLOAT64, error, is_floating, leaves, limit, numbers, scales
from jattn.parity.catalogue import diagnose
from jattn.parity.match import apply_renames, ignored_modules, pair_modules
from jattn.parity.report import Entry, Parting, Report, RunErrors
from jattn.parity.sides import (
    DTYPES,
    Arguments,
    Side,
    arguments,
    check_modules,
    flax_copy,
    rounded,
    run_flax,
    run_torch,
    torch_copy,
)
from jattn.parity.trace import submodules
from jattn.parity.widen import narrow_buffers, shaken
from jattn.weights import state_dict

if TYPE_CHECKING:
    import torch

__all__ = ["compare"]


def compare(
    torch_module: "torch.nn.Module",
    flax_module: Any,
    inputs: Any,
    *,
    flax_inputs: Any = None,
    gradients: bool = True,
    dtypes: Sequence[str] = ("float64", "float32"),
    load: bool = True,
    rename: Mapping[str, str | None] | None = None,
    names: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Run a PyTorch module and its port on the same numbers, and say where they first part, and why.

    That is the first difference from which the output's comes: one that what follows makes up for, as an embedding that
    is scaled within its module on one side and after it on the other, is only mentioned.

    Both run in eval mode and on copies: what was given stays as it was. In float64 the error may be 1e-10 of the
    largest entry. In less, the error against PyTorch in float64 on the same rounded numbers may be four times
    PyTorch's own plus 32 ulp. In the float64 run neither side computes in less: a layer of the port that has float32
    as its own dtype computes in float64, and so does PyTorch's module where it casts to float32 by itself.

    Args:
        torch_module: the original.
        flax_module: the port.
        inputs: a tuple or a dictionary of arrays (NumPy's or tensors), the arguments of both; integers and whatever is
            no array are handed over as they are.
        flax_inputs: the port's arguments where they differ in form from PyTorch's; floating-point ones in PyTorch's
            order.
        gradients: whether to compare those of inputs and parameters under a random cotangent.
        dtypes: in which to compare, of float64, float32, bfloat16 and float16.
        load: whether the port gets PyTorch's weights, by `jattn.weights.load_state_dict`; otherwise it has them.
        rename: as there.
        names: submodules on PyTorch's side to submodules of the port, where neither their names nor their numbers nor
            their order tell.
        ignore: submodules on PyTorch's side that are not looked at, with all that is in them: paths, or patterns such
            as ``*.rotary_emb``.
        seed: of the cotangents.

    Returns:
        The report: print it, or call its ``assert_equal()``.

    Raises:
        ValueError: if the inputs hold NaN or don't fit both modules, or the weights can't be loaded.

    Example:

        >>> import torch
        >>> report = compare(torch.nn.LayerNorm(8), nnx.LayerNorm(8, rngs=nnx.Rngs(0)), np.eye(3, 8))
        >>> print(report.finding)
        They part in the module itself: its output is off by ... in float64, 1e-10 allowed.
        Cause: layer-norm epsilon. It has epsilon 1e-06 in the port, 1e-05 in PyTorch.
        ...
    """
    check_modules(torch_module, flax_module)
    if isinstance(dtypes, str):
        raise ValueError(f"dtypes must be a sequence of names. Got the string {dtypes!r}. Write ({dtypes!r},).")
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if unknown or not dtypes:
        raise ValueError(f"dtypes must be some of {', '.join(DTYPES)}. Got {', '.join(unknown) or 'none'}.")
    alien = [repr(path) for path in names or {} if path not in dict(torch_module.named_modules())]
    alien += [repr(path) for path in (names or {}).values() if path not in dict(submodules(flax_module))]
    if alien:
        raise ValueError(f"names must map PyTorch's submodules to the port's. Got {', '.join(alien)}, which is none.")
    given = arguments(inputs)
    flax_given = given if flax_inputs is None else arguments(flax_inputs, "flax_inputs")
    for name, each in (("inputs", given), ("flax_inputs", flax_given)):
        if any(np.isnan(numbers(x)).any() for x in leaves(each) if is_floating(x)):
            raise ValueError(f"{name} must hold no NaN, which hides every difference. Got some.")
    ignored = ignored_modules(torch_module, ignore)
    comparison = _Comparison(torch_module, flax_module, gradients, load, rename or {}, names or {}, ignored, seed)
    for dtype in dtypes:
        comparison.add(dtype, given, flax_given)
    return comparison.report()


class _Comparison:
    """The runs so far."""

    def __init__(
        self,
        torch_module: "torch.nn.Module",
        flax_module: nnx.Module,
        gradients: bool,
        load: bool,
        rename: Mapping[str, str | None],
        names: Mapping[str, str],
        ignored: set[str],
        seed: int,
    ) -> None:
        self.torch_module, self.flax_module = torch_module, flax_module
        self.load, self.rename, self.names, self.ignored = load, rename, names, ignored
        self.options: Any = {"gradients": gradients, "seed": seed}
        self.runs: list[RunErrors] = []
        self.parting: Parting | None = None
        self.only: tuple[list[str], list[str]] = [], []
        self.notes: list[str] = _constant_parameters(torch_module)

    def add(self, dtype: str, given: Arguments, flax_given: Arguments) -> None:
        """Run in one more dtype."""
        low = torch_copy(self.torch_module, dtype)
        wide = torch_copy(low, "float64")
        wide_given = rounded(rounded(given, dtype), "float64")
        truth = run_torch(wide, wide_given, "float64", **self.options)
        theirs = truth if dtype == "float64" else run_torch(low, rounded(given, dtype), dtype, **self.options)
        with jax.enable_x64(dtype == "float64"):
            tensors = low.state_dict() if self.load else None
            port = flax_copy(self.flax_module, tensors, dtype, self.rename)
            ours, why = run_flax(port, rounded(flax_given, dtype), **self.options)
            if not self.load:
                self._note_weights(low, port)
        for name, x in theirs.outputs.items():
            if name in ours.outputs and not np.isfinite(x).all() and not np.isfinite(ours.outputs[name]).all():
                self._note(f"{name} is not finite on either side, which hides other differences.")
        pairs = pair_modules(low, port, theirs.trace, ours.trace, self.rename, self.names, self.ignored)
        self.only = (
            list(dict.fromkeys(call.path for call in theirs.trace.calls if call.path not in {*pairs, *self.ignored})),
            list(dict.fromkeys(call.path for call in ours.trace.calls if call.path not in pairs.values())),
        )
        sides = _Sides(dtype, theirs, ours, truth, theirs, why, pairs)
        run, found = self._judged(sides, low)
        if dtype == "float64":
            for note in truth.notes:
                self._note(note)
            if not run.equal and (narrow := narrow_buffers(self.torch_module)):
                rough = run_torch(shaken(wide, narrow), wide_given, dtype, **self.options)
                exact, (run, found) = (run, found), self._judged(sides._replace(rough=rough), low)
                if not _same_verdict(exact, (run, found)):
                    self._note(_of_narrow_buffers(narrow, exact))
                else:
                    run, found = exact
        self.runs.append(run)
        if self.parting is None and found is not None:
            same_function = any(run.dtype == "float64" and run.equal for run in self.runs)
            self.parting = _parting(dtype, found, name_cause=not same_function)

    def _judged(self, sides: "_Sides", module: "torch.nn.Module") -> "_Judged":
        """The errors, and where the outputs part if they do."""
        run = self._entries(sides)
        if all(entry.equal for entry in run.outputs):
            return run, None
        theirs, ours, truth, rough = (side.trace for side in sides[1:5])
        traces = locate.Traces(sides.dtype, theirs, ours, truth, rough, sides.pairs)
        places, wrong = sides.theirs.output_places, {entry.name for entry in run.outputs if not entry.equal}
        ends = [place for name, place in places.items() if name in wrong] or list(places.values())
        return run, locate.first_parting(traces, module, ends)

    def _entries(self, sides: "_Sides") -> RunErrors:
        kinds = []
        for kind in ("outputs", "input_gradients", "parameter_gradients"):
            a, b, true, own = (getattr(side, kind) for side in sides[1:5])
            if kind == "input_gradients":  # by their order, as the port may name them otherwise
                b = dict(zip([*a, *[f"{name} of the port" for name in b][len(a) :]], b.values(), strict=False))
            if kind == "parameter_gradients":
                names = _in_call_order(sides.theirs)
                a, true, own = (apply_renames({name: y[name] for name in names}, self.rename) for y in (a, true, own))
                if a and not b:
                    self._note(f"gradients of parameters are not compared: {sides.why or 'the port has none by name.'}")
                    a = {}
                elif not self.load:
                    self._note_names(set(a), set(b))
                    a, b = ({name: x for name, x in y.items() if name in a and name in b} for y in (a, b))
            kinds.append(_compared(sides.dtype, a, b, true, own, outputs=kind == "outputs"))
        return RunErrors(sides.dtype, *kinds)

    def _note_names(self, theirs: set[str], ours: set[str]) -> None:
        if theirs != ours:
            names = sorted(theirs ^ ours)
            some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            self._note(f"{len(names)} gradients are not compared, as only one side has them: {some}.")

    def _note_weights(self, low: "torch.nn.Module", port: nnx.Module) -> None:
        try:
            ours = {name: numbers(x) for name, x in state_dict(port).items()}
        except ValueError:  # layers without a map have no names to compare by
            return
        theirs = apply_renames(low.state_dict(), self.rename)
        other = [name for name, x in theirs.items() if name in ours and error(ours[name], numbers(x)) > FLOAT64]
        if other:
            self._note(f"the port's weights are not PyTorch's: {', '.join(other)}.")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def report(self) -> Report:
        return Report(self.runs, self.parting, *self.only, self.notes)


class _Sides(NamedTuple):
    """All that ran in one dtype."""

    dtype: str
    theirs: Side
    ours: Side
    truth: Side
    rough: Side  # what PyTorch's own error is taken from
    why: str | None  # there are no gradients of parameters
    pairs: Mapping[str, str]


_Judged = tuple[RunErrors, locate.Found | None]


def _same_verdict(one: _Judged, other: _Judged) -> bool:
    equal = [[entry.equal for _, entries in run.parts() for entry in entries] for run, _ in (one, other)]
    places = [None if found is None else (len(found.steps), found.site.where) for _, found in (one, other)]
    return equal[0] == equal[1] and places[0] == places[1]


def _of_narrow_buffers(names: list[str], exact: _Judged) -> str:
    run, found = exact
    wrong = [entry.error for _, entries in run.parts() for entry in entries if not entry.equal]
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    size = wrong[0] if found is None else found.steps[-1].error
    return (
        f"{some} on PyTorch's side {'was' if len(names) == 1 else 'were'} made in float32, whose digits are all that "
        f"float64 has there. What their rounding may change, here by {size:.0e}, is not held against the port."
    )


def _in_call_order(side: Side) -> list[str]:
    """The parameters that have gradients, as their modules were called."""
    places = {call.path: place for place, call in enumerate(side.trace.calls)}
    return sorted(side.parameter_gradients, key=lambda name: places.get(name.rpartition(".")[0], len(places)))


def _compared(
    dtype: str,
    theirs: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    rough: Mapping[str, np.ndarray],
    *,
    outputs: bool,
) -> list[Entry]:
    """What only one side has is infinitely wrong; ``rough`` is what PyTorch's own error is taken from."""
    scale = dict.fromkeys(true, None) if outputs else scales(true)
    entries = []
    for name in (*theirs, *[name for name in ours if name not in theirs]):
        if name not in theirs or name not in ours:
            present = theirs if name in theirs else ours
            side = "PyTorch" if name in theirs else "the port"
            entries.append(Entry(f"{name}, only of {side}", present[name].shape, float("inf"), limit(dtype, 0.0)))
            continue
        own = error(rough[name], true[name], scale[name])
        entries.append(Entry(name, theirs[name].shape, error(ours[name], true[name], scale[name]), limit(dtype, own)))
    return entries


def _parting(dtype: str, found: locate.Found, *, name_cause: bool) -> Parting:
    steps, healed, site = found
    return Parting(
        dtype=dtype,
        torch_name=site.torch_name,
        flax_name=site.flax_name,
        where=site.where,
        torch_shape=site.torch.shape,
        flax_shape=site.flax.shape,
        error=error(site.flax, site.torch),
        limit=steps[-1].limit,
        before=steps[:-1],
        diagnosis=diagnose(site) if name_cause else None,
        healed=healed,
    )


def _constant_parameters(module: "torch.nn.Module") -> list[str]:
    """Biases of zero and scales of one hide what is wrong with them."""
    constant = [n for n, p in module.named_parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    if not constant:
        return []
    some = ", ".join(constant[:3]) + (", ..." if len(constant) > 3 else "")
    return [f"all entries of {len(constant)} parameters are equal ({some}), which may hide a mistake. Randomise them."]
