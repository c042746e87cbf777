"""The port debugger over some steps of training: where the two part, and why."""

import functools
import json
import re
from typing import Any

import jax
import jaxtyping
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import torch_ref.models
from jattn import models, parity, training
from parity_tests.nn import blank, randomised

rng = np.random.default_rng(0)
digits = [(rng.standard_normal((4, 8, 8)), rng.integers(0, 10, 4)) for _ in range(3)]
SMALL: dict[str, Any] = dict(features=16, num_layers=1, dropout_rate=0.0)


def cross_entropy(model: Any, batch: Any, rng: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()


def torch_cross_entropy(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(optimizer: Any, torch_optimizer: Any, loss: Any = cross_entropy, steps: int = 10) -> parity.TrajectoryReport:
    return parity.trajectory(
        randomised(torch_ref.models.DigitsClassifier(**SMALL)),
        blank(lambda: models.DigitsClassifier(**SMALL, rngs=nnx.Rngs(0))),
        digits,
        loss=loss,
        torch_loss=torch_cross_entropy,
        optimizer=optimizer,
        torch_optimizer=torch_optimizer,
        steps=steps,
    )


L2 = functools.partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1)


def test_equal_training() -> None:
    report = train(training.adam(1e-2, weight_decay=0.1), L2)
    report.assert_equal()
    assert len(report.steps) == 10
    assert report.steps[-1].torch_loss != report.steps[0].torch_loss
    assert json.loads(report.to_json())["equal"]
    assert "Equal: the losses of 10 steps" in str(report)


OPTIMISERS: dict[str, tuple[Any, Any, str | None]] = {
    "decoupled decay": (training.adamw(1e-2, weight_decay=0.1), L2, "weight decay: decoupled for L2"),
    "decay in the gradient": (
        training.adam(1e-2, weight_decay=0.1),
        functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
        "weight decay: decoupled for L2",
    ),
    "no decay": (optax.sgd(1e-2), functools.partial(torch.optim.SGD, lr=1e-2, weight_decay=0.1), "no weight decay"),
    "decay by default": (optax.adamw(1e-2), functools.partial(torch.optim.AdamW, lr=1e-2), "another weight decay"),
    "epsilon": (
        optax.adam(1e-2, eps=0.0, eps_root=1e-8),
        functools.partial(torch.optim.Adam, lr=1e-2),
        "Adam's epsilon under the root",
    ),
    "rate": (training.adam(2e-2), functools.partial(torch.optim.Adam, lr=1e-2), None),
}


@pytest.mark.parametrize(("ours", "theirs", "cause"), OPTIMISERS.values(), ids=OPTIMISERS.keys())
def test_another_optimiser(ours: Any, theirs: Any, cause: str | None) -> None:
    report = train(ours, theirs, steps=3)
    assert report.first == (1, "update")
    assert (report.diagnosis.cause if report.diagnosis else None) == cause
    with pytest.raises(AssertionError, match="They part at step 1, in the update"):
        report.assert_equal()


def test_a_schedule_that_starts_late() -> None:
    rate = optax.piecewise_constant_schedule(1e-2, {2: 0.5})
    report = train(training.adam(rate), functools.partial(torch.optim.Adam, lr=1e-2), steps=5)
    assert report.first == (3, "update")
    assert report.diagnosis is None


def test_another_loss() -> None:
    report = train(training.adam(1e-2), functools.partial(torch.optim.Adam, lr=1e-2), lambda *a: 2 * cross_entropy(*a))
    assert report.first == (1, "loss")


def test_wrong_use_is_an_error() -> None:
    linear, port = torch.nn.Linear(12, 3), nnx.Linear(12, 3, rngs=nnx.Rngs(0))
    options: Any = dict(
        loss=cross_entropy, torch_loss=torch_cross_entropy, optimizer=optax.sgd(1.0), torch_optimizer=L2
    )
    with pytest.raises(ValueError, match=r"dtype must be one of .+\. Got 'int8'\."):
        parity.trajectory(linear, port, digits, **options, steps=1, dtype="int8")
    with pytest.raises(ValueError, match=r"batches must be at least one\. Got 0\."):
        parity.trajectory(linear, port, [], **options, steps=1)
    with pytest.raises(ValueError, match=r"flax_module must be a flax\.nnx\.Module\. Got Linear"):
        parity.trajectory(linear, linear, digits, **options, steps=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(steps=0), "steps must be an integer in [1, inf). Got 0."),
        (dict(steps=2.5), "steps must be an integer in [1, inf). Got 2.5."),
        (dict(optimizer="adam"), "optimizer must be an optax GradientTransformation. Got 'adam'."),
        (
            dict(torch_optimizer=torch.optim.SGD([torch.ones(1)], lr=1.0)),
            "torch_optimizer must be a function from parameters to a torch.optim.Optimizer, as it trains a copy. "
            "Got SGD.",
        ),
        (dict(torch_optimizer=list), "as it trains a copy. Got the result list."),
        (
            dict(torch_loss=lambda model, x: model(x)),
            "torch_loss must give one floating-point number. Got shape (2, 3) in torch.float64. Take the mean",
        ),
        (
            dict(loss=lambda model, x, rng: model(x)),
            "loss must give one floating-point number. Got shape (2, 3) in float64. Take the mean",
        ),
        (dict(loss=lambda *_: None), "loss must give one floating-point number. Got NoneType."),
    ],
)
def test_wrong_steps_optimisers_and_losses_are_errors(
    wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whose checks users don't have
    options: dict[str, Any] = dict(
        loss=lambda model, x, rng: model(x).mean(),
        torch_loss=lambda model, x: model(x).mean(),
        optimizer=optax.sgd(1.0),
        torch_optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        steps=1,
    )
    linear, port = torch.nn.Linear(12, 3), nnx.Linear(12, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        parity.trajectory(linear, port, [np.ones((2, 12))], **{**options, **wrong})
