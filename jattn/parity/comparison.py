"""Both modules in one dtype after another, and what is found out by that."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from flax import nnx

from jattn.parity import locate, notes
from jattn.parity.arrays import error, kept
from jattn.parity.catalogue import Diagnosis, diagnose
from jattn.parity.judge import Sides, explained_by, port_names, run_errors
from jattn.parity.match import pair_modules
from jattn.parity.pairing import pair_outputs
from jattn.parity.reach import empty_rows, not_reached
from jattn.parity.report import Parting, Report, Rows, RunErrors
from jattn.parity.settings import Comparing
from jattn.parity.sides import Arguments, Forward, Side, flax_copy, rounded, run_flax, run_torch, torch_copy
from jattn.parity.widen import narrow_buffers, shaken

if TYPE_CHECKING:
    import torch

__all__ = ["Comparison"]


class Comparison:
    """The runs so far."""

    def __init__(self, torch_module: "torch.nn.Module", flax_module: nnx.Module, settings: Comparing) -> None:
        self.torch_module, self.flax_module, self.settings = torch_module, flax_module, settings
        self.runs: list[RunErrors] = []
        self.parting: Parting | None = None
        self.only: tuple[list[str], list[str]] = [], []
        self.rows: Rows | None = None
        self.notes: list[str] = notes.constant_parameters(torch_module)

    def add(self, dtype: str, given: Arguments, flax_given: Arguments) -> None:
        """Run in one more dtype."""
        self._note(not_reached(self.torch_module, given))
        low = torch_copy(self.torch_module, dtype)
        sides = self._run(low, dtype, given, flax_given)
        judged = self._judged(sides, low)
        if dtype == "float64" and not judged.run.equal:
            judged = self._judged_by_float32(judged, sides, low, given)
        self.runs.append(judged.run)
        if self.rows is None and judged.found is not None and self.settings.where is None:
            masks = empty_rows(self.torch_module, given)
            self.rows = next((Rows(*mask) for mask in masks if explained_by(mask[1], sides, self.settings)), None)
        if self.parting is None and judged.found is not None:
            same_function = any(run.dtype == "float64" and run.equal for run in self.runs)
            sites = [found.site for found in (judged.found, judged.loosely) if found is not None and not same_function]
            self.parting = _parting(dtype, judged.found, next(filter(None, map(diagnose, sites)), None))

    def _run(self, low: "torch.nn.Module", dtype: str, given: Arguments, flax_given: Arguments) -> Sides:
        s = self.settings
        wide = torch_copy(low, "float64")
        truth = run_torch(wide, rounded(rounded(given, dtype), "float64"), "float64", s.output)
        theirs = truth if dtype == "float64" else run_torch(low, rounded(given, dtype), dtype, s.output)
        with jax.enable_x64(dtype == "float64"):
            port = flax_copy(self.flax_module, low.state_dict() if s.load else None, dtype, s.rename)
            ours = run_flax(port, rounded(flax_given, dtype), s.output)
            outputs, others = pair_outputs(theirs.names, ours.names)
            self.names = {pair.name: pair.torch for pair in outputs}
            self.counted = self._counted(theirs)
            our_side = Side.of(ours, {pair.name: pair.flax for pair in outputs}, s.seed, self.counted)
        true_side = self._side(truth)
        their_side = true_side if theirs is truth else self._side(theirs)
        pairs = pair_modules(low, port, theirs.trace, ours.trace, s.rename, s.names, s.ignored)
        self.only = (
            list(dict.fromkeys(call.path for call in theirs.trace.calls if call.path not in {*pairs, *s.ignored})),
            list(dict.fromkeys(call.path for call in ours.trace.calls if call.path not in pairs.values())),
        )
        sides = Sides(dtype, their_side, our_side, true_side, their_side, pairs, port_names(low, port, pairs, s))
        self._note(notes.of_outputs(outputs[0].name, others) if outputs else [])
        self._note(notes.of_run(sides, s))
        self._note(notes.of_padding(low, sides))
        self._note(notes.of_weights(low, port, sides, s))
        self._note(truth.notes if dtype == "float64" else [])
        return sides

    def _side(self, run: Forward) -> Side:
        """PyTorch's."""
        return Side.of(run, self.names, self.settings.seed, self.counted)

    def _counted(self, run: Forward) -> dict[str, np.ndarray]:
        """The entries of each output that ``where`` is about."""
        if self.settings.where is None:
            return {}
        shapes = {name: run.outputs[i].shape for name, i in self.names.items() if i is not None}
        masks = {name: kept(self.settings.where, shape) for name, shape in shapes.items()}
        found = {name: mask for name, mask in masks.items() if mask is not None}
        inner = any(kept(self.settings.where, y.shape) is not None for call in run.trace.calls for y in call.outputs)
        if not found and not inner:
            raise ValueError(
                f"where must fit the leading axes of an output of PyTorch's or of a module in it, of "
                f"{', '.join(map(str, shapes.values()))}. "
                f"Got shape {self.settings.where.shape}."
            )
        return found

    def _judged(self, sides: Sides, module: "torch.nn.Module") -> "_Judged":
        """The errors, and where the outputs part if they do."""
        s = self.settings
        run = run_errors(sides, s)
        if all(entry.equal for entry in run.outputs):
            return _Judged(run, None)
        wrong = {entry.name for entry in run.outputs if not entry.equal}
        places = sides.theirs.places
        ends = [place for name, place in places.items() if name in wrong] or list(places.values())
        return _Judged(run, locate.first_parting(self._traces(sides), module, ends))

    def _traces(self, sides: Sides) -> locate.Traces:
        theirs, ours, truth, rough = (side.trace for side in (sides.theirs, sides.ours, sides.truth, sides.rough))
        s = self.settings
        return locate.Traces(
            sides.dtype, theirs, ours, truth, rough, sides.pairs, s.where, s.tolerance.get(sides.dtype)
        )

    def _judged_by_float32(self, exact: "_Judged", sides: Sides, low: "torch.nn.Module", given: Arguments) -> "_Judged":
        """Whether the rounding of buffers that were made in float32 explains what differs in float64."""
        names = narrow_buffers(self.torch_module)
        if not names:
            return exact
        module = shaken(torch_copy(low, "float64"), names)
        run = run_torch(module, rounded(given, "float64"), "float64", self.settings.output)
        loosely = sides._replace(rough=self._side(run))
        if self._traces(loosely).agree_where_rounding_shows:  # the port has the very numbers of these buffers
            return exact
        rough = self._judged(loosely, low)
        if exact.verdict == rough.verdict:
            return exact._replace(loosely=rough.found)
        _, _, true, own = loosely.parts("outputs")
        size = max((error(own[name], x, where=self.settings.where) for name, x in true.items()), default=0.0)
        self._note([notes.narrow_buffers_matter(names, size)])
        return rough

    def _note(self, sentences: Iterable[str]) -> None:
        self.notes.extend(note for note in sentences if note not in self.notes)

    def report(self) -> Report:
        """All that was found."""
        return Report(self.runs, self.parting, *self.only, self.notes, self.rows)


class _Judged(NamedTuple):
    run: RunErrors
    found: locate.Found | None
    loosely: locate.Found | None = None  # the same place, for a port whose tables have other digits than PyTorch's

    @property
    def verdict(self) -> tuple[list[bool], tuple[int, str] | None]:
        """What is equal, and where they part."""
        equal = [entry.equal for _, entries in self.run.parts() for entry in entries]
        return equal, None if self.found is None else (len(self.found.steps), self.found.site.where)


def _parting(dtype: str, found: locate.Found, diagnosis: Diagnosis | None) -> Parting:
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
        diagnosis=diagnosis,
        healed=healed,
    )
