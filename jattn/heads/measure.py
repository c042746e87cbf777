"""How much each head of a model matters, by several measures on the same data."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from jaxtyping import Array, PRNGKeyArray, PyTree

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.heads.gates import counts, gated
from jattn.heads.metrics import METRICS, asked_for
from jattn.heads.records import Importance, Row
from jattn.heads.watching import figures, watched
from jattn.training import NonFiniteError, arguments
from jattn.training.loop import progress_bar
from jattn.training.steps import Loss, scalar_result, select

__all__ = ["checked_settings", "importance"]

PerHead = Mapping[str, Any]  # from the name of a metric, or the path of a layer, to an array "h"
# How many examples have their gradients taken at once: each has one for every output projection.
EXAMPLES_AT_ONCE = 8


def importance(
    model: nnx.Module,
    data: PyTree,
    *,
    loss: Loss,
    batch_size: int,
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    progress: bool = True,
) -> Importance:
    """Measure how much each head matters to ``loss``: by its weights, its output, gradients, and by leaving it out.

    `METRICS` says what each measure means and where it misleads. The model runs in eval mode, on a copy. A measure is
    taken for each batch; its value is the mean over batches, weighted by their examples, its spread their standard
    deviation (0 where there is one batch). Memory is linear in the sequence.

    A query that may attend to nothing does not count in measures of weights and outputs, nor, in self-attention, one
    that is padding by ``valid_lens`` of one length an example (by a boolean key_padding_mask in
    `jattn.nn.torch.MultiheadAttention`). In cross-attention, and under other masks, padding queries count: nothing
    there tells which they are.

    Args:
        model: any with heads (see `layers`).
        data: arrays in any nest, whose first axis counts the examples.
        loss: ``loss(model, batch, rng)``, one number, the mean over the batch, exactly as in `jattn.training.fit`. The
            gradient measures call it with batches of one example.
        batch_size: examples a batch. The last one may be smaller, which compiles once more.
        metrics: some of the names in `METRICS`; all by default.
        seed: of the rng that loss is given, the same for every measure of a batch.
        progress: whether to show a progress bar.

    Returns:
        The `Importance`.

    Raises:
        NonFiniteError: if a figure is NaN or infinite.

    Example:

        >>> from jattn.nn import MultiHeadAttention
        >>> attend = MultiHeadAttention(num_heads=3, in_features=12, rngs=nnx.Rngs(0))
        >>> def loss(model, batch, rng):
        ...     x, target = batch
        ...     return ((model(x) - target) ** 2).mean()
        >>> x = jax.random.normal(jax.random.key(0), (8, 5, 12))
        >>> target = gated(attend, {"": jnp.array([1.0, 0.0, 1.0])})(x)  # without head 1
        >>> found = importance(attend, (x, target), loss=loss, batch_size=4, progress=False)
        >>> found.ranking("leave_one_out")[0]
        ('', 1)
    """
    heads = counts(model)
    arguments.not_traced(model, data, name="importance")
    data, n = arguments.examples("data", data)
    batch_size, asked, seed = checked_settings(loss, batch_size, metrics, seed, progress)
    passes = [of for of in _PASSES if set(_PASSES[of]) & set(asked)]

    copy = nnx.clone(model)
    copy.eval()
    graph, state = nnx.split(copy)
    starts = range(0, n, batch_size)
    by_batch: dict[str, list[PerHead]] = {name: [] for name in asked}
    with progress_bar(progress) as bar:
        task = bar.add_task("importance", total=len(starts) * len(passes), figures="")
        for i, start in enumerate(starts):
            batch = select(data, jnp.arange(start, min(start + batch_size, n)))
            rng = jax.random.fold_in(jax.random.key(seed), i)
            for of in passes:
                bar.update(task, figures=", ".join(name for name in _PASSES[of] if name in asked))
                measured = jax.tree.map(lambda x: np.asarray(x, np.float64), of(state, batch, rng, graph, loss))
                for path, name in ((path, name) for path in heads for name in _PASSES[of] if name in asked):
                    _check_finite(measured[path][name], path, name, i)
                for name in set(_PASSES[of]) & set(asked):
                    by_batch[name].append({path: measured[path][name] for path in heads})
                bar.update(task, advance=1)
    sizes = [min(batch_size, n - start) for start in starts]
    return Importance(tuple(_table_rows(heads, by_batch, sizes)), examples=n, batches=len(starts))


def checked_settings(
    loss: Any, batch_size: Any, metrics: Any, seed: Any, progress: Any
) -> tuple[int, tuple[str, ...], int]:
    """The batch size, metrics and seed of a measurement, as Python's own, found to fit like the rest."""
    arguments.function("loss", loss, "model", "batch", "rng")
    batch_size = checks.number("batch_size", batch_size, "[1, inf)", integer=True)
    seed = checks.number("seed", seed, "[0, 4294967296)", integer=True)
    checks.flag("progress", progress)
    return batch_size, asked_for(metrics), seed


def _table_rows(heads: dict[str, int], by_batch: dict[str, list[PerHead]], sizes: list[int]) -> Any:
    for path, h in heads.items():
        for name, batches in by_batch.items():
            values = np.stack([np.asarray(of[path]) for of in batches])
            means = np.average(values, axis=0, weights=sizes)
            spreads = np.sqrt(np.average((values - means) ** 2, axis=0, weights=sizes))
            for head in range(h):
                yield Row(path, head, name, float(means[head]), float(spreads[head]))


def _check_finite(values: np.ndarray, path: str, name: str, batch: int) -> None:
    if not np.isfinite(values).all():
        head = int(np.argmin(np.isfinite(values)))
        raise NonFiniteError(
            f"importance must be finite. Got {name} {values[head]} of head {head} in {path or 'the layer'}, batch "
            f"{batch}. Look for NaN in the data and parameters, and for a batch where no query may attend to anything."
        )


# ----------------------------------------------------------------------------------------------------------------------
# What is compiled: one function for each kind of pass over a batch, from the path of a layer to its figures.

_jitted = functools.partial(jax.jit, static_argnames=("graph", "loss"))


@_jitted
def _of_weights(state: Any, batch: Any, rng: PRNGKeyArray, graph: Any, loss: Loss) -> Mapping[str, PerHead]:
    model, watches = watched(nnx.merge(graph, state))
    try:
        scalar_result("loss", loss(model, batch, rng))
    except TraceContextError as error:
        raise ValueError(
            "loss must call the model outside of jax.vmap, jax.checkpoint and jax.lax's loops for measures of weights. "
            "Got a call inside one. A model takes whole batches."
        ) from error
    return figures(model, watches)


@_jitted
def _of_gradients(state: Any, batch: Any, rng: PRNGKeyArray, graph: Any, loss: Loss) -> Mapping[str, PerHead]:
    model = nnx.merge(graph, state)

    def slopes(example: Any) -> dict[str, Array]:
        alone = jax.tree.map(lambda x: x[None], example)
        return jax.grad(lambda gates: scalar_result("loss", loss(gated(model, gates), alone, rng)))(_ones(model))

    by_example = jax.lax.map(slopes, batch, batch_size=EXAMPLES_AT_ONCE)
    return {
        path: {"gradient": jnp.abs(x).mean(axis=0), "taylor": (x**2).mean(axis=0)} for path, x in by_example.items()
    }


@_jitted
def _of_absence(state: Any, batch: Any, rng: PRNGKeyArray, graph: Any, loss: Loss) -> Mapping[str, PerHead]:
    model = nnx.merge(graph, state)
    ones = _ones(model)
    flat, unflatten = jax.flatten_util.ravel_pytree(ones)

    def without(head: Array) -> Array:
        return scalar_result("loss", loss(gated(model, unflatten(flat.at[head].set(0))), batch, rng))

    whole = scalar_result("loss", loss(gated(model, ones), batch, rng))
    rises = unflatten(jax.lax.map(without, jnp.arange(len(flat))) - whole)
    return {path: {"leave_one_out": x} for path, x in rises.items()}


_PASSES: dict[Any, tuple[str, ...]] = {
    _of_weights: ("l1", "l2", "entropy", "variance", "output_variance", "confidence"),
    _of_gradients: ("gradient", "taylor"),
    _of_absence: ("leave_one_out",),
}


def _ones(model: nnx.Module) -> dict[str, Array]:
    dtype = at_least_float32(jax.tree.leaves(nnx.state(model, nnx.Param))[0])
    return {path: jnp.ones(h, dtype) for path, h in counts(model).items()}
