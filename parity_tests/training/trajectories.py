"""Each trained model in both frameworks: the same initial weights, batches, optimiser, clipping and schedule.

    python -m parity_tests.training.trajectories docs/trajectories.png

draws the losses of the float64 runs and how far they are apart.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import optim
from torch.nn import functional as F
from torch.optim import lr_scheduler

import torch_ref.models
import torch_ref.nn
import torch_ref.training
from jattn import models, nn, training
from jattn.weights import load_state_dict, state_dict, to_numpy
from parity_tests.nn import blank

EPOCHS, BATCHES = 20, 10  # 200 steps


class Trajectory(NamedTuple):
    """What is compared."""

    step_losses: np.ndarray
    parameters: dict[str, np.ndarray]  # at the end, by PyTorch's names
    learning_rates: np.ndarray


class Case(NamedTuple):
    """A model, its data and how it is trained, on both sides."""

    model: Callable[[], nnx.Module]
    torch_model: Callable[[], torch.nn.Module]
    data: tuple[np.ndarray, ...]
    batch_size: int
    loss: training.steps.Loss
    torch_loss: torch_ref.training.Loss
    options: dict[str, Any]
    torch_options: Callable[[torch.nn.Module], dict[str, Any]]
    validation: tuple[np.ndarray, ...] | None = None


def run_jax(case: Case, state: dict[str, torch.Tensor], dtype: str, epochs: int) -> Trajectory:
    """Train from these parameters with `jattn.training.fit`."""
    with jax.enable_x64(dtype == "float64"):
        model = load_state_dict(case.model(), state)
        history = training.fit(
            model,
            _cast(case.data, dtype),
            None if case.validation is None else _cast(case.validation, dtype),
            loss=case.loss,
            epochs=epochs,
            batch_size=case.batch_size,
            shuffle=False,
            progress=False,
            **case.options,
        )
        parameters = {name: to_numpy(x) for name, x in state_dict(model).items()}
    return Trajectory(history.step_losses, parameters, history.learning_rates)


def run_torch(case: Case, state: dict[str, torch.Tensor], dtype: str, epochs: int) -> Trajectory:
    """Train from these parameters with `torch_ref.training.fit`."""
    model = case.torch_model().to(getattr(torch, dtype))
    model.load_state_dict(state)
    validation = None if case.validation is None else _cast(case.validation, dtype)
    history = torch_ref.training.fit(
        model,
        tuple(torch.from_numpy(x) for x in _cast(case.data, dtype)),
        None if validation is None else tuple(torch.from_numpy(x) for x in validation),
        loss=case.torch_loss,
        epochs=epochs,
        batch_size=case.batch_size,
        **case.torch_options(model),
    )
    parameters = {name: to_numpy(x) for name, x in model.state_dict().items()}
    return Trajectory(np.array(history.step_losses), parameters, np.array(history.learning_rates))


def initial_state(case: Case, dtype: str) -> dict[str, torch.Tensor]:
    """The parameters that both start from."""
    torch.manual_seed(0)
    return copy.deepcopy(case.torch_model()).to(getattr(torch, dtype)).state_dict()


def _cast(data: tuple[np.ndarray, ...], dtype: str) -> tuple[np.ndarray, ...]:
    return tuple(x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x for x in data)


# ----------------------------------------------------------------------------------------------------------------------
# The cases. Dropout is off: its masks cannot be handed from one framework's loop to the other's.

rng = np.random.default_rng(0)


def curve(x: np.ndarray) -> np.ndarray:
    """The notes' function."""
    return 2 * np.sin(x) + x**0.8


def squared_error(model: Any, batch: Any, rng: Any) -> jax.Array:
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def torch_squared_error(model: torch.nn.Module, batch: torch_ref.training.Batch) -> torch.Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


def cross_entropy(model: Any, batch: Any, rng: Any) -> jax.Array:
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


def torch_cross_entropy(model: torch.nn.Module, batch: torch_ref.training.Batch) -> torch.Tensor:
    x, labels = batch
    return F.cross_entropy(model(x), labels)


def translation_loss(model: Any, batch: Any, rng: Any) -> jax.Array:
    """Teacher forcing; the target's first token starts the decoder, the last is only a label."""
    source, valid_lens, target = batch
    logits = model(source, target[:, :-1], valid_lens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:]).mean()


def torch_translation_loss(model: torch.nn.Module, batch: torch_ref.training.Batch) -> torch.Tensor:
    source, valid_lens, target = batch
    logits = model(source, target[:, :-1], valid_lens)
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())


points = 5 * rng.random((10 * 8, 50))
noisy = curve(points) + 0.5 * rng.standard_normal(points.shape)
grid = np.tile(np.linspace(0, 5, 50), (4, 1))
keys = np.sort(5 * rng.random(50))
values = curve(keys) + 0.5 * rng.standard_normal(50)
sequences = rng.integers(1, 5, (10 * 16, 20))
images = rng.random((10 * 16, 8, 8))
sentences = rng.integers(0, 10, (10 * 8, 7))
lens = rng.integers(3, 8, 10 * 8)

CASES = {
    "NadarayaWatson": Case(
        model=lambda: nn.NadarayaWatson(jnp.asarray(keys), jnp.asarray(values)),
        torch_model=lambda: torch_ref.nn.NadarayaWatson(torch.tensor(keys), torch.tensor(values)),
        data=(points.reshape(-1, 5)[:100].ravel(), noisy.reshape(-1, 5)[:100].ravel()),
        batch_size=50,
        loss=squared_error,
        torch_loss=torch_squared_error,
        options=dict(optimizer=training.sgd(training.per_epoch(training.step_lr(0.05, 5, 0.5), 10), momentum=0.9)),
        torch_options=lambda model: _torch(optim.SGD(model.parameters(), lr=0.05, momentum=0.9), "epoch", _step_lr),
    ),
    "AttentionRegressor": Case(
        model=lambda: blank(lambda: models.AttentionRegressor(rngs=nnx.Rngs(0))),
        torch_model=torch_ref.models.AttentionRegressor,
        data=(points, noisy),
        batch_size=8,
        loss=squared_error,
        torch_loss=torch_squared_error,
        options=dict(
            optimizer=training.adam(1e-2, weight_decay=1e-3),
            plateau=training.ReduceLROnPlateau(factor=0.5, patience=1, threshold=0.01),
        ),
        torch_options=lambda model: _plateau(
            optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3), factor=0.5, patience=1, threshold=0.01
        ),
    ),
    "TransformerRegressor": Case(
        model=lambda: blank(lambda: models.TransformerRegressor(dropout_rate=0.0, rngs=nnx.Rngs(0))),
        torch_model=lambda: torch_ref.models.TransformerRegressor(dropout_rate=0.0),
        data=(points, noisy),
        validation=(grid, curve(grid)),
        batch_size=8,
        loss=squared_error,
        torch_loss=torch_squared_error,
        options=dict(
            optimizer=training.adam(1e-3, weight_decay=1e-6),
            clip_norm=1.0,
            plateau=training.ReduceLROnPlateau(factor=0.5, patience=0, min_lr=1e-6),
            patience=20,
        ),
        torch_options=lambda model: dict(
            **_plateau(optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6), factor=0.5, patience=0, min_lr=1e-6),
            clip_norm=1.0,
            patience=20,
        ),
    ),
    "RecallClassifier": Case(
        model=lambda: blank(lambda: models.RecallClassifier(5, dropout_rate=0.0, rngs=nnx.Rngs(0))),
        torch_model=lambda: torch_ref.models.RecallClassifier(5, dropout_rate=0.0),
        data=(sequences, sequences[:, 0]),
        batch_size=16,
        loss=cross_entropy,
        torch_loss=torch_cross_entropy,
        options=dict(optimizer=training.adamw(training.cosine_annealing_lr(3e-3, 200)), clip_norm=1.0),
        torch_options=lambda model: dict(
            **_torch(
                optim.AdamW(model.parameters(), lr=3e-3), "step", lambda o: lr_scheduler.CosineAnnealingLR(o, 200)
            ),
            clip_norm=1.0,
        ),
    ),
    "Seq2Seq": Case(
        model=lambda: blank(lambda: models.Seq2Seq(10, 10, num_layers=1, dropout_rate=0.0, rngs=nnx.Rngs(0))),
        torch_model=lambda: torch_ref.models.Seq2Seq(10, 10, num_layers=1, dropout_rate=0.0),
        data=(sentences, lens, sentences[:, ::-1].copy()),
        batch_size=8,
        loss=translation_loss,
        torch_loss=torch_translation_loss,
        options=dict(optimizer=training.adam(training.exponential_lr(5e-3, 0.99)), clip_norm=1.0),
        torch_options=lambda model: dict(
            **_torch(optim.Adam(model.parameters(), lr=5e-3), "step", lambda o: lr_scheduler.ExponentialLR(o, 0.99)),
            clip_norm=1.0,
        ),
    ),
    "DigitsClassifier": Case(
        model=lambda: blank(lambda: models.DigitsClassifier(dropout_rate=0.0, rngs=nnx.Rngs(0))),
        torch_model=lambda: torch_ref.models.DigitsClassifier(dropout_rate=0.0),
        data=(images, rng.integers(0, 10, len(images))),
        batch_size=16,
        loss=cross_entropy,
        torch_loss=torch_cross_entropy,
        options=dict(
            optimizer=training.adamw(training.one_cycle_lr(3e-3, 201), b1=training.one_cycle_momentum(201)),
        ),
        torch_options=lambda model: _torch(
            optim.AdamW(model.parameters(), lr=3e-3), "step", lambda o: lr_scheduler.OneCycleLR(o, 3e-3, 201)
        ),
    ),
}


def _torch(optimizer: optim.Optimizer, when: str, scheduler: Callable[[optim.Optimizer], Any]) -> dict[str, Any]:
    return {"optimizer": optimizer, f"{when}_scheduler": scheduler(optimizer)}


def _step_lr(optimizer: optim.Optimizer) -> Any:
    return lr_scheduler.StepLR(optimizer, 5, 0.5)


def _plateau(optimizer: optim.Optimizer, **options: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "plateau": lr_scheduler.ReduceLROnPlateau(optimizer, **options)}


# ----------------------------------------------------------------------------------------------------------------------
# The picture.


def draw(path: str) -> None:
    """For each case, the loss on both sides, and below it how far they are apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.2), layout="constrained")
    axes: Any = figure.subplots(2, len(CASES), sharex=True, height_ratios=(3, 2))
    for (name, case), (above, below) in zip(CASES.items(), axes.T, strict=True):
        state = initial_state(case, "float64")
        ours = run_jax(case, state, "float64", EPOCHS).step_losses
        theirs = run_torch(case, state, "float64", EPOCHS).step_losses
        above.plot(theirs, color="tab:orange", lw=4, alpha=0.5, label="PyTorch")
        above.plot(ours, color="tab:blue", lw=1, label="jattn")
        above.set(title=name)
        below.semilogy(np.maximum(np.abs(ours / theirs - 1), 1e-17), ".", color="0.3", ms=3)
        below.set(ylim=(5e-18, 1e-9), xlabel="step")
    axes[0, 0].set(ylabel="loss")
    axes[0, 0].legend()
    axes[1, 0].set(ylabel="relative difference\n(1e-17: none)")
    for axis in axes[1, 1:]:
        axis.tick_params(labelleft=False)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    draw(sys.argv[1])
