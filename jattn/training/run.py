"""A run of `jattn.training.fit`: what it has done so far, and what it tells in the end."""

import dataclasses
import math
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from jattn.training.checkpoints import SavedArrays, numbered_leaves, with_leaves
from jattn.training.schedules import PlateauState
from jattn.training.settings import Settings
from jattn.training.steps import Recipe, State, evaluate, learning_rates, run_steps, with_learning_rate

__all__ = ["History", "NonFiniteError", "Run"]


class NonFiniteError(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


@dataclasses.dataclass(eq=False)
class History:
    """What happened in a run of `fit`.

    Attributes:
        step_losses: the loss of each step, before its update.
        learning_rates: the learning rate of each step; NaN where the optimiser's state does not tell.
        losses: each epoch's mean over its examples.
        validation_losses: after each epoch; empty without validation data.
        metrics: by name, the validation data's mean after each epoch.
        skipped_steps: those that were skipped because something was not finite.
        best_epoch: the epoch, from 0, with the lowest validation loss; the last one if there is none.
        stopped_early: whether patience ran out.
    """

    step_losses: np.ndarray
    learning_rates: np.ndarray
    losses: np.ndarray
    validation_losses: np.ndarray
    metrics: dict[str, np.ndarray]
    skipped_steps: list[int]
    best_epoch: int
    stopped_early: bool


class Run:
    """A run between two epochs: all that must be known, and saved, to go on."""

    def __init__(self, state: State, recipe: Recipe, settings: Settings) -> None:
        self.state, self.recipe = state, recipe
        self.patience, self.plateau = settings.patience, settings.plateau
        self.best: tuple[Any, Any] | None = None  # variables, kept if patience is given
        self.best_loss = math.inf
        self.epoch = self.bad_epochs = 0
        self.best_epoch: int | None = None
        self.plateau_state = PlateauState()
        if self.plateau is not None:
            _check_rate_can_be_set(state.opt_state)
        series = ("step_losses", "learning_rates", "losses", "validation_losses", "skipped_steps")
        self.log: dict[str, list[float]] = {name: [] for name in series}
        self.metrics: dict[str, list[float]] = {name: [] for name, _ in recipe.metrics}

    @property
    def stopped_early(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad_epochs >= self.patience

    def train(self, data: PyTree, orders: list[Array], rng: PRNGKeyArray) -> None:
        """Take an epoch's steps."""
        state, total, examples = self.state, 0.0, 0
        for order in orders:
            first = int(state.step)
            state, steps = run_steps(state, data, order, rng, self.recipe)
            losses, finite = np.asarray(steps.loss), np.asarray(steps.finite)  # an error shows here at the latest
            if not self.recipe.skip and not finite.all():
                self.state = state
                bad = int(np.argmin(finite))
                loss = f"loss {losses[bad]:.6g}"
                fact = f"a gradient that is not, of {loss}," if np.isfinite(losses[bad]) else loss
                kept = "the best parameters so far" if self.best else "the parameters from before that step"
                raise NonFiniteError(
                    f"loss and its gradient must be finite. Got {fact} at step {first + bad}, in epoch "
                    f"{self.epoch} (both counted from 0). The model has {kept}. "
                    'Lower the learning rate, clip the gradients (clip_norm), or pass nonfinite="skip".'
                )
            self.log["step_losses"] += losses.tolist()
            rates = np.full(len(losses), np.nan) if steps.learning_rate is None else np.asarray(steps.learning_rate)
            self.log["learning_rates"] += rates.tolist()
            self.log["skipped_steps"] += (first + np.flatnonzero(~finite)).tolist()
            total += float(losses[finite].sum(dtype=np.float64)) * order.shape[1]
            examples += int(finite.sum()) * order.shape[1]
        self.state = state
        self.log["losses"].append(total / examples if examples else math.nan)

    def validate(self, data: PyTree, orders: list[Array], rng: PRNGKeyArray) -> None:
        """Take the validation data's loss and metrics, and note whether the loss is the lowest so far."""
        means = [np.asarray(evaluate(self.state.variables, data, order, rng, self.recipe)) for order in orders]
        loss, *values = np.average(means, axis=0, weights=[order.size for order in orders]).tolist()
        self.log["validation_losses"].append(loss)
        for series, value in zip(self.metrics.values(), values, strict=True):
            series.append(value)
        self.bad_epochs += 1
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.bad_epochs = loss, self.epoch, 0
            if self.patience is not None:
                self.best = self.state.variables

    def lower_rate(self) -> None:
        """Let the plateau look at the epoch's loss."""
        if self.plateau is not None:
            loss = (self.log["validation_losses"] or self.log["losses"])[-1]
            before = float(learning_rates(self.state.opt_state)[0])
            after, self.plateau_state = self.plateau.update(before, loss, self.plateau_state)
            if after != before:
                state = self.state._replace(opt_state=with_learning_rate(self.state.opt_state, after))
                self.state = self.recipe.placement.put(state)

    def figures(self) -> str:
        """What the progress bar shows."""
        shown = {"loss": self.log["losses"], "validation loss": self.log["validation_losses"]}
        pairs = [*shown.items(), *self.metrics.items()]
        return "  ".join(f"{name} {series[-1]:.4g}" for name, series in pairs if series)

    def variables(self) -> tuple[Any, Any]:
        """Those that the model shall have: the best if patience is given and some were the best, else the last."""
        return self.best or self.state.variables

    def history(self) -> History:
        """The log as arrays."""
        log = {name: np.array(series, np.float64) for name, series in self.log.items()}
        return History(
            step_losses=log["step_losses"],
            learning_rates=log["learning_rates"],
            losses=log["losses"],
            validation_losses=log["validation_losses"],
            metrics={name: np.array(series, np.float64) for name, series in self.metrics.items()},
            skipped_steps=[int(step) for step in self.log["skipped_steps"]],
            best_epoch=self.epoch - 1 if self.best_epoch is None else self.best_epoch,
            stopped_early=self.stopped_early,
        )

    def contents(self) -> tuple[SavedArrays, dict[str, Any]]:
        """What a checkpoint holds."""
        arrays = {
            "state": numbered_leaves(self.state),
            "best": numbered_leaves(self.best),
            "log": {name: np.array(series, np.float64) for name, series in self.log.items()},
            "metrics": {str(i): np.array(series, np.float64) for i, series in enumerate(self.metrics.values())},
        }
        return arrays, {name: getattr(self, name) for name in _NUMBERS}

    def resume(self, arrays: SavedArrays, numbers: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds."""
        put = self.recipe.placement.put
        self.state = put(with_leaves(self.state, arrays["state"]))
        if "best" in arrays:
            self.best = put(with_leaves(self.state.variables, arrays["best"]))
        self.log = {name: arrays["log"].get(name, np.array([])).tolist() for name in self.log}
        self.metrics = {name: arrays["metrics"][str(i)].tolist() for i, name in enumerate(self.metrics)}
        for name in _NUMBERS:
            setattr(self, name, numbers[name])
        self.plateau_state = PlateauState(*self.plateau_state)


_NUMBERS = ("epoch", "best_epoch", "bad_epochs", "best_loss", "plateau_state")


def _check_rate_can_be_set(opt_state: Any) -> None:
    rates = learning_rates(opt_state)
    if len(rates) != 1:
        raise ValueError(
            "optimizer must keep one learning rate in its state when plateau is given. Got one that keeps "
            f"{'several' if rates else 'none'}. Take it from jattn.training, or wrap it in optax.inject_hyperparams."
        )
    schedules = optax.tree.get_all_with_path(opt_state, "hyperparams_states")
    if any("learning_rate" in by_name for _, by_name in schedules):
        raise ValueError(
            "optimizer must have a number as its learning rate when plateau is given. Got a schedule, which would "
            "overwrite it."
        )
