"""`trajectory`: both modules trained for some steps on the same batches, and where they first part."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jattn._engine import checks
from jattn.parity.arrays import error, is_floating, largest, limit, numbers, scales
from jattn.parity.catalogue import Diagnosis
from jattn.parity.match import apply_renames
from jattn.parity.optimizer_causes import Replay, diagnose_update
from jattn.parity.report import Entry, Findings
from jattn.parity.sides import DTYPES, check_modules, flax_copy, rounded, torch_copy
from jattn.parity.widen import float64_throughout
from jattn.weights import state_dict, to_tensor
from jattn.weights.table import Renaming

if TYPE_CHECKING:
    import torch

__all__ = ["StepErrors", "TrajectoryReport", "trajectory"]

PHASES = ("loss", "gradient", "update")


@dataclasses.dataclass(frozen=True)
class StepErrors:
    """One step, counted from 1: its loss on both sides, and the errors of its three phases."""

    step: int
    torch_loss: float
    flax_loss: float
    loss: Entry
    gradient: Entry  # the worst parameter's
    update: Entry  # the worst parameter after the step

    @property
    def phases(self) -> list[Entry]:
        """In the order in which they happen."""
        return [self.loss, self.gradient, self.update]


@dataclasses.dataclass(frozen=True)
class TrajectoryReport(Findings):
    """Both sides over some steps of training. ``print`` it, or ``assert_equal()`` it."""

    dtype: str
    steps: list[StepErrors]
    parameters: list[Entry]  # after the last step
    diagnosis: Diagnosis | None
    notes: list[str]

    @property
    def equal(self) -> bool:
        return self.first is None

    @property
    def first(self) -> tuple[int, str] | None:
        """The step, counted from 1, and the phase of it (loss, gradient or update) in which they first part."""
        for step in self.steps:
            for phase, entry in zip(PHASES, step.phases, strict=True):
                if not entry.equal:
                    return step.step, phase
        return None

    @property
    def finding(self) -> str:
        if self.first is None:
            return f"Equal: the losses of {len(self.steps)} steps and all parameters after them agree in {self.dtype}."
        number, phase = self.first
        entry = self.steps[number - 1].phases[PHASES.index(phase)]
        before = {
            "loss": "All was equal before it: compare() the modules in this state, then the losses.",
            "gradient": "The losses are equal: compare() the modules, which checks gradients too.",
            "update": "Losses and gradients are equal: the optimisers differ.",
        }
        of = f" of {entry.name}" if phase != "loss" else ""
        text = f"They part at step {number}, in the {phase}{of}: off by {entry.error:.1e}, {entry.limit:.0e} allowed."
        if self.diagnosis is None:
            return f"{text}\n{before[phase]}"
        d = self.diagnosis
        return f"{text}\nCause: {d.cause}. {d.found}\n{d.explanation} Remedy: {d.remedy}"

    def _renderables(self) -> Iterator[RenderableType]:
        title = f"Training in {self.dtype}: the largest error of each step, relative to the largest entry"
        table = Table(title=title, box=None, title_justify="left", padding=(0, 2, 0, 0))
        for column in ("step", "PyTorch's loss", "the port's", "loss", "gradient", "update", ""):
            table.add_column(column, justify="left" if column == "" else "right")
        at = len(self.steps) if self.first is None else self.first[0]
        shown = {1, 2, at - 1, at, at + 1, len(self.steps)}
        for s in (s for s in self.steps if s.step in shown):
            errors = [f"{entry.error:.1e}" for entry in s.phases]
            word = "equal" if all(entry.equal for entry in s.phases) else "parts"
            table.add_row(str(s.step), f"{s.torch_loss:.10g}", f"{s.flax_loss:.10g}", *errors, word)
        yield table
        yield ""
        yield from (Text(f"Note: {note}") for note in self.notes)


def trajectory(
    torch_module: "torch.nn.Module",
    flax_module: Any,
    batches: Sequence[Any],
    *,
    loss: Callable[[Any, Any, Any], Any],
    torch_loss: Callable[[Any, Any], Any],
    optimizer: optax.GradientTransformation,
    torch_optimizer: "Callable[[Any], torch.optim.Optimizer]",
    steps: int,
    dtype: str = "float64",
    load: bool = True,
    rename: Renaming | None = None,
) -> TrajectoryReport:
    """Train a PyTorch module and its port from the same parameters, and say at which step they part, and in what.

    Both run in eval mode, as their dropout could not drop the same, and on copies.

    Args:
        torch_module, flax_module, load, rename: as in `compare`.
        batches: nests of arrays; after the last comes the first again.
        loss: from the port, a batch of JAX's arrays and a ``jax.random.key`` to a number, as for `jattn.training.fit`.
        torch_loss: from PyTorch's module and a batch of tensors to a number.
        optimizer: of optax or `jattn.training`.
        torch_optimizer: from parameters to an optimiser, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        steps: how many.
        dtype: in which to train; in float64, PyTorch's own casts to float32 are to float64.

    Returns:
        The report: print it, or call its ``assert_equal()``.

    Raises:
        ValueError: if the weights can't be loaded.
    """
    rename = rename or {}
    check_modules(torch_module, flax_module)
    checks.one_of("dtype", dtype, DTYPES)
    checks.number("steps", steps, "[1, inf)", integer=True)
    if not batches:
        raise ValueError(f"batches must be at least one. Got {len(batches)}.")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax GradientTransformation. Got {optimizer!r:.80}.")
    low = torch_copy(torch_module, dtype)
    cast = [rounded(batch, dtype) for batch in batches]
    theirs = _train_torch(low, dtype, cast, torch_loss, torch_optimizer, steps, rename)
    with jax.enable_x64(dtype == "float64"):
        port = flax_copy(flax_module, torch_copy(torch_module, dtype).state_dict() if load else None, dtype, rename)
        ours = _train_flax(port, cast, loss, optimizer, steps)
    return _report(dtype, theirs, ours)


@dataclasses.dataclass
class _Course:
    """What training gave: parameters before the first step, and three things of each."""

    start: dict[str, np.ndarray]
    losses: list[float] = dataclasses.field(default_factory=list)
    gradients: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    parameters: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _train_torch(
    module: "torch.nn.Module",
    dtype: str,
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Any],
    make: "Callable[[Any], torch.optim.Optimizer]",
    steps: int,
    rename: Renaming,
) -> _Course:
    parameters = dict(module.named_parameters(remove_duplicate=False))

    def named(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return apply_renames(arrays, rename)

    optimizer = _torch_optimizer(make, module)
    course = _Course(named({name: numbers(p) for name, p in parameters.items()}))
    course.settings = {
        "optimizer": type(optimizer).__name__,
        **{name: value for name, value in optimizer.param_groups[0].items() if name != "params"},
    }
    for i in range(steps):
        optimizer.zero_grad()
        with float64_throughout() if dtype == "float64" else contextlib.nullcontext():
            value = loss(module, jax.tree.map(to_tensor, batches[i % len(batches)]))
        _check_loss("torch_loss", value)
        value.backward()
        course.losses.append(value.item())
        grads = {name: np.zeros(p.shape) if p.grad is None else numbers(p.grad) for name, p in parameters.items()}
        course.gradients.append(named(grads))
        optimizer.step()
        course.parameters.append(named({name: numbers(p) for name, p in parameters.items()}))
    return course


def _torch_optimizer(make: Any, module: "torch.nn.Module") -> "torch.optim.Optimizer":
    import torch

    made = make(module.parameters()) if callable(make) else make
    if made is make or not isinstance(made, torch.optim.Optimizer):
        fact = f"the result {type(made).__name__}" if made is not make else type(made).__name__
        raise ValueError(
            "torch_optimizer must be a function from parameters to a torch.optim.Optimizer, as it trains a copy. "
            f"Got {fact}. Pass functools.partial(torch.optim.Adam, lr=1e-3), for one."
        )
    return made


def _check_loss(name: str, value: Any) -> None:
    """One floating-point number on either side."""
    array = hasattr(value, "shape") and hasattr(value, "dtype")
    if not array or tuple(value.shape) != () or not is_floating(value):
        fact = f"shape {tuple(value.shape)} in {value.dtype}" if array else type(value).__name__
        raise ValueError(f"{name} must give one floating-point number. Got {fact}. Take the mean of an array.")


def _train_flax(
    module: nnx.Module,
    batches: Sequence[Any],
    loss: Callable[[Any, Any, Any], Any],
    optimizer: optax.GradientTransformation,
    steps: int,
) -> _Course:
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    opt_state = optimizer.init(parameters)

    def named(parameters: Any) -> dict[str, np.ndarray]:
        return {name: numbers(x) for name, x in state_dict(nnx.merge(graph, parameters, rest)).items()}

    @jax.jit
    def step(parameters: Any, opt_state: Any, batch: Any, rng: Any) -> Any:
        def run(parameters: Any) -> Any:
            value = loss(nnx.merge(graph, parameters, rest, copy=True), batch, rng)
            _check_loss("loss", value)
            return value

        value, gradient = jax.value_and_grad(run)(parameters)
        updates, opt_state = optimizer.update(gradient, opt_state, parameters)
        return value, gradient, optax.apply_updates(parameters, updates), opt_state

    course = _Course(named(parameters))
    for i in range(steps):
        batch = jax.tree.map(jnp.asarray, batches[i % len(batches)])
        value, gradient, parameters, opt_state = step(parameters, opt_state, batch, jax.random.key(i))
        course.losses.append(float(value))
        course.gradients.append(named(gradient))
        course.parameters.append(named(parameters))
    return course


def _report(dtype: str, theirs: _Course, ours: _Course) -> TrajectoryReport:
    notes = []
    # What the softmax does not see (a key's bias) has a gradient of rounding only, which Adam makes as large as a step.
    moved = [
        name
        for name in theirs.start
        if any(largest(g[name]) > 1e-9 * max(map(largest, g.values())) for g in theirs.gradients)
    ]
    still = [name for name in theirs.start if name not in moved]
    if still:
        notes.append(f"without a gradient but rounding, so not compared: {', '.join(still)}.")
    # Rounding grows with the steps; a mistake is there at once.
    allowed = limit(dtype, 0.0) if dtype == "float64" else 1e3 * limit(dtype, 0.0)
    steps = []
    for i, (a, b) in enumerate(zip(theirs.losses, ours.losses, strict=True)):
        loss = Entry("loss", (), error(np.array(b), np.array(a)), allowed)
        gradient = _worst(moved, theirs.gradients[i], ours.gradients[i], allowed)
        update = _worst(moved, theirs.parameters[i], ours.parameters[i], allowed)
        steps.append(StepErrors(i + 1, a, b, loss, gradient, update))
    last = _entries(moved, theirs.parameters[-1], ours.parameters[-1], allowed)
    report = TrajectoryReport(dtype, steps, last, None, notes)
    if report.first is None or report.first[1] != "update":
        return report
    end = report.first[0]
    replay = Replay(theirs.start, theirs.gradients[:end], theirs.parameters[:end], ours.parameters[:end], moved)
    return dataclasses.replace(report, diagnosis=diagnose_update(replay, theirs.settings))


def _worst(
    names: Sequence[str], theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], allowed: float
) -> Entry:
    return max(_entries(names, theirs, ours, allowed), key=lambda entry: entry.error)


def _entries(
    names: Sequence[str], theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], allowed: float
) -> list[Entry]:
    scale = scales(theirs)
    found = []
    for name in names:
        e = error(ours[name], theirs[name], scale[name]) if name in ours else float("inf")
        found.append(Entry(name, theirs[name].shape, e, allowed))
    return found
