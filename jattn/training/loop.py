"""`fit`: train a Flax module on arrays."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jattn import checks
from jattn.training.checkpoints import Arrays, Checkpoints, to_arrays, with_arrays
from jattn.training.optimizers import clip_grad_norm
from jattn.training.schedules import PlateauState, ReduceLROnPlateau
from jattn.training.steps import Loss, Metric, Recipe, State, evaluate, learning_rate, run_steps, with_learning_rate


class NonFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


@dataclasses.dataclass
class History:
    """What happened in a run of `fit`.

    Attributes:
        step_losses: the loss of each step, before its update.
        learning_rates: the learning rate of each step; NaN where the optimiser's state does not tell.
        losses: each epoch's mean over its examples.
        validation_losses: after each epoch; empty without validation data.
        metrics: by name, the validation data's mean after each epoch.
        skipped: the steps that were skipped because something was not finite.
        best_epoch: the epoch, from 0, with the lowest validation loss (without validation data, the last one).
        stopped_early: whether patience ran out.
    """

    step_losses: np.ndarray
    learning_rates: np.ndarray
    losses: np.ndarray
    validation_losses: np.ndarray
    metrics: dict[str, np.ndarray]
    skipped: list[int]
    best_epoch: int
    stopped_early: bool


def fit(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree | None = None,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    metrics: Mapping[str, Metric] | None = None,
    clip_norm: float | None = None,
    plateau: ReduceLROnPlateau | None = None,
    patience: int | None = None,
    nonfinite: Literal["raise", "skip"] = "raise",
    wrt: Any = nnx.Param,
    checkpoints: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place; the steps of an epoch are one compiled scan.

    ``loss`` sees the model in training mode, with dropout on, and in eval mode on the validation data. Randomness comes
    from ``seed`` and the step's number alone, so the same call gives the same parameters, bit for bit, on the same
    machine. State that the model changes in itself (batch statistics, counters of a stateful rng) is threaded through.

    Args:
        model: holds its parameters; left in eval mode, with the last parameters, or the best ones if patience is given.
            An error or an interrupt leaves it with what had been learnt until then.
        train: arrays in any nest, a tuple or dict say, whose first axis counts the examples.
        validation: data of the same kind, to be evaluated after each epoch.
        loss: ``loss(model, batch, rng)``, one number, the mean over the batch, which is a nest like train. Hand rng on
            to the model, whose dropout needs it.
        optimizer: one of this package, or of optax. A later call with the same loss and optimiser objects, and a model
            and data of the same shapes, compiles nothing.
        epochs: how many times the data are seen.
        batch_size: examples a step. The last batch of an epoch may be smaller, which compiles the step once more.
        seed: of the order of the examples, and of rng.
        shuffle: whether each epoch has an order of its own.
        drop_last: leave out the last batch where it is smaller.
        metrics: by name, ``metric(model, batch)``, one number, the mean over a batch of the validation data.
        clip_norm: the largest norm of all gradients together, as in `clip_grad_norm`.
        plateau: lowers the learning rate when the validation loss (without validation data, the mean loss of the epoch)
            stops falling. The optimiser must keep its learning rate in its state, as those of this package and
            ``optax.inject_hyperparams`` do, and it must not be a schedule.
        patience: stop after this many epochs in a row without a lower validation loss, and restore the best parameters.
        nonfinite: what to do when a loss or gradient is NaN or infinite: ``"raise"`` an error that names the step,
            the parameters being those before it, or ``"skip"`` that step.
        wrt: which of the model's variables are trained, a Flax filter.
        checkpoints: a folder. Each epoch is saved there, and a run that was killed goes on from the last one when it is
            started again, to the same parameters, bit for bit. A damaged checkpoint is passed over, with a warning,
            for the one before.
        progress: whether to show a progress bar.

    Returns:
        The `History`.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a loss or gradient is not finite.
        CheckpointError: if the folder's checkpoints are all damaged, or of another run.

    Example:

        >>> from jattn.training import adam
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> def loss(model, batch, rng):
        ...     x, y = batch
        ...     return jnp.mean((model(x) - y) ** 2)
        >>> options = dict(loss=loss, optimizer=adam(0.1), batch_size=16, progress=False)
        >>> history = fit(model, (x, 3 * x + 1), epochs=50, **options)
        >>> print(f"{model.kernel[0, 0]:.3f} x + {model.bias[0]:.3f}")
        3.000 x + 1.000
    """
    if not isinstance(model, nnx.Module):
        raise ValueError(f"model must be a flax.nnx.Module. Got {type(model).__name__}.")
    data, n = _examples("train", train)
    validation_data, validation_n = (data, 0) if validation is None else _examples("validation", validation)
    nests: list[Any] = [jax.tree.structure(nest) for nest in (data, validation_data)]
    if nests[0] != nests[1]:
        raise ValueError(f"validation must be a nest like train's {nests[0]}. Got {nests[1]}.")
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if count is not None and not (checks.is_count(count) and count > 0):
            raise ValueError(f"{name} must be an integer of at least 1. Got {count!r}.")
    if not checks.is_count(seed):
        raise ValueError(f"seed must be an integer of at least 0. Got {seed!r}.")
    if drop_last and batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} examples when drop_last=True. Got {batch_size}.")
    if validation is None and (patience is not None or metrics):
        raise ValueError("validation must be given when patience or metrics are. Got None.")
    checks.one_of("nonfinite", nonfinite, ("raise", "skip"))
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax GradientTransformation. Got {optimizer!r:.80}.")
    optimizer = optimizer if clip_norm is None else _clipped(optimizer, clip_norm)
    metrics = dict(metrics or {})

    model.train()
    train_graph, parameters, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]
    model.eval()
    if not jax.tree.leaves(parameters):
        raise ValueError(f"wrt must select some of the model's variables. Got {wrt!r}, which selects none.")
    skip = nonfinite == "skip"
    recipe = Recipe(train_graph, nnx.graphdef(model), wrt, loss, tuple(metrics.values()), optimizer, skip)
    state = State(parameters, rest, optimizer.init(parameters), jnp.int32(0), jnp.bool_(False))
    run = _Run(_copy(state), patience, plateau, tuple(metrics))  # its arrays are donated, and the model's must live
    saved = None
    if checkpoints is not None:
        settings = dict(n=n, batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
        saved = Checkpoints(Path(checkpoints), settings)
        if found := saved.restore():
            run.resume(*found)

    rng = jax.random.key(seed)
    with Progress(*_COLUMNS, disable=not progress) as bar:
        task = bar.add_task("fit", total=epochs, completed=run.epoch, figures=run.figures())
        try:
            while run.epoch < epochs and not run.stopped_early:
                order = np.random.default_rng((seed, run.epoch)).permutation(n) if shuffle else np.arange(n)
                run.train(recipe, data, _batches(order, batch_size, drop_last), rng)
                if validation is not None:
                    run.validate(recipe, validation_data, _batches(np.arange(validation_n), batch_size), rng)
                run.lower_rate()
                run.epoch += 1
                if saved is not None:
                    saved.save(run.epoch, *run.contents())
                bar.update(task, advance=1, figures=run.figures())
        finally:
            nnx.update(model, *run.result())
    return run.history()


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[figures]}"),
    TimeElapsedColumn(),
)


class _Run:
    """A run between two epochs: all that must be known, and saved, to go on."""

    def __init__(
        self, state: State, patience: int | None, plateau: ReduceLROnPlateau | None, metrics: tuple[str, ...]
    ) -> None:
        self.state, self.patience, self.plateau, self.metrics = state, patience, plateau, metrics
        self.best = _copy(state[:2])
        self.best_loss = math.inf
        self.epoch = self.best_epoch = self.bad_epochs = 0
        self.plateau_state = PlateauState()
        if plateau is not None:
            _check_rate_can_be_set(state.opt_state)
        series = ("step_losses", "learning_rates", "losses", "validation_losses", "skipped")
        self.log: dict[str, list[float]] = {name: [] for name in (*series, *metrics)}

    @property
    def stopped_early(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad_epochs >= self.patience

    def train(self, recipe: Recipe, data: PyTree, orders: list[np.ndarray], rng: PRNGKeyArray) -> None:
        """An epoch's steps."""
        total, examples = 0.0, 0
        for order in orders:
            first = int(self.state.step)
            self.state, steps = run_steps(self.state, data, order, rng, recipe)
            losses, rates, finite = (np.asarray(x) for x in steps)
            if not recipe.skip and not finite.all():
                bad = int(np.argmin(finite))
                raise NonFiniteError(
                    f"loss and its gradient must be finite. Got loss {losses[bad]} at step {first + bad}, in epoch "
                    f"{self.epoch} (both counted from 0). The model has the parameters from before that step. "
                    'Lower the learning rate, clip the gradients (clip_norm), or pass nonfinite="skip".'
                )
            self.log["step_losses"] += losses.tolist()
            self.log["learning_rates"] += rates.tolist()
            self.log["skipped"] += (first + np.flatnonzero(~finite)).tolist()
            total += float(losses[finite].sum(dtype=np.float64)) * order.shape[1]
            examples += int(finite.sum()) * order.shape[1]
        self.log["losses"].append(total / examples if examples else math.nan)

    def validate(self, recipe: Recipe, data: PyTree, orders: list[np.ndarray], rng: PRNGKeyArray) -> None:
        """The validation data's loss and metrics, and whether the loss is the lowest so far."""
        means = [np.asarray(evaluate(self.state, data, order, rng, recipe)) for order in orders]
        loss, *values = np.average(means, axis=0, weights=[order.size for order in orders]).tolist()
        for name, value in zip(("validation_losses", *self.metrics), (loss, *values), strict=True):
            self.log[name].append(value)
        self.bad_epochs += 1
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.bad_epochs = loss, self.epoch, 0
            if self.patience is not None:
                self.best = _copy(self.state[:2])

    def lower_rate(self) -> None:
        """Let the plateau look at the epoch's loss."""
        if self.plateau is not None:
            loss = (self.log["validation_losses"] or self.log["losses"])[-1]
            before = float(learning_rate(self.state.opt_state))
            after, self.plateau_state = self.plateau.update(before, loss, self.plateau_state)
            if after != before:
                self.state = self.state._replace(opt_state=with_learning_rate(self.state.opt_state, after))

    def figures(self) -> str:
        """What the progress bar shows."""
        shown = {"loss": "losses", "validation": "validation_losses"} | {name: name for name in self.metrics}
        return "  ".join(f"{name} {self.log[series][-1]:.4g}" for name, series in shown.items() if self.log[series])

    def result(self) -> tuple[Any, ...]:
        """The variables that the model shall have."""
        return self.state[:2] if self.patience is None or not self.log["validation_losses"] else self.best

    def history(self) -> History:
        """What there is to tell."""
        log = {name: np.array(values, np.float64) for name, values in self.log.items()}
        return History(
            step_losses=log["step_losses"],
            learning_rates=log["learning_rates"],
            losses=log["losses"],
            validation_losses=log["validation_losses"],
            metrics={name: log[name] for name in self.metrics},
            skipped=[int(step) for step in self.log["skipped"]],
            best_epoch=self.best_epoch if self.log["validation_losses"] else self.epoch - 1,
            stopped_early=self.stopped_early,
        )

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """What a checkpoint holds."""
        arrays = {
            "state": to_arrays(self.state),
            "best": to_arrays(self.best),
            "log": {name: np.array(values, np.float64) for name, values in self.log.items()},
        }
        return arrays, {name: getattr(self, name) for name in _NUMBERS}

    def resume(self, arrays: Arrays, numbers: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        self.state, self.best = with_arrays(self.state, arrays["state"]), with_arrays(self.best, arrays["best"])
        self.log = {name: arrays["log"].get(name, np.array([])).tolist() for name in self.log}
        for name in _NUMBERS:
            setattr(self, name, numbers[name])
        self.plateau_state = PlateauState(*self.plateau_state)


_NUMBERS = ("epoch", "best_epoch", "bad_epochs", "best_loss", "plateau_state")


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _examples(name: str, data: PyTree) -> tuple[PyTree, int]:
    """The arrays on the device, and how many examples they hold."""
    data = jax.tree.map(functools.partial(checks.array, name), data)
    shapes = [x.shape for x in jax.tree.leaves(data)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise ValueError(
            f"{name} must be arrays whose first axis counts the same examples, at least one. Got shapes {shapes}."
        )
    return data, shapes[0][0]


def _batches(order: np.ndarray, batch_size: int, drop_last: bool = False) -> list[np.ndarray]:
    """The order's full batches, "n b", and what is left over, "1 b"."""
    full = len(order) // batch_size * batch_size
    parts = [order[:full].reshape(-1, batch_size), order[None, full:]]
    return [part for part in parts[: 1 if drop_last else 2] if part.size]


@functools.lru_cache(maxsize=64)
def _clipped(optimizer: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """One object for equal arguments, so that a second run compiles nothing."""
    return optax.chain(clip_grad_norm(clip_norm), optimizer)


def _check_rate_can_be_set(opt_state: Any) -> None:
    if jnp.isnan(learning_rate(opt_state)):
        raise ValueError(
            "optimizer must keep its learning rate in its state when plateau is given. Got one that does not. "
            "Take it from jattn.training, or wrap it in optax.inject_hyperparams."
        )
    if optax.tree.get_all_with_path(opt_state, "hyperparams_states") and any(
        jax.tree.leaves(states) for _, states in optax.tree.get_all_with_path(opt_state, "hyperparams_states")
    ):
        raise ValueError(
            "optimizer must have a number as its learning rate when plateau is given. Got a schedule, which would "
            "overwrite it."
        )
