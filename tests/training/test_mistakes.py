"""What `jattn.training` says to mistakes, before anything is trained."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn import training
from tests.training.test_fit import Linear, X, Y, fit, squared_error

pytestmark = pytest.mark.every_case  # errors come before anything is compiled


def sowing(model, batch, rng):
    model.sow(nnx.Intermediate, "seen", batch[0])
    return squared_error(model, batch, rng)


class WithCounter(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.counter = nnx.Param(jnp.int32(0))


@dataclasses.dataclass
class Unhashable:
    scale: float = 1.0

    def __call__(self, *args):
        return squared_error(*args)


class Tensor:
    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise RuntimeError("It requires grad.\nMore about it.")


BOTH = {"train": (X, Y), "validation": (X, Y)}
OUTSIDE = Linear()
PLATEAU = training.ReduceLROnPlateau()
TWO_RATES = optax.multi_transform(
    {"kernel": training.adam(1e-3), "bias": training.sgd(1e-3)},
    lambda parameters: jax.tree.map(lambda x: "kernel" if x.ndim > 1 else "bias", parameters),
)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, r"model must be a flax.nnx.Module. Got int"),
        ({"train": (X, Y[:5])}, r"the same .* Got train\[0\] of shape \(22, 3\) and train\[1\] of shape \(5,\)"),
        ({"train": (X[:0], Y[:0])}, "train must be arrays .* at least one"),
        ({"train": (X, 3.0)}, "train must be arrays"),
        ({"train": ()}, "train must be arrays .* Got no array"),
        (
            {"train": list(zip(X, Y, strict=True)) * 100},
            r"train must be arrays .* train\[0\]\[1\] of shape \(\). Pass arr",
        ),
        ({"train": (X, ["a"] * 22)}, r"train\[1\]\[0\] must be an array of numbers. Got str: its dtype is <U1. Pass"),
        (
            {"train": (X, np.full(22, None))},
            r"train\[1\] must be an array of numbers. Got ndarray: its dtype is object",
        ),
        ({"train": (Tensor(), Y)}, r"train\[0\] must .* Got Tensor: It requires grad\.\. Pass .* tensor.detach\(\)"),
        ({"train": {"y": np.full(22, 2**40)}}, r"train\['y'\] must fit int32, .* int64. Got 1099511627776. .*x64"),
        ({"train": (X, np.full(22, 1e300))}, r"train\[1\] must fit float32, which JAX makes of float64. Got 1e\+300"),
        ({**BOTH, "validation": (X, -np.full(22, 2**40))}, r"validation\[1\] must fit int32"),
        ({**BOTH, "validation": [(X, Y)] * 1000}, "validation must be a nest like train's"),
        ({"validation": X}, "validation must be a nest like train's .* Got"),
        ({"epochs": 0}, r"epochs must be an integer in \[1, inf\). Got 0"),
        ({"epochs": None}, "epochs must be an integer in .* Got None"),
        ({"batch_size": 2.5}, r"batch_size must be an integer in \[1, inf\). Got 2.5"),
        ({"batch_size": None}, "batch_size must be an integer in .* Got None"),
        ({"batch_size": 23, "drop_last": True}, "batch_size must be at most the 22 examples when drop_last=True"),
        ({"seed": -1}, r"seed must be an integer in \[0, 4294967296\). Got -1"),
        ({"seed": 2**70}, r"seed must be an integer in \[0, 4294967296\). Got 1180"),
        ({"shuffle": None}, "shuffle must be True or False. Got None"),
        ({"drop_last": "false"}, "drop_last must be True or False. Got 'false'"),
        ({"progress": "no"}, "progress must be True or False. Got 'no'"),
        ({"plateau": 0.1}, "plateau must be a ReduceLROnPlateau. Got 0.1"),
        ({"plateau": training.ReduceLROnPlateau}, "plateau must be a ReduceLROnPlateau. Got <class"),
        ({"checkpoints": 5}, "checkpoints must be the path of a folder. Got 5"),
        ({"checkpoints": ""}, "checkpoints must be the path of a folder. Got ''"),
        ({"patience": 3}, "validation must be given when patience or metrics are"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of 'raise', 'skip'. Got 'ignore'"),
        ({"optimizer": 1e-3}, "optimizer must be an optax GradientTransformation. Got 0.001"),
        ({"clip_norm": 0.0}, r"clip_norm must be a number in \(0, inf\). Got 0.0"),
        ({"clip_norm": "1"}, "clip_norm must be a number in .* Got '1'"),
        ({"clip_norm": [1.0]}, r"clip_norm must be a number in .* Got \[1.0\]"),
        ({"wrt": 3}, "wrt must be a Flax filter, such as nnx.Param. Got 3"),
        ({"model": WithCounter()}, "wrt must select variables that are floating point. Got counter of int32"),
        ({"wrt": nnx.BatchStat}, "wrt must select some of the model's variables"),
        ({"loss": lambda m, batch, rng: (m(batch[0]) - batch[1]) ** 2}, r"loss must return one number.* shape \(8,\)"),
        ({"loss": "mse"}, "loss must be a function of model, batch, rng. Got 'mse'"),
        (
            {"loss": lambda m, batch: 0.0},
            r"loss must be a function of model, batch, rng. Got a function of \(m, batch\)",
        ),
        ({"loss": Unhashable()}, "loss must be hashable. Got Unhashable, which is not. .* eq=False"),
        (
            {"loss": lambda m, batch, rng: squared_error(OUTSIDE, batch, rng)},
            "loss must depend on the parameters that wrt selects. Got one that does not. .* not with the one outside",
        ),
        ({"loss": lambda m, batch, rng: None}, "loss must return one number.* Got NoneType"),
        ({"loss": sowing}, "loss must not add variables to the model, as sow does"),
        (
            {"plateau": PLATEAU, "optimizer": optax.adam(1e-3)},
            "optimizer must keep one learning rate in its state when plateau is given. Got one that keeps none",
        ),
        ({"plateau": PLATEAU, "optimizer": TWO_RATES}, "optimizer must keep one .* Got one that keeps several"),
        (
            {"plateau": PLATEAU, "optimizer": training.adam(training.step_lr(1e-3, 10))},
            "optimizer must have a number as its learning rate when plateau is given. Got a schedule",
        ),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    arguments = {"model": Linear(), **changes}
    with pytest.raises(ValueError, match=message):
        fit(arguments.pop("model"), arguments.pop("train", (X, Y)), arguments.pop("validation", None), **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([squared_error], r"metrics must be functions by name, such as .* Got \[<function"),
        (squared_error, "metrics must be functions by name"),
        ("accuracy", "metrics must be functions by name, .* Got 'accuracy'"),
        ({"a": 3}, r"metrics\['a'\] must be a function of model, batch. Got 3"),
        ({"a": Unhashable()}, r"metrics\['a'\] must be hashable"),
        ({"a": lambda m, batch: 0.0, "b": lambda m, batch: m(batch[0])}, r"metrics\['b'\] must return one number"),
    ],
)
def test_metrics_that_are_none(metrics: Any, message: str) -> None:
    """Found out before an epoch is trained."""
    model, before = Linear(), Linear()
    with pytest.raises(ValueError, match=message):
        fit(model, (X, Y), (X, Y), metrics=metrics)
    np.testing.assert_array_equal(model.linear.kernel[...], before.linear.kernel[...])


def test_validation_that_the_model_cannot_take() -> None:
    model, before = Linear(), Linear()
    with pytest.raises(TypeError, match="contracting"):
        fit(model, (X, Y), (X[:, :2], Y))
    np.testing.assert_array_equal(model.linear.kernel[...], before.linear.kernel[...])


@pytest.mark.parametrize(
    "transformed",
    [
        lambda: jax.jit(lambda: fit(Linear()).losses)(),
        lambda: jax.grad(lambda x: fit(Linear(), (x, Y)).losses[0])(jnp.asarray(X)),
        lambda: jax.vmap(lambda x: fit(Linear(), (x, Y)).losses)(X[None]),
        lambda: nnx.jit(lambda model: fit(model).losses)(Linear()),
    ],
    ids=["jit", "grad", "vmap", "nnx.jit"],
)
def test_fit_within_a_transformation(transformed: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"fit must be called outside of jax.jit, jax.grad and jax.vmap. Got"):
        transformed()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training.adam(None), "learning_rate must be a number in [0, inf). Got None"),
        (lambda: training.adam(-1.0), "learning_rate must be a number in [0, inf). Got -1.0"),
        (lambda: training.adam(b1=1.0), "b1 must be a number in [0, 1). Got 1.0"),
        (lambda: training.adamw(b2=-0.1), "b2 must be a number in [0, 1). Got -0.1"),
        (lambda: training.adam(eps=-1.0), "eps must be a number in [0, inf). Got -1.0"),
        (lambda: training.adamw(weight_decay=-1.0), "weight_decay must be a number in [0, inf). Got -1.0"),
        (lambda: training.sgd(momentum=-1.0), "momentum must be a number in [0, inf). Got -1.0"),
        (lambda: training.sgd(weight_decay=math.nan), "weight_decay must be a number in [0, inf). Got nan"),
        (lambda: training.clip_grad_norm(0.0), "max_norm must be a number in (0, inf). Got 0.0"),
        (lambda: training.step_lr(1.0, 0), "step_size must be an integer in [1, inf). Got 0"),
        (lambda: training.multi_step_lr(1.0, [2.5]), "milestones must be a sequence of integers of at least 0"),
        (lambda: training.cosine_annealing_lr(0.1, 0), "t_max must be an integer in [1, inf). Got 0"),
        (lambda: training.one_cycle_lr(1.0, 0), "total_steps must be an integer in [1, inf). Got 0"),
        (lambda: training.one_cycle_lr(1.0, -5), "total_steps must be an integer in [1, inf). Got -5"),
        (lambda: training.one_cycle_lr(1.0, 10, pct_start=30), "pct_start must be a number in [0, 1]. Got 30"),
        (lambda: training.one_cycle_lr(1.0, 10, pct_start=0.1), "pct_start must leave a step before the top"),
        (lambda: training.per_epoch(0.1, 2), "schedule must be a function of the number of steps. Got 0.1"),
        (lambda: training.ReduceLROnPlateau(factor=2.0), "factor must be a number in (0, 1). Got 2.0"),
        (lambda: training.ReduceLROnPlateau(patience=-1), "patience must be an integer in [0, inf). Got -1"),
        (lambda: training.ReduceLROnPlateau(patience=2.5), "patience must be an integer in [0, inf). Got 2.5"),
        (lambda: training.ReduceLROnPlateau(cooldown=-1), "cooldown must be an integer in [0, inf). Got -1"),
        (lambda: training.ReduceLROnPlateau(threshold=-1), "threshold must be a number in [0, inf). Got -1"),
    ],
)
def test_mistakes_of_parts(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
