"""Whole training runs: the loss at every step and all parameters at the end, 200 steps in float64, 20 in float32."""

import numpy as np
import pytest

from parity_tests import tolerances
from parity_tests.compare import Comparison
from parity_tests.training.trajectories import BATCHES, CASES, EPOCHS, Trajectory, initial_state, run_jax, run_torch


@pytest.mark.parametrize("name", CASES)
def test_float64(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    state = initial_state(case, "float64")
    theirs = run_torch(case, state, "float64", EPOCHS)
    ours = run_jax(case, state, "float64", EPOCHS)
    assert len(ours.step_losses) == EPOCHS * BATCHES == 200
    assert theirs.step_losses[-BATCHES:].mean() < theirs.step_losses[:BATCHES].mean()  # something is learnt
    np.testing.assert_allclose(ours.learning_rates, theirs.learning_rates, rtol=1e-12)
    record(request, name, "float64", errors(ours, theirs), (0.0, 0.0))


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    state = initial_state(case, "float32")
    truth = run_torch(case, {name: x.double() for name, x in state.items()}, "float64", 2)
    theirs, ours = run_torch(case, state, "float32", 2), run_jax(case, state, "float32", 2)
    assert len(ours.step_losses) == 2 * BATCHES == 20
    # Adam divides a gradient by its own size, so it makes what is only rounding in one as large as a step: the
    # parameters are compared as one vector.
    record(request, name, "float32", together(ours, truth), together(theirs, truth))


def errors(ours: Trajectory, truth: Trajectory) -> tuple[float, float]:
    """Of the losses, each relative to itself, and of the parameters, each array relative to its largest entry."""
    largest = {name: np.abs(x).max() for name, x in truth.parameters.items()}
    most = max(largest.values())
    largest = {name: most if name.endswith(tolerances.NO_GRADIENT) else x for name, x in largest.items()}
    assert ours.parameters.keys() == truth.parameters.keys()
    parameters = [np.abs(ours.parameters[name] - x).max() / largest[name] for name, x in truth.parameters.items()]
    return loss_error(ours, truth), float(max(parameters))  # NumPy's number does not travel between processes


def together(ours: Trajectory, truth: Trajectory) -> tuple[float, float]:
    """Of the losses, and of all parameters that have a gradient as one vector."""
    names = [name for name in truth.parameters if not name.endswith(tolerances.NO_GRADIENT)]
    difference = sum(((ours.parameters[name] - truth.parameters[name]) ** 2).sum() for name in names)
    length = sum((truth.parameters[name] ** 2).sum() for name in names)
    return loss_error(ours, truth), float(np.sqrt(difference / length))


def loss_error(ours: Trajectory, truth: Trajectory) -> float:
    return float(np.abs(ours.step_losses / truth.step_losses - 1).max())


def record(
    request: pytest.FixtureRequest, name: str, dtype: str, error: tuple[float, float], reference: tuple[float, float]
) -> None:
    """Into the table, under the project's one rule."""
    pair = f"training {name}"
    allowed = [tolerances.limit(pair, dtype, own) for own in reference]
    kinds = ("losses", "parameters")
    problems = [f"{kind}: {e:.2e} > {a:.2e}" for kind, e, a in zip(kinds, error, allowed, strict=True) if not e <= a]
    request.node.user_properties.append(("parity", tuple(Comparison(pair, dtype, *error, *reference, problems))))
    assert not problems, problems
