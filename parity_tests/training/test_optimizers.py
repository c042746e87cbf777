"""Each optimiser against torch.optim: the parameters after every one of 200 steps, given the same gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jattn import training
from parity_tests.tolerances import FLOAT64

STEPS = 200
rng = np.random.default_rng(0)
START = {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
# Most norms are above 1, some below, so that clipping now acts and now does not; one gradient is zero.
GRADIENTS = {
    name: rng.standard_normal((STEPS, *x.shape)) * rng.random((STEPS,) + (1,) * x.ndim) for name, x in START.items()
}
for gradients in GRADIENTS.values():
    gradients[5] = 0

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
CASES: dict[str, tuple[optax.GradientTransformation, Make]] = {
    "adam": (training.adam(0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam, L2": (training.adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
    "adam, other moments": (
        training.adam(0.01, b1=0.8, b2=0.9, eps=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-3),
    ),
    "adamw": (training.adamw(0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
    "adamw, more decay": (
        training.adamw(0.01, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    ),
    "sgd": (training.sgd(0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    "sgd, momentum": (training.sgd(0.01, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "sgd, Nesterov": (
        training.sgd(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.every_case
def test_parameters(name: str, clip_norm: float | None) -> None:
    ours, make = CASES[name]
    theirs = run_torch(make, clip_norm)
    for key, parameters in run_jax(ours, clip_norm).items():
        np.testing.assert_allclose(parameters, theirs[key], rtol=FLOAT64, atol=FLOAT64, err_msg=key)


def run_torch(make: Make, clip_norm: float | None) -> dict[str, np.ndarray]:
    parameters = {name: torch.tensor(x, requires_grad=True) for name, x in START.items()}
    optimizer = make(list(parameters.values()))
    after: dict[str, list[np.ndarray]] = {name: [] for name in START}
    for i in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(GRADIENTS[name][i])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
        optimizer.step()
        for name, parameter in parameters.items():
            after[name].append(parameter.detach().numpy().copy())
    return {name: np.stack(x) for name, x in after.items()}


def run_jax(optimizer: optax.GradientTransformation, clip_norm: float | None) -> dict[str, np.ndarray]:
    if clip_norm is not None:
        optimizer = optax.chain(training.clip_grad_norm(clip_norm), optimizer)

    def step(carry: Any, gradients: Any) -> Any:
        parameters, state = carry
        updates, state = optimizer.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters, state), parameters

    with jax.enable_x64(True):
        start = jax.tree.map(jnp.asarray, START)
        _, after = jax.lax.scan(step, (start, optimizer.init(start)), jax.tree.map(jnp.asarray, GRADIENTS))
        return {name: np.asarray(x) for name, x in after.items()}
