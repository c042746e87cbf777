"""What a comparison found: a table, JSON, or an assertion."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from jattn.parity.arrays import some
from jattn.parity.catalogue import Diagnosis
from jattn.parity.locate import Step

__all__ = ["Entry", "Findings", "Parting", "Report", "Rows", "RunErrors"]

SHOWN_BEFORE = 6  # steps in the table, of those before the parting


class Entry(NamedTuple):
    """One array on both sides: the port's largest error, relative to the largest entry, and what it may be."""

    name: str
    shape: tuple[int, ...]
    error: float
    limit: float

    @property
    def equal(self) -> bool:
        """Whether the error is allowed."""
        return self.error <= self.limit


@dataclasses.dataclass(frozen=True)
class RunErrors:
    """One dtype: each output, and the gradients under a random cotangent."""

    dtype: str
    outputs: list[Entry]
    input_gradients: list[Entry]
    parameter_gradients: list[Entry]

    def parts(self) -> Iterator[tuple[str, list[Entry]]]:
        """The three, by their names."""
        yield from (
            ("outputs", self.outputs),
            ("input gradients", self.input_gradients),
            ("parameter gradients", self.parameter_gradients),
        )

    @property
    def equal(self) -> bool:
        """Whether all of it agrees."""
        return all(entry.equal for _, entries in self.parts() for entry in entries)


@dataclasses.dataclass(frozen=True)
class Parting:
    """The first place where the two part: the innermost module whose inputs agree while something in it doesn't."""

    dtype: str
    torch_name: str
    flax_name: str
    where: str  # its output, or the input of a submodule after another that agrees
    torch_shape: tuple[int, ...]
    flax_shape: tuple[int, ...]
    error: float
    limit: float
    before: list[Step]  # the modules that agree, in PyTorch's order of execution
    diagnosis: Diagnosis | None
    healed: list[Step] = dataclasses.field(default_factory=list)  # that differ before it, while what follows agrees


class Rows(NamedTuple):
    """What explains a difference altogether: queries that may attend to nothing."""

    mask: str  # the name of the input that says so
    attending: np.ndarray  # ``b t``, True for those that may attend to something

    def __str__(self) -> str:
        empty = [f"({', '.join(map(str, row))})" for row in np.argwhere(~self.attending).tolist()]
        return (
            f"They differ only in rows of queries that {self.mask} leaves nothing to attend to: {some(empty, 4)}. "
            "There one softmax gives the mean of all values, another NaN or zeros. Pass where= with the rows that "
            "count."
        )


class Findings:
    """What the reports of a run and of a training have in common: a finding and its table. They are dataclasses."""

    @property
    def equal(self) -> bool:
        """Whether everything compared agrees."""
        raise NotImplementedError

    @property
    def finding(self) -> str:
        """The finding in a few lines."""
        raise NotImplementedError

    def _renderables(self) -> Iterator[RenderableType]:
        raise NotImplementedError

    def assert_equal(self) -> None:
        """In a test.

        Raises:
            AssertionError: with the finding, unless everything agrees.
        """
        if not self.equal:
            raise AssertionError(self.finding)

    def to_dict(self) -> dict[str, Any]:
        """All of it in lists, dictionaries, numbers and strings; numbers that are not finite are strings."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"equal": self.equal, "finding": self.finding, **_plain(fields)}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        yield from self._renderables()
        yield Text(self.finding, style="green" if self.equal else "red")

    def __str__(self) -> str:
        console = Console(width=110, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


@dataclasses.dataclass(frozen=True)
class Report(Findings):
    """A PyTorch module and its port on the same numbers. ``print`` it, or ``assert_equal()`` it."""

    runs: list[RunErrors]
    parting: Parting | None
    only_in_torch: list[str]  # submodules that were called and have no match
    only_in_flax: list[str]
    notes: list[str]  # what was not compared, and what could not show
    rows: Rows | None = None  # if nothing else differs

    @property
    def equal(self) -> bool:
        return all(run.equal for run in self.runs)

    @property
    def finding(self) -> str:
        if self.equal:
            what = "outputs and gradients" if any(run.parameter_gradients for run in self.runs) else "outputs"
            return f"Equal: {what} agree in {' and '.join(run.dtype for run in self.runs)}."
        found = [*(self._located() if self.parting is not None else self._unlocated())]
        return "\n".join([*found, str(self.rows)] if self.rows is not None else found)

    def _located(self) -> Iterator[str]:
        p = self.parting
        assert p is not None
        ours = "" if p.flax_name == p.torch_name else f" ({p.flax_name or 'the module itself'} in the port)"
        name = p.torch_name or "the module itself"
        yield f"They part in {name}{ours}: {p.where} is off by {p.error:.1e} in {p.dtype}, {p.limit:.0e} allowed."
        if p.torch_shape != p.flax_shape:
            yield f"The shapes are {p.torch_shape} in PyTorch and {p.flax_shape} in the port."
        if p.diagnosis is not None:
            yield f"Cause: {p.diagnosis.cause}. {p.diagnosis.found}"
            yield f"{p.diagnosis.explanation} Remedy: {p.diagnosis.remedy}"
            yield from (f"Also fits: {other.cause}. {other.found}" for other in p.diagnosis.others)
        elif p.dtype != "float64" and any(run.dtype == "float64" and run.equal for run in self.runs):
            yield "In float64 they agree, so it is the same function, computed with fewer digits here."
        else:
            yield "No known cause makes this difference vanish."

    def _unlocated(self) -> Iterator[str]:
        run = next(run for run in self.runs if not run.equal)
        kind, entries = next((kind, entries) for kind, entries in run.parts() if not all(e.equal for e in entries))
        wrong = [entry for entry in entries if not entry.equal]
        e = wrong[-1]  # the backward pass comes from the end
        if kind != "outputs":
            yield f"The outputs agree in {run.dtype}, the {kind} don't: {len(wrong)} of {len(entries)}."
        where = f"{e.name} {e.shape}"
        first = "" if kind == "outputs" else "; the backward pass comes by there first"
        yield f"{where} is off by {e.error:.1e}, {e.limit:.0e} allowed{first}."
        if e.error == 1.0:
            yield "The port's is zero: look for a stop_gradient, or for a module that is not called."

    def _renderables(self) -> Iterator[RenderableType]:
        table = Table(
            title="Largest error, relative to the largest entry", box=None, title_justify="left", padding=(0, 2, 0, 0)
        )
        for column in ("", "dtype", "compared", "error", "allowed", "of", ""):
            table.add_column(column, justify="right" if column in ("compared", "error", "allowed") else "left")
        for run in self.runs:
            for kind, entries in run.parts():
                if entries:
                    worst = max(entries, key=lambda e: e.error / e.limit if math.isfinite(e.error) else math.inf)
                    equal = all(e.equal for e in entries)
                    numbers = str(len(entries)), f"{worst.error:.1e}", f"{worst.limit:.1e}"
                    table.add_row(kind, run.dtype, *numbers, worst.name, "equal" if equal else "parts")
        yield table
        yield ""
        if self.parting is not None:
            yield self._steps(self.parting)
            yield ""
        if self.parting is not None and self.parting.healed:
            paths = list(dict.fromkeys(step.torch_name for step in self.parting.healed))
            yield Text(f"Differs, but what follows agrees: {some(paths, SHOWN_BEFORE)}")
        for name, paths in (("PyTorch", self.only_in_torch), ("the port", self.only_in_flax)):
            if paths and not self.equal:
                yield Text(f"Only in {name}: {some(paths, SHOWN_BEFORE)}")
        yield from (Text(f"Note: {note}") for note in self.notes)

    def _steps(self, p: Parting) -> Table:
        table = Table(title=f"In PyTorch's order, {p.dtype}", box=None, title_justify="left", padding=(0, 2, 0, 0))
        for column in ("PyTorch", "the port", "shape", "error", ""):
            table.add_column(column, justify="right" if column == "error" else "left")
        if len(p.before) > SHOWN_BEFORE:
            table.add_row(f"({len(p.before) - SHOWN_BEFORE} more)", "", "", "", "equal")
        for step in p.before[-SHOWN_BEFORE:]:
            name = step.torch_name + (f", call {step.number + 1}" if step.number else "")
            table.add_row(name, step.flax_name, _shape(step.torch_shape), f"{step.error:.1e}", "equal")
        name = f"{p.torch_name or '(the whole)'}: {p.where}"
        shape = _shape(p.torch_shape) + ("" if p.torch_shape == p.flax_shape else f", {_shape(p.flax_shape)}")
        table.add_row(name, p.flax_name or "(the whole)", shape, f"{p.error:.1e}", "PARTS", style="bold")
        return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _plain(x: Any) -> Any:
    if dataclasses.is_dataclass(x):
        return {field.name: _plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
    if isinstance(x, tuple) and hasattr(x, "_asdict"):
        return {name: _plain(value) for name, value in x._asdict().items()}
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(item) for item in x]
    if isinstance(x, np.ndarray):
        return x.tolist()
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
