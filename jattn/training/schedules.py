"""Learning rates over time that mean what PyTorch's schedulers of the same name mean.

A schedule is a function of the number of updates made so far; give it to an optimiser in place of a number. Most
PyTorch loops step their scheduler once an epoch: `per_epoch` does that to any schedule.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jattn._engine import checks
from jattn.training.optimizers import Schedule

__all__ = [
    "PlateauState",
    "ReduceLROnPlateau",
    "cosine_annealing_lr",
    "exponential_lr",
    "multi_step_lr",
    "one_cycle_lr",
    "one_cycle_momentum",
    "per_epoch",
    "step_lr",
]


def step_lr(learning_rate: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiplied by gamma every ``step_size`` steps, as ``StepLR``.

    Example:

        >>> [round(float(step_lr(1.0, 2)(count)), 3) for count in range(5)]
        [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    checks.number("step_size", step_size, "[1, inf)", integer=True)
    return per_epoch(exponential_lr(learning_rate, gamma), step_size)


def multi_step_lr(learning_rate: float, milestones: Sequence[int] | np.ndarray, gamma: float = 0.1) -> Schedule:
    """Multiplied by gamma at each milestone, twice where it is listed twice, as ``MultiStepLR``.

    Example:

        >>> [round(float(multi_step_lr(1.0, [1, 3])(count)), 3) for count in range(5)]
        [1.0, 0.1, 0.1, 0.01, 0.01]
    """
    steps = np.asarray(milestones)
    if steps.ndim != 1 or (steps.size and (steps.dtype.kind not in "iu" or steps.min() < 0)):
        raise ValueError(f"milestones must be a sequence of integers of at least 0. Got {milestones!r:.80}.")
    factors = {step: gamma ** steps.tolist().count(step) for step in steps.tolist()}
    return _of_float(optax.piecewise_constant_schedule(learning_rate, factors))


def exponential_lr(learning_rate: float, gamma: float) -> Schedule:
    """Multiplied by gamma at each step, as ``ExponentialLR``.

    Example:

        >>> [round(float(exponential_lr(1.0, 0.5)(count)), 3) for count in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    return _of_float(lambda count: learning_rate * gamma**count)


def cosine_annealing_lr(learning_rate: float, t_max: int, eta_min: float = 0.0) -> Schedule:
    """Half a cosine down to eta_min at ``t_max``, and up again after it, as ``CosineAnnealingLR``.

    ``eta_min + (learning_rate - eta_min) (1 + cos(pi count / t_max)) / 2``. ``optax.cosine_decay_schedule`` stays down.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.

    Example:

        >>> [round(float(cosine_annealing_lr(1.0, 2)(count)), 3) for count in range(5)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """
    checks.number("t_max", t_max, "[1, inf)", integer=True)
    return _of_float(lambda count: eta_min + (learning_rate - eta_min) * (1 + jnp.cos(math.pi * count / t_max)) / 2)


def one_cycle_lr(
    max_lr: float, total_steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Up a cosine from ``max_lr / div_factor``, then down to that ``/ final_div_factor``, as ``OneCycleLR``.

    The top is at ``pct_start * total_steps - 1`` and the end at ``total_steps - 1``, where PyTorch has them;
    ``optax.cosine_onecycle_schedule`` has them a step later. After the end the rate stays. PyTorch also cycles the
    momentum, unless told not to: give the optimiser `one_cycle_momentum` as ``b1`` or ``momentum``.

    Source: Smith and Topin, Super-Convergence, 2018.

    Example:

        >>> [round(float(one_cycle_lr(1.0, 10)(count)), 3) for count in range(10)]
        [0.04, 0.52, 1.0, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0.0]
    """
    checks.number("max_lr", max_lr)
    low = max_lr / checks.number("div_factor", div_factor, "(0, inf)")
    checks.number("final_div_factor", final_div_factor, "(0, inf)")
    return _one_cycle(low, max_lr, low / final_div_factor, total_steps, pct_start)


def one_cycle_momentum(
    total_steps: int, pct_start: float = 0.3, base_momentum: float = 0.85, max_momentum: float = 0.95
) -> Schedule:
    """The momentum that goes with `one_cycle_lr`: down from ``max_momentum`` and up again.

    Example:

        >>> from jattn.training import adam
        >>> optimizer = adam(one_cycle_lr(1.0, 10), b1=one_cycle_momentum(10))
        >>> [round(float(one_cycle_momentum(10)(count)), 3) for count in range(4)]
        [0.95, 0.9, 0.85, 0.855]
    """
    return _one_cycle(max_momentum, base_momentum, max_momentum, total_steps, pct_start)


def _one_cycle(start: float, middle: float, end: float, total_steps: int, pct_start: float) -> Schedule:
    checks.number("total_steps", total_steps, "[1, inf)", integer=True)
    checks.number("pct_start", pct_start, "[0, 1]")
    top = pct_start * total_steps - 1
    if top == 0:
        raise ValueError(
            "pct_start must leave a step before the top, so pct_start * total_steps must not be 1. "
            f"Got {pct_start} and {total_steps}."
        )

    def cosine(start: float, end: float, share: Any) -> Any:
        return end + (start - end) / 2 * (1 + jnp.cos(math.pi * share))

    def schedule(count: Any) -> Any:
        down = cosine(middle, end, jnp.minimum((count - top) / (total_steps - 1 - top), 1.0))
        return jnp.where(count <= top, cosine(start, middle, count / top), down)

    return _of_float(schedule)


def _of_float(schedule: Schedule) -> Schedule:
    """Optax counts in int32, whose quotients would be float32 even where float64 is on."""
    return lambda count: schedule(jnp.asarray(count, float))


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """A schedule over epochs: what ``schedule`` says after ``count // steps_per_epoch`` steps.

    Example:

        >>> [round(float(per_epoch(exponential_lr(1.0, 0.5), 2)(count)), 3) for count in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if not callable(schedule):
        raise ValueError(f"schedule must be a function of the number of steps. Got {schedule!r:.80}.")
    checks.number("steps_per_epoch", steps_per_epoch, "[1, inf)", integer=True)
    return lambda count: schedule(count // steps_per_epoch)  # of integers: XLA's quotient of floats may fall short


class PlateauState(NamedTuple):
    """What `ReduceLROnPlateau` remembers; to begin with, nothing."""

    best: float = math.inf
    bad_epochs: int = 0
    cooldown: int = 0


@dataclasses.dataclass(frozen=True)
class ReduceLROnPlateau:
    """Lowers the learning rate when the loss has stopped falling, with the meaning and defaults of PyTorch's.

    Give it to `jattn.training.fit` as ``plateau``. Once more than ``patience`` epochs in a row were no better than the
    best one, the rate is multiplied by factor. ``optax.contrib.reduce_on_plateau`` counts differently.

    Args:
        factor: what the rate is multiplied by, in (0, 1).
        patience: how many epochs without improvement are borne.
        threshold: by how much an improvement must be better.
        threshold_mode: ``"rel"``, better than ``best * (1 - threshold)``, or ``"abs"``, than ``best - threshold``.
        cooldown: for how many epochs after a reduction nothing is counted.
        min_lr: the rate never goes below this.
        eps: a reduction by no more than this is not made.

    Raises:
        ValueError: if factor or threshold_mode is none of these, or a number is negative.

    Example:

        >>> plateau, rate = ReduceLROnPlateau(factor=0.5, patience=1), 1.0
        >>> state = PlateauState()
        >>> for loss in [3.0, 2.0, 2.0, 2.0]:
        ...     rate, state = plateau.update(rate, loss, state)
        >>> rate
        0.5
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        checks.one_of("threshold_mode", self.threshold_mode, ("rel", "abs"))
        checks.number("factor", self.factor, "(0, 1)")
        for name in ("threshold", "min_lr", "eps"):
            checks.number(name, getattr(self, name))
        for name in ("patience", "cooldown"):
            checks.number(name, getattr(self, name), integer=True)

    def update(self, learning_rate: float, loss: float, state: PlateauState) -> tuple[float, PlateauState]:
        """The learning rate after an epoch that ended with this loss, and the state."""
        best, bad_epochs, cooldown = state
        limit = best * (1 - self.threshold) if self.threshold_mode == "rel" else best - self.threshold
        best, bad_epochs = (loss, 0) if loss < limit else (best, bad_epochs + 1)
        if cooldown > 0:
            bad_epochs, cooldown = 0, cooldown - 1
        if bad_epochs > self.patience:
            bad_epochs, cooldown = 0, self.cooldown
            lower = max(learning_rate * self.factor, self.min_lr)
            learning_rate = lower if learning_rate - lower > self.eps else learning_rate
        return learning_rate, PlateauState(best, bad_epochs, cooldown)
