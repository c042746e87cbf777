"""Each schedule against torch.optim.lr_scheduler: the learning rate, and momentum, of each of 200 steps."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from jattn import training
from parity_tests.tolerances import FLOAT64

STEPS = 200
CASES: dict[str, tuple[Any, Callable[[torch.optim.Optimizer], Any]]] = {
    "step": (training.step_lr(0.5, 30, 0.3), lambda o: lr_scheduler.StepLR(o, 30, 0.3)),
    "multi-step": (
        training.multi_step_lr(0.5, [120, 30, 30, 80], 0.3),
        lambda o: lr_scheduler.MultiStepLR(o, [30, 30, 80, 120], 0.3),
    ),
    "exponential": (training.exponential_lr(0.5, 0.97), lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "cosine": (training.cosine_annealing_lr(0.5, 200, 0.01), lambda o: lr_scheduler.CosineAnnealingLR(o, 200, 0.01)),
    "cosine, several": (training.cosine_annealing_lr(0.5, 33), lambda o: lr_scheduler.CosineAnnealingLR(o, 33)),
    "one cycle": (training.one_cycle_lr(0.5, 200), lambda o: lr_scheduler.OneCycleLR(o, 0.5, 200)),
    "one cycle, not on a step": (
        training.one_cycle_lr(0.5, 201, pct_start=0.123, div_factor=10.0, final_div_factor=100.0),
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, 201, pct_start=0.123, div_factor=10.0, final_div_factor=100.0),
    ),
    "one cycle, no way up": (
        training.one_cycle_lr(0.5, 200, pct_start=0.001),
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, 200, pct_start=0.001),
    ),
    "by epoch": (
        training.per_epoch(training.exponential_lr(0.5, 0.9), 7),
        lambda o: lr_scheduler.LambdaLR(o, lambda count: 0.9 ** (count // 7)),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.every_case
def test_learning_rates(name: str) -> None:
    ours, make = CASES[name]
    theirs = run_torch(make, lambda group: group["lr"])
    # PyTorch multiplies the last rate on; near a cosine's zero, an absolute error of rounding is what it leaves.
    np.testing.assert_allclose(run_jax(ours), theirs, rtol=FLOAT64, atol=1e-12)


def test_momentum_of_one_cycle() -> None:
    theirs = run_torch(lambda o: lr_scheduler.OneCycleLR(o, 0.5, 200), lambda group: group["betas"][0])
    np.testing.assert_allclose(run_jax(training.one_cycle_momentum(200)), theirs, rtol=FLOAT64)


def run_torch(make: Callable[[torch.optim.Optimizer], Any], read: Callable[[Any], float]) -> list[float]:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(read(optimizer.param_groups[0]))
        optimizer.step()
        scheduler.step()
    return rates


def run_jax(schedule: Callable[[Any], Any]) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(STEPS, dtype=jnp.int32)))  # as optax counts


rng = np.random.default_rng(0)
LOSSES = {
    "noisy": 1 / np.arange(1, STEPS + 1) + 0.02 * rng.standard_normal(STEPS),
    "flat": np.full(STEPS, 0.7),
    "by less than the threshold": 1 - 1e-6 * np.arange(STEPS),
    "up and down": np.sin(np.arange(STEPS) / 9),
    "not a number": np.where(np.arange(STEPS) % 9 > 4, math.nan, 1 / np.arange(1, STEPS + 1)),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 0.5, "patience": 2},
        {"factor": 0.5, "patience": 3, "cooldown": 4},
        {"factor": 0.3, "patience": 0, "min_lr": 1e-3},
        {"factor": 0.5, "patience": 1, "threshold": 0.1},
        {"factor": 0.5, "patience": 1, "threshold": 0.01, "threshold_mode": "abs"},
        {"factor": 0.5, "patience": 1, "eps": 1e-2},
    ],
    ids=str,
)
@pytest.mark.parametrize("losses", LOSSES)
def test_plateau(losses: str, options: dict[str, Any]) -> None:
    theirs = plateau_of_torch(LOSSES[losses].tolist(), options)
    plateau = training.ReduceLROnPlateau(**options)
    rate, state, ours = 0.5, training.PlateauState(), []
    for loss in LOSSES[losses].tolist():
        rate, state = plateau.update(rate, loss, state)
        ours.append(rate)
    assert ours == theirs
    if options:
        assert ours[-1] < 0.5  # something was reduced, or this compares nothing


def plateau_of_torch(losses: Sequence[float], options: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, rates = lr_scheduler.ReduceLROnPlateau(optimizer, **options), []
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates
