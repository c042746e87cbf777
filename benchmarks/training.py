"""One optimiser step of each trained model: an eager PyTorch loop, torch.compile, and three ways to do it in JAX.

    python -m benchmarks training [--models NAME ...] [--sizes 1 4] [--rounds 7] [--compile] [--json FILE]

Sizes: 1 is the notes' (curves of 50 points, sequences of 20 tokens, digits of 16 patches), 4 has sequences four times
as long. Dropout is on as in training, and all columns clip the gradients and run Adam. They take turns in each round;
printed is each one's fastest time a step relative to PyTorch's, and how much longer the first run took, which compiles.
PyTorch's loop reads the loss at each step; the others wait once for all.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import torch_ref.models
import torch_ref.nn
from benchmarks.comparison import FLOOR
from benchmarks.products import products_of
from benchmarks.rounds import Run, measure
from jattn import models, nn, training

STEPS = 20  # of each column in each round, in fit's case of each epoch
EPOCHS = 5


class Case(NamedTuple):
    """A model on both sides, and a batch for each step."""

    model: Callable[[], nnx.Module]
    torch_model: Callable[[], torch.nn.Module]
    inputs: tuple[np.ndarray, ...]  # "steps b ..."
    targets: np.ndarray
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    torch_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    dropout: bool = True


def cases(size: int) -> dict[str, Case]:
    """The models, on sequences ``size`` times as long as the notes'."""
    rng = np.random.default_rng(0)

    def uniform(*shape: int) -> np.ndarray:
        return 5 * rng.random((STEPS, *shape), dtype=np.float32)

    def integers(high: int, *shape: int) -> np.ndarray:
        return rng.integers(0, high, (STEPS, *shape), dtype=np.int32)

    points, tokens, side = 50 * size, 20 * size, 8 * round(size**0.5)
    squared: dict[str, Any] = dict(loss=lambda y, target: jnp.mean((y - target) ** 2), torch_loss=F.mse_loss)
    entropy: dict[str, Any] = dict(
        loss=lambda logits, labels: optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(),
        torch_loss=lambda logits, labels: F.cross_entropy(logits.flatten(0, -2), labels.flatten()),
    )
    keys, values = np.sort(uniform(points)[0]), uniform(points)[0]
    return {
        "NadarayaWatson": Case(
            lambda: nn.NadarayaWatson(jnp.asarray(keys), jnp.asarray(values)),
            lambda: torch_ref.nn.NadarayaWatson(torch.tensor(keys), torch.tensor(values)),
            (uniform(points),),
            uniform(points),
            dropout=False,
            **squared,
        ),
        "AttentionRegressor": Case(
            lambda: models.AttentionRegressor(rngs=nnx.Rngs(0)),
            torch_ref.models.AttentionRegressor,
            (uniform(200, points),),
            uniform(200, points),
            dropout=False,
            **squared,
        ),
        "TransformerRegressor": Case(
            lambda: models.TransformerRegressor(points, rngs=nnx.Rngs(0)),
            lambda: torch_ref.models.TransformerRegressor(points),
            (uniform(32, points),),
            uniform(32, points),
            **squared,
        ),
        "RecallClassifier": Case(
            lambda: models.RecallClassifier(5, max_length=tokens, rngs=nnx.Rngs(0)),
            lambda: torch_ref.models.RecallClassifier(5, max_length=tokens),
            (integers(5, 32, tokens),),
            integers(5, 32),
            **entropy,
        ),
        "Seq2Seq": Case(
            lambda: models.Seq2Seq(40, 20, rngs=nnx.Rngs(0)),
            lambda: torch_ref.models.Seq2Seq(40, 20),
            (integers(40, 32, tokens), integers(20, 32, tokens // 2), np.full((STEPS, 32), tokens, np.int32)),
            integers(20, 32, tokens // 2),
            **entropy,
        ),
        "DigitsClassifier": Case(
            lambda: models.DigitsClassifier(image_size=side, rngs=nnx.Rngs(0)),
            lambda: torch_ref.models.DigitsClassifier(image_size=side),
            (uniform(64, side, side),),
            integers(10, 64),
            **entropy,
        ),
    }


# ----------------------------------------------------------------------------------------------------------------------
# The columns.


def eager(case: Case, compiled: bool = False) -> Run:
    """As one writes it in PyTorch."""
    model: Any = case.torch_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    called = torch.compile(model) if compiled else model
    batches = [tuple(map(torch.from_numpy, batch)) for batch in zip(*case.inputs, case.targets, strict=True)]
    batches = [
        (*inputs, targets.long() if not targets.is_floating_point() else targets) for *inputs, targets in batches
    ]

    def run() -> int:
        for *inputs, targets in batches:
            optimizer.zero_grad()
            loss = case.torch_loss(called(*inputs), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
        return STEPS

    return run


def loss_of(case: Case) -> training.steps.Loss:
    """As `fit` takes it."""

    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        *inputs, targets = batch
        return case.loss(model(*inputs, **({"rng": rng} if case.dropout else {})), targets)

    return loss


def batches_of(case: Case) -> list[tuple[Any, jax.Array]]:
    """On the device, each with the randomness of its step."""
    batches = [tuple(map(jnp.asarray, batch)) for batch in zip(*case.inputs, case.targets, strict=True)]
    return list(zip(batches, jax.random.split(jax.random.key(0), STEPS), strict=True))


def jitted_step(case: Case) -> Run:
    """A compiled step, called from a Python loop."""
    model, loss = case.model(), loss_of(case)
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    carry = (parameters, optimizer.init(parameters))
    batches = batches_of(case)

    def step(carry: Any, batch: Any, rng: Any) -> Any:
        parameters, opt_state = carry
        value, gradients = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p, rest), batch, rng))(parameters)
        updates, opt_state = optimizer.update(gradients, opt_state, parameters)
        return (optax.apply_updates(parameters, updates), opt_state), value

    compiled = jax.jit(step, donate_argnums=0)

    def run() -> int:
        nonlocal carry
        for batch, rng in batches:
            carry, value = compiled(carry, batch, rng)
        value.block_until_ready()
        return STEPS

    return run


def nnx_jit(case: Case) -> Run:
    """Flax's own loop: `nnx.jit`, `nnx.value_and_grad`, `nnx.Optimizer`."""
    model, loss = case.model(), loss_of(case)
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), wrt=nnx.Param)
    batches = batches_of(case)

    @nnx.jit
    def step(model: Any, optimizer: Any, batch: Any, rng: Any) -> jax.Array:
        value, gradients = nnx.value_and_grad(lambda model: loss(model, batch, rng))(model)
        optimizer.update(model, gradients)
        return value

    def run() -> int:
        for batch, rng in batches:
            value = step(model, optimizer, batch, rng)
        value.block_until_ready()
        return STEPS

    return run


def fit(case: Case) -> Run:
    """`jattn.training.fit`, from the call to the return."""
    model, loss, optimizer = case.model(), loss_of(case), training.adam(1e-3)
    data = tuple(jnp.asarray(x.reshape(-1, *x.shape[2:])) for x in (*case.inputs, case.targets))
    options: dict[str, Any] = dict(loss=loss, optimizer=optimizer, clip_norm=1.0, progress=False)

    def run() -> int:
        training.fit(model, data, epochs=EPOCHS, batch_size=len(data[0]) // STEPS, **options)
        return EPOCHS * STEPS

    return run


def products(case: Case) -> Run:
    """The matrix products of a step, which no way to do the rest can avoid."""
    model, loss = case.model(), loss_of(case)
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    step = jax.value_and_grad(lambda p, batch, rng: loss(nnx.merge(graphdef, p, rest), batch, rng))
    compiled = products_of(step, parameters, *batches_of(case)[0])

    def run() -> int:
        for _ in range(STEPS):
            compiled().block_until_ready()
        return STEPS

    return run


COLUMNS: dict[str, Callable[[Case], Run]] = {
    "PyTorch": eager,
    "torch.compile": lambda case: eager(case, compiled=True),
    "jitted step": jitted_step,
    "nnx.jit": nnx_jit,
    "fit": fit,
    FLOOR: products,
}


# ----------------------------------------------------------------------------------------------------------------------
# The measurement.


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of these only")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[1, 4], choices=[1, 4], help="how many times the notes' lengths"
    )
    parser.add_argument("--rounds", type=int, default=7, help="in each, every column takes its turn")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes to compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times there")
    options = parser.parse_args(arguments)
    by_size = {size: cases(size) for size in options.sizes}
    names = list(by_size[options.sizes[0]])
    if unknown := set(options.models or ()) - set(names):
        parser.error(f"--models must be among {', '.join(names)}. Got {', '.join(sorted(unknown))}.")

    columns = {name: make for name, make in COLUMNS.items() if options.compile or name != "torch.compile"}
    table = Table("model", "size", "PyTorch, ms", *columns, *[f"{name}, s" for name in list(columns)[1:]])
    table.title = "time of a training step, relative to PyTorch's; on the right, seconds to compile"
    results = []
    for size, by_name in by_size.items():
        for name in options.models or names:
            compiling, times = measure(
                {column: make(by_name[name]) for column, make in columns.items()}, options.rounds
            )
            least = {column: min(seconds) for column, seconds in times.items()}
            table.add_row(
                name,
                str(size),
                f"{1000 * least['PyTorch']:.2f}",
                *[f"{least[column] / least['PyTorch']:.2f}" for column in columns],
                *[f"{compiling[column]:.1f}" for column in list(columns)[1:]],
            )
            results.append({"model": name, "size": size, "seconds to compile": compiling, "seconds a step": times})
            ratios = ", ".join(f"{column} {least[column] / least['PyTorch']:.2f}" for column in columns)
            Console().print(f"{name}, size {size}: {ratios}")
    Console(width=max(Console().width, 130)).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
