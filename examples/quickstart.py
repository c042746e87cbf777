"""jattn in two minutes: train on real data, look at the weights, and prove the port.

    python -m examples.quickstart [--out figures/quickstart] [--seed 0]

1. Nadaraya-Watson regression of disease progression on body-mass index (scikit-learn's diabetes data), its bandwidth
   learned by leaving one out.
2. A small vision transformer on scikit-learn's digits, trained by one jitted step; test accuracy on a held-out quarter.
3. The trained weights in the PyTorch reference: how far outputs and gradients agree on the same test digits.

One to two minutes on 2 cores. Expected: a leave-one-out error well below that of average pooling, test accuracy 0.96 or
better, and differences from PyTorch at the level of rounding. The same seed gives the same numbers.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

import torch_ref.models
from examples import options
from jattn import nadaraya_watson, plots
from jattn.masks import sliding_window
from jattn.models import DigitsClassifier
from jattn.nn import NadarayaWatson
from jattn.weights import load_state_dict, state_dict, to_numpy

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=options.folder, default="figures/quickstart", help="folder for the figures")
    parser.add_argument("--seed", type=options.seed, default=0, help="of parameters, batches and dropout")
    arguments = parser.parse_args()
    start = time.perf_counter()

    console.rule("1. Nadaraya-Watson: disease progression on body-mass index")
    regress(arguments.out)

    console.rule("2. A vision transformer on the digits")
    model, images, labels = classify(arguments.out, arguments.seed)

    console.rule("3. The same weights in PyTorch")
    console.print(prove(model, images, labels))

    console.print(f"Figures are in {arguments.out}. Took {time.perf_counter() - start:.0f} s.")


# ----------------------------------------------------------------------------------------------------------------------
# 1. Kernel regression.


def regress(out: Path) -> None:
    """Learn the bandwidth, print the errors, save the curve and the weights."""
    data = load_diabetes(scaled=False)
    bmi, progression = data.data[:, 2], data.target
    order = np.argsort(bmi)
    x, y = jnp.asarray(bmi[order], jnp.float32), jnp.asarray(progression[order], jnp.float32)

    model = NadarayaWatson(x, y, factor=4.0)  # a bandwidth of 1/4 unit of the index, too narrow
    graphdef, parameters, observations = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(0.05)

    def loss(parameters: Any) -> jax.Array:
        fitted = nnx.merge(graphdef, parameters, observations)(x, leave_one_out=True)
        return jnp.mean((fitted - y) ** 2)

    @jax.jit
    def step(parameters: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(parameters, updates), opt_state, value

    opt_state = optimizer.init(parameters)
    errors = []
    for _ in track(range(200), description="Leave one out"):
        parameters, opt_state, value = step(parameters, opt_state)
        errors.append(float(value) ** 0.5)
    nnx.update(model, parameters)
    bandwidth = 1 / abs(float(model.factor[...]))

    fitted_mean = nadaraya_watson(x, x, y, kernel="constant", mask=~sliding_window(0, 0))
    mean_error = float(jnp.sqrt(jnp.mean((fitted_mean - y) ** 2)))
    console.print(
        f"{len(x)} patients. Leave-one-out error, root mean square: {mean_error:.1f} by average pooling, "
        f"{errors[0]:.1f} at bandwidth 0.25, {errors[-1]:.1f} at the learned bandwidth {bandwidth:.2f}."
    )
    save_regression(out / "nadaraya_watson.png", x, y, model, bandwidth)


def save_regression(path: Path, x: jax.Array, y: jax.Array, model: NadarayaWatson, bandwidth: float) -> None:
    """The observations with the curve on the left, the weights of a grid of queries on the right."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    grid = jnp.linspace(x.min(), x.max(), 200)
    curve, weights = model(grid, return_weights=True)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, y, ".", color="0.7", label="patients")
    left.plot(grid, jnp.full_like(grid, y.mean()), "--", color="0.3", label="average pooling")
    left.plot(grid, nadaraya_watson(grid, x, y, bandwidth=0.25), color="tab:blue", lw=1, label="bandwidth 0.25")
    left.plot(grid, curve, color="tab:red", lw=2.5, label=f"learned bandwidth {bandwidth:.2f}")
    left.set(xlabel="body-mass index", ylabel="disease progression", title="Nadaraya-Watson regression")
    left.legend()
    # The few patients at the top of the range share their weight among few, so a linear scale would hide the rest.
    shades = PowerNorm(0.4, vmin=0)
    picture = right.imshow(weights, norm=shades, aspect="auto", extent=(0, len(x), float(x.max()), float(x.min())))
    right.set(xlabel="patients, by body-mass index", ylabel="body-mass index asked for", title="Attention weights")
    figure.colorbar(picture, ax=right, label="weight")
    figure.savefig(path, dpi=100)


# ----------------------------------------------------------------------------------------------------------------------
# 2. A classifier.


def classify(out: Path, seed: int, epochs: int = 40, batch_size: int = 64) -> tuple[DigitsClassifier, Any, Any]:
    """Train, print the test accuracy, save the heads' weights; the model and the test digits."""
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        (data.images / 16).astype(np.float32), data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    model = DigitsClassifier(rngs=nnx.Rngs(seed))
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    batches = len(train_x) // batch_size
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(epochs * batches, 3e-3), weight_decay=1e-2)

    @jax.jit
    def step(parameters: Any, opt_state: Any, rng: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(parameters: Any) -> jax.Array:
            logits = nnx.merge(graphdef, parameters, rest)(x, rng=rng)
            targets = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), 0.1)
            return optax.softmax_cross_entropy(logits, targets).mean()

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, opt_state = optimizer.update(gradients, opt_state, parameters)
        return optax.apply_updates(parameters, updates), opt_state, value

    opt_state, rng, shuffle = optimizer.init(parameters), jax.random.key(seed), np.random.default_rng(seed)
    for epoch in track(range(epochs), description="Digits"):
        order = shuffle.permutation(len(train_x))[: batches * batch_size].reshape(batches, batch_size)
        for i, batch in enumerate(order):
            step_rng = jax.random.fold_in(rng, epoch * batches + i)
            parameters, opt_state, value = step(parameters, opt_state, step_rng, train_x[batch], train_y[batch])
    nnx.update(model, parameters)
    model.eval()

    logits, weights = compiled(model)(jnp.asarray(test_x))
    accuracy = float(jnp.mean(logits.argmax(-1) == test_y))
    console.print(f"{len(train_x)} training digits, last loss {float(value):.4f}.")
    console.print(f"Test accuracy on {len(test_x)} held-out digits: {accuracy:.4f}")
    save_heads(out / "digits_heads.png", test_x[0], int(test_y[0]), np.stack([w[0] for w in weights]))
    return model, test_x, test_y


def compiled(model: nnx.Module) -> Callable[[jax.Array], Any]:
    """The model's logits and weights as one compiled function."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda x: nnx.merge(graphdef, state)(x, return_weights=True))


def save_heads(path: Path, image: np.ndarray, label: int, weights: np.ndarray) -> None:
    """The weights of every layer and head for one digit, and the digit with its patches beside them."""
    layers, heads, *_ = weights.shape
    figure = plots.heatmaps(
        weights,
        row_titles=[f"layer {i}" for i in range(layers)],
        column_titles=[f"head {i}" for i in range(heads)],
        xlabel="patch attended to",
        ylabel="patch",
    )
    figure.set_size_inches(11.5, 5)
    figure.set_layout_engine("constrained", rect=(0.13, 0, 0.87, 1))
    inset = figure.add_axes((0.01, 0.4, 0.1, 0.23))
    inset.imshow(image, cmap="gray_r")
    inset.set(xticks=np.arange(1.5, 8, 2), yticks=np.arange(1.5, 8, 2), title=f"a {label}")
    inset.tick_params(labelbottom=False, labelleft=False, length=0)
    inset.grid(color="tab:red", lw=0.5)
    figure.savefig(path, dpi=100)


# ----------------------------------------------------------------------------------------------------------------------
# 3. The proof.


def prove(model: DigitsClassifier, images: np.ndarray, labels: np.ndarray) -> Table:
    """How far jattn and the PyTorch reference are apart on these digits, in float32 and float64."""
    reference = torch_ref.models.DigitsClassifier().eval()
    reference.load_state_dict(state_dict(model))
    columns = {}
    for dtype in ("float32", "float64"):
        reference = reference.to(getattr(torch, dtype))
        theirs = run_torch(reference, images.astype(dtype), labels)
        with jax.enable_x64(dtype == "float64"):
            ours = run_jax(load_state_dict(nnx.clone(model), reference.state_dict()), images.astype(dtype), labels)
        columns[dtype] = [difference(ours[name], theirs[name]) for name in theirs]

    table = Table("share of the largest entry", *columns, title=f"jattn and PyTorch apart on {len(images)} test digits")
    for row in zip(theirs, *columns.values(), strict=True):
        table.add_row(row[0], *[f"{x:.1e}" for x in row[1:]])
    return table


def run_torch(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Outputs and gradients of the reference."""
    model.zero_grad()
    x = torch.from_numpy(images).requires_grad_()
    logits, weights = model(x, return_weights=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    parameters = [to_numpy(parameter.grad) for _, parameter in sorted(model.named_parameters())]
    return named(loss, logits, weights, x.grad, parameters)


def run_jax(model: DigitsClassifier, images: np.ndarray, labels: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The same of jattn, compiled."""
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)

    def loss(parameters: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        logits, weights = nnx.merge(graphdef, parameters, rest)(x, return_weights=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, weights)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (logits, weights)), (gradients, x_gradient) = run(parameters, jnp.asarray(images))
    by_name = state_dict(nnx.merge(graphdef, gradients, rest))  # gradients under PyTorch's names and in its layout
    return named(value, logits, weights, x_gradient, [tensor.numpy() for _, tensor in sorted(by_name.items())])


def named(
    loss: Any, logits: Any, weights: Any, x_gradient: Any, parameter_gradients: Any
) -> dict[str, list[np.ndarray]]:
    """What the table has a row for."""
    return {
        "loss": [to_numpy(loss)],
        "logits": [to_numpy(logits)],
        "attention weights, all layers and heads": [to_numpy(w) for w in weights],
        "gradient of the images": [to_numpy(x_gradient)],
        f"gradients of all {len(parameter_gradients)} parameters": parameter_gradients,
    }


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference, as a share of the largest entry."""
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / max(np.abs(b).max() for b in theirs)


if __name__ == "__main__":
    main()
