"""`fit`: train a Flax module on arrays."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PyTree
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jattn._engine import checks
from jattn.training import arguments
from jattn.training.checkpoints import CheckpointError, Checkpoints, checksum, to_arrays
from jattn.training.optimizers import clip_grad_norm
from jattn.training.run import History, Run
from jattn.training.schedules import ReduceLROnPlateau
from jattn.training.steps import Loss, Metric, Recipe, State, evaluate


def fit(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree | None = None,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    metrics: Mapping[str, Metric] | None = None,
    clip_norm: float | None = None,
    plateau: ReduceLROnPlateau | None = None,
    patience: int | None = None,
    nonfinite: Literal["raise", "skip"] = "raise",
    wrt: Any = nnx.Param,
    checkpoints: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place; the steps of an epoch are one compiled scan.

    ``loss`` sees the model in training mode, with dropout on, and in eval mode on the validation data. Randomness comes
    from ``seed`` and the step's number alone, so the same call gives the same parameters, bit for bit, on the same
    machine (on a GPU only with ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``). State that the model changes in itself
    while training (batch statistics, counters of a stateful rng) is threaded through.

    Args:
        model: holds its parameters; left in eval mode, with the last parameters, or the best ones if patience is given.
            An error or an interrupt leaves it like that as of the last epoch whose steps were all taken. Flax's
            ``train()``, which is called on it, also unfreezes a batch norm of ``use_running_average=True``.
        train: arrays in any nest, a tuple or dict say, whose first axis counts the examples.
        validation: data of the same kind, to be evaluated after each epoch.
        loss: ``loss(model, batch, rng)``, one number, the mean over the batch, which is a nest like train. Hand rng on
            to the model, whose dropout needs it. It is compiled once: what it reads from outside is frozen then, so
            numbers that change belong into the data.
        optimizer: one of this package, or one of optax that asks for no more than gradients and the loss. A later call
            with the same loss and optimiser objects, and a model and data of the same shapes, compiles nothing.
        epochs: how many times the data are seen.
        batch_size: examples a step. The last batch of an epoch may be smaller, which compiles the step once more.
        seed: of the order of the examples, and of rng.
        shuffle: whether each epoch has an order of its own.
        drop_last: leave out the last batch where it is smaller.
        metrics: by name, ``metric(model, batch)``, one number, the mean over a batch of the validation data;
            compiled, too.
        clip_norm: the largest norm of all gradients together, as in `clip_grad_norm`.
        plateau: lowers the learning rate when the validation loss (without validation data, the mean loss of the epoch)
            stops falling. The optimiser must keep its learning rate in its state, as those of this package and
            ``optax.inject_hyperparams`` do, and it must not be a schedule.
        patience: stop after this many epochs in a row without a lower validation loss, and restore the best parameters.
        nonfinite: what to do when a loss or gradient is NaN or infinite: ``"raise"`` an error that names the step,
            the parameters being those before it, or ``"skip"`` that step.
        wrt: which of the model's variables are trained, a Flax filter.
        checkpoints: a folder. Each epoch is saved there, and a run that was killed goes on from the last one when it is
            started again, to the same parameters, bit for bit. A damaged checkpoint is passed over, with a warning,
            for the one before. A folder of other data, initial parameters or arguments is refused; that the loss, a
            schedule or a hyperparameter other than the learning rate has changed cannot be seen.
        progress: whether to show a progress bar.

    Returns:
        The `History`.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a loss or gradient is not finite.
        CheckpointError: if the folder's checkpoints are all damaged, or of another run.

    Example:

        >>> from jattn.training import adam
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> def loss(model, batch, rng):
        ...     x, y = batch
        ...     return jnp.mean((model(x) - y) ** 2)
        >>> options = dict(loss=loss, optimizer=adam(0.1), batch_size=16, progress=False)
        >>> history = fit(model, (x, 3 * x + 1), epochs=50, **options)
        >>> print(f"{model.kernel[0, 0]:.3f} x + {model.bias[0]:.3f}")
        3.000 x + 1.000
    """
    if not isinstance(model, nnx.Module):
        raise ValueError(f"model must be a flax.nnx.Module. Got {type(model).__name__}.")
    arguments.not_traced(model, train, validation)
    data, n = arguments.examples("train", train)
    validation_data, validation_n = None, 0
    if validation is not None:
        validation_data, validation_n = arguments.examples("validation", validation, data)
    epochs = checks.number("epochs", epochs, "[1, inf)", integer=True)
    batch_size = checks.number("batch_size", batch_size, "[1, inf)", integer=True)
    seed = checks.number("seed", seed, "[0, 4294967296)", integer=True)  # JAX would cut off what is above
    for name, flag in (("shuffle", shuffle), ("drop_last", drop_last), ("progress", progress)):
        checks.one_of(name, flag, (True, False))
    if drop_last and batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} examples when drop_last=True. Got {batch_size}.")
    metrics = {} if metrics is None else metrics
    arguments.functions(loss, metrics, optimizer)
    if clip_norm is not None:
        clip_norm = float(checks.number("clip_norm", clip_norm, "(0, inf)"))
        optimizer = _clipped(optimizer, clip_norm)
    if patience is not None:
        patience = checks.number("patience", patience, "[1, inf)", integer=True)
    if validation is None and (patience is not None or metrics):
        raise ValueError("validation must be given when patience or metrics are. Got None.")
    if not isinstance(plateau, ReduceLROnPlateau | None):
        raise ValueError(f"plateau must be a ReduceLROnPlateau. Got {plateau!r:.80}.")
    checks.one_of("nonfinite", nonfinite, ("raise", "skip"))
    if checkpoints is not None and (not isinstance(checkpoints, str | Path) or checkpoints == ""):
        raise ValueError(f"checkpoints must be the path of a folder. Got {checkpoints!r:.80}.")

    wrt = arguments.predicate(wrt)
    model.train()
    train_graph, parameters, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]
    model.eval()
    arguments.parameters(parameters, wrt)
    skip = nonfinite == "skip"
    recipe = Recipe(train_graph, nnx.graphdef(model), wrt, loss, tuple(metrics.items()), optimizer, skip)
    state = State((parameters, rest), optimizer.init(parameters), jnp.int32(0), jnp.bool_(False))
    state = jax.tree.map(jnp.copy, state)  # some of it is donated, and the model's own arrays must live
    run = Run(state, patience, plateau, tuple(metrics))
    rng = jax.random.key(seed)
    validation_rng = jax.random.fold_in(rng, 2**32 - 1)  # of no step
    validation_batches = _batches(np.arange(validation_n), batch_size)
    for indices in validation_batches:  # a mistake shows now, not after an epoch
        evaluate.eval_shape(state.variables, validation_data, indices, validation_rng, recipe)

    saved = None
    if checkpoints is not None:
        settings = {
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": bool(shuffle),
            "drop_last": bool(drop_last),
            "clip_norm": clip_norm,
            "plateau": repr(plateau),
            "patience": patience,
            "nonfinite": nonfinite,
            "metrics": list(metrics),
            "data": checksum({"train": to_arrays(data), "validation": to_arrays(validation_data)}),
            "model": checksum({"variables": to_arrays(state.variables)}),
            "optimizer": checksum({"state": to_arrays(state.opt_state)}),
        }
        saved = Checkpoints(Path(checkpoints).expanduser(), settings)
        if found := saved.restore():
            run.resume(*found)
        if run.epoch > epochs:
            raise CheckpointError(f"epochs must be at least the {run.epoch} of the checkpoint. Got {epochs}.")

    with progress_bar(progress) as bar:
        task = bar.add_task("fit", total=epochs, completed=run.epoch, figures=run.figures())
        try:
            while run.epoch < epochs and not run.stopped_early:
                order = np.random.default_rng((seed, run.epoch)).permutation(n) if shuffle else np.arange(n)
                run.train(recipe, data, _batches(order, batch_size, drop_last), rng)
                if validation is not None:
                    run.validate(recipe, validation_data, validation_batches, validation_rng)
                run.lower_rate()
                run.epoch += 1
                if saved is not None:
                    saved.save(run.epoch, *run.contents())
                bar.update(task, advance=1, figures=run.figures())
        finally:
            nnx.update(model, *run.variables())
            if saved is not None:
                saved.close()
    return run.history()


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[figures]}", markup=False),  # a metric may be named recall[/5]
    TimeElapsedColumn(),
)


def progress_bar(shown: bool) -> Progress:
    """A started bar, whose tasks have the field figures; within another one that rich can't join, none."""
    bar = Progress(*_COLUMNS, disable=not shown)
    try:
        bar.start()
    except LiveError:  # before its version 14.1, rich shows one thing at a time
        bar = Progress(disable=True)
    return bar


def _batches(order: np.ndarray, batch_size: int, drop_last: bool = False) -> list[Array]:
    """The order's full batches, "n b", and what is left over, "1 b"."""
    full = len(order) // batch_size * batch_size
    parts = [order[:full].reshape(-1, batch_size), order[None, full:]]
    return [jnp.asarray(part) for part in parts[: 1 if drop_last else 2] if part.size]


@functools.lru_cache(maxsize=64)
def _clipped(optimizer: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """One object for equal arguments, so that a second run compiles nothing."""
    return optax.chain(clip_grad_norm(clip_norm), optimizer)
