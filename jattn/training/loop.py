"""`fit`: train a Flax module on arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jattn.sharding import Rules
from jattn.training import arguments
from jattn.training.checkpoints import CheckpointError, Checkpoints, checksum, numbered_leaves
from jattn.training.placement import on, placement_of
from jattn.training.run import History, Run
from jattn.training.schedules import ReduceLROnPlateau
from jattn.training.settings import Settings
from jattn.training.steps import Loss, Metric, Recipe, State, check_evaluation

__all__ = ["fit", "progress_bar"]


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
    mesh: Mesh | None = None,
    rules: str | Rules | None = None,
    accumulate: int = 1,
    remat: str | None = None,
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
        mesh: devices to train on, with the losses of one device, up to rounding. The data lie whole on each device; a
            batch is split over some axes of the mesh, parameters and the optimiser's state lie by the rules, and so
            does the model afterwards. Its axes are automatic in here, whatever they are outside, and those of the
            model afterwards (`jattn.sharding.shard` puts it elsewhere). Where they are those
            of several processes (``jax.distributed``), all call this alike, with the same model and data; of each
            batch, each reads the examples of its own devices, so that NumPy arrays may be memory-mapped. Checkpoints
            need a folder that all see.
        rules: a name or a table of `jattn.sharding`; by default the layout that the mesh's axes are named after. A step
            brings together what is split over the axes of batches where it computes with it, and adds up gradients
            once for each use of a parameter. A last batch that these do not divide is computed whole on each device.
        accumulate: in how many pieces, one after the other, a batch is taken, whose gradients' mean is the step's; rng
            is another for each. On a mesh each device takes some of the pieces, for itself, with whole parameters,
            under "fsdp", too, and gradients are added up once in the end. A last batch that does not divide is taken in
            one piece. Not for models that change their own state.
        remat: what is kept for the backward pass, by its name in ``jax.checkpoint_policies``, such as
            ``"dots_with_no_batch_dims_saveable"``; the rest is computed again, which takes time and spares memory.
            Under "fsdp" parameters come together again, too; by ``"everything_saveable"`` nothing else is done again.
            Layers that a model has under ``nnx.remat`` do so without it, and spare more.

    Returns:
        The `History`.

    Raises:
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
    on_host = isinstance(mesh, Mesh) and mesh.is_multi_process
    data, n = arguments.examples("train", train, on_host=on_host)
    validation_data, validation_n = None, 0
    if validation is not None:
        validation_data, validation_n = arguments.examples("validation", validation, data, on_host=on_host)
    settings = Settings(
        loss=loss,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        metrics=metrics,
        clip_norm=clip_norm,
        plateau=plateau,
        patience=patience,
        nonfinite=nonfinite,
        wrt=wrt,
        checkpoints=checkpoints,
        progress=progress,
        mesh=mesh,
        rules=rules,
        accumulate=accumulate,
        remat=remat,
    ).checked(n, validates=validation is not None)

    with on(settings.mesh):
        return _trained(model, settings, n, data, validation_n, validation_data)


def _trained(
    model: nnx.Module, settings: Settings, n: int, data: PyTree, validation_n: int, validation_data: PyTree
) -> History:
    rng = jax.random.key(settings.seed)
    run = _start(model, settings)
    kept = {"train": data, "validation": validation_data}
    data, validation_data = (run.recipe.placement.data(x) for x in (data, validation_data))
    validation_rng = jax.random.fold_in(rng, 2**32 - 1)  # of no step
    validation_batches = _batches(np.arange(validation_n), settings.batch_size)
    for indices in validation_batches:  # a mistake shows now, not after an epoch
        check_evaluation(run.state.variables, validation_data, indices, validation_rng, run.recipe)
    saved = _resumed(run, settings, kept)

    with progress_bar(settings.progress) as bar:
        task = bar.add_task("fit", total=settings.epochs, completed=run.epoch, figures=run.figures())
        try:
            while run.epoch < settings.epochs and not run.stopped_early:
                order = _order(n, run.epoch, settings)
                run.train(data, _batches(order, settings.batch_size, settings.drop_last), rng)
                if validation_n:
                    run.validate(validation_data, validation_batches, validation_rng)
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


def _start(model: nnx.Module, settings: Settings) -> Run:
    """The run before its first step; the model is left in eval mode."""
    model.train()
    train_graph, parameters, rest = nnx.split(model, settings.wrt, ...)  # type: ignore[misc]
    model.eval()
    arguments.trainable(parameters, settings.wrt)
    placement = placement_of(model, settings.mesh, settings.rules)
    variables = placement.put((parameters, rest))
    recipe = Recipe(
        train_graph=train_graph,
        eval_graph=nnx.graphdef(model),
        wrt=settings.wrt,
        loss=settings.loss,
        metrics=tuple((settings.metrics or {}).items()),
        optimizer=settings.optimizer,
        skip=settings.nonfinite == "skip",
        placement=placement,
        accumulate=settings.accumulate,
        remat=settings.remat,
    )
    state = State(variables, settings.optimizer.init(variables[0]), jnp.int32(0), jnp.bool_(False))
    state = jax.tree.map(jnp.copy, placement.put(state))  # some is donated, and the model's own arrays must live
    return Run(state, recipe, settings)


def _resumed(run: Run, settings: Settings, data: dict[str, PyTree]) -> Checkpoints | None:
    """The run's checkpoints, from the last of which it goes on; None without a folder."""
    if settings.checkpoints is None:
        return None
    kept = {
        **settings.kept(),
        "data": checksum({name: numbered_leaves(arrays) for name, arrays in data.items()}),
        "model": checksum({"variables": numbered_leaves(run.state.variables)}),
        "optimizer": checksum({"state": numbered_leaves(run.state.opt_state)}),
    }
    saved = Checkpoints(Path(settings.checkpoints).expanduser(), kept)
    if found := saved.restore():
        run.resume(*found)
    if run.epoch > settings.epochs:
        raise CheckpointError(f"epochs must be at least the {run.epoch} of the checkpoint. Got {settings.epochs}.")
    return saved


def _order(n: int, epoch: int, settings: Settings) -> np.ndarray:
    """In which an epoch sees the examples."""
    return np.random.default_rng((settings.seed, epoch)).permutation(n) if settings.shuffle else np.arange(n)


def _batches(order: np.ndarray, batch_size: int, drop_last: bool = False) -> list[Array]:
    """The order's full batches, "n b", and what is left over, "1 b"."""
    full = len(order) // batch_size * batch_size
    parts = [order[:full].reshape(-1, batch_size), order[None, full:]]
    return [jnp.asarray(part) for part in parts[: 1 if drop_last else 2] if part.size]


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
