"""What `jattn.training.fit` compiles: many optimiser steps, and many batches of validation, as one scan each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jattn._engine.dtypes import at_least_float32
from jattn.training.arguments import variable_at
from jattn.training.placement import Placement

__all__ = [
    "Loss",
    "Metric",
    "Recipe",
    "State",
    "Steps",
    "check_evaluation",
    "evaluate",
    "learning_rates",
    "run_steps",
    "scalar_result",
    "select",
    "with_learning_rate",
]

Loss = Callable[[Any, Any, PRNGKeyArray], Array]
Metric = Callable[[Any, Any], Array]


class Recipe(NamedTuple):
    """What is fixed while compiling; equal recipes share what was compiled."""

    train_graph: Any  # the model's structure in training mode
    eval_graph: Any  # and in eval mode
    wrt: Any  # the filter that tells parameters from the rest
    loss: Loss
    metrics: tuple[tuple[str, Metric], ...]
    optimizer: optax.GradientTransformation
    skip: bool  # whether a step that is not finite is left out, or ends the run
    placement: Placement = Placement()
    accumulate: int = 1  # in how many pieces a batch is taken
    remat: str | None = None  # the policy that says what the backward pass keeps


class State(NamedTuple):
    """What a step changes."""

    variables: tuple[Any, Any]  # the parameters, and the model's other variables
    opt_state: Any
    step: Int[Array, ""]  # how many there were
    failed: Bool[Array, ""]  # whether the run has ended


class Steps(NamedTuple):
    """What each step tells."""

    loss: Float[Array, "n"]
    learning_rate: Float[Array, "n"] | None  # where the optimiser's state holds one
    finite: Bool[Array, "n"]  # the loss, and all of its gradient


def run_steps(
    state: State, data: PyTree, order: Int[Array, "n b"], rng: PRNGKeyArray, recipe: Recipe
) -> tuple[State, Steps]:
    """One step for each row of ``order``, the indices of a batch. A step that is not finite changes nothing.

    The optimiser's state is donated, the variables are not: an error or an interrupt in here must not destroy them.
    """
    data, order = recipe.placement.epoch(data, order)
    return _run_steps(state.variables, state[1:], data, order, rng, recipe)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="others")
def _run_steps(variables: Any, others: Any, data: Any, order: Any, rng: Any, recipe: Recipe) -> tuple[State, Steps]:
    optimizer = optax.with_extra_args_support(recipe.optimizer)

    def step(state: State, indices: Array) -> tuple[State, Steps]:
        parameters, _ = state.variables
        in_pieces = recipe.accumulate > 1 and len(jax.tree.leaves(indices)[0]) % recipe.accumulate == 0
        gradients_of = _gradients_by_pieces if in_pieces else _gradients
        value, changed, gradients = gradients_of(
            state.variables, data, indices, jax.random.fold_in(rng, state.step), recipe
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, parameters, value=value)
        finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in jax.tree.leaves((value, gradients))])
        choose = functools.partial(jnp.where, finite & ~state.failed)
        after = State(
            variables=jax.tree.map(choose, (optax.apply_updates(parameters, updates), changed), state.variables),
            opt_state=jax.tree.map(choose, opt_state, state.opt_state),
            step=state.step + 1,
            failed=state.failed | (~finite & (not recipe.skip)),
        )
        rates = learning_rates(opt_state)
        return recipe.placement.kept(after), Steps(value, rates[0] if len(rates) == 1 else None, finite)

    return jax.lax.scan(step, State(variables, *others), order)


def _gradients(variables: Any, data: Any, indices: Array, rng: Any, recipe: Recipe) -> tuple[Array, Any, Any]:
    """The loss of a batch, the model's other variables after it, and the gradients."""
    place, (parameters, rest) = recipe.placement, variables
    batch = place.batch(select(data, indices))
    (value, changed), gradients = _of_batch(parameters, rest, batch, rng, recipe, place)
    return value, changed, place.kept(gradients)


def _gradients_by_pieces(variables: Any, data: Any, indices: Array, rng: Any, recipe: Recipe) -> tuple[Array, Any, Any]:
    """The same, as means over the pieces of the batch, each of which has an rng of its own."""
    (parameters, rest), n = variables, recipe.accumulate

    def piece(shared: Any, parameters: Any, piece: Any) -> tuple[Array, Any]:
        (rest, data, rng), (number, indices) = shared, piece
        batch = select(data, indices)
        rng = jax.random.fold_in(rng, number)
        (value, changed), gradients = _of_batch(parameters, rest, batch, rng, recipe, Placement())
        _check_unchanged(rest, changed)
        return value, gradients

    pieces = (jnp.arange(n), jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), indices))
    total = recipe.placement.sum_of(piece, (rest, data, rng), parameters, pieces)
    value, gradients = jax.tree.map(lambda x: x / n, total)
    gradients = jax.tree.map(lambda x, y: x.astype(y.dtype), gradients, parameters)
    return value, rest, recipe.placement.kept(gradients)


def _of_batch(parameters: Any, rest: Any, batch: Any, rng: Any, recipe: Recipe, place: Placement) -> Any:
    """The loss and the model's other variables after it, and the gradients."""

    def loss(parameters: Any) -> tuple[Array, Any]:
        model = nnx.merge(recipe.train_graph, parameters, rest, copy=True)  # it may change its state
        with place.running(model, recipe.wrt):
            value = recipe.loss(model, batch, rng)
        _, _, changed = nnx.split(model, recipe.wrt, ...)  # type: ignore[misc]
        _check_same_variables(rest, changed)
        return scalar_result("loss", value), changed

    if recipe.remat is not None:
        loss = jax.checkpoint(loss, policy=place.keeping(getattr(jax.checkpoint_policies, recipe.remat)))
    return _value_and_grad(loss, parameters)


def _value_and_grad(loss: Callable[[Any], tuple[Array, Any]], parameters: Any) -> Any:
    """As JAX's, with an error where it would give zeros because the loss does not depend on the parameters."""
    asked = []

    @jax.custom_jvp
    def watch(x: Any) -> Any:
        return x

    @watch.defjvp
    def derivative(x: Any, dx: Any) -> Any:  # asked for by JAX only where x depends on the parameters
        asked.append(True)
        return *x, *dx

    def watched(parameters: Any) -> tuple[Any, Any]:
        value, rest = loss(parameters)
        return watch(value), rest

    result = jax.value_and_grad(watched, has_aux=True)(parameters)
    if not asked:
        raise ValueError(
            "loss must depend on the parameters that wrt selects. Got one that does not. Compute it with the model "
            "that it is given, not with the one outside."
        )
    return result


def evaluate(
    variables: tuple[Any, Any], data: PyTree, order: Int[Array, "n b"], rng: PRNGKeyArray, recipe: Recipe
) -> Float[Array, "numbers"]:
    """Loss and metrics in eval mode, the mean over the rows of ``order``; what the model changes in itself is lost."""
    return _evaluate(variables, *recipe.placement.epoch(data, order), rng, recipe)


def check_evaluation(
    variables: tuple[Any, Any], data: PyTree, order: Int[Array, "n b"], rng: PRNGKeyArray, recipe: Recipe
) -> None:
    """Raise what `evaluate` would, and compute nothing."""
    _evaluate.eval_shape(variables, *recipe.placement.epoch(data, order), rng, recipe)


@functools.partial(jax.jit, static_argnames="recipe")
def _evaluate(variables: Any, data: Any, order: Any, rng: Any, recipe: Recipe) -> Array:
    parameters, rest = variables

    def one(indices: Array) -> Array:
        batch = recipe.placement.batch(select(data, indices))
        model = nnx.merge(recipe.eval_graph, parameters, rest, copy=True)
        with recipe.placement.running(model, recipe.wrt):
            values = [scalar_result("loss", recipe.loss(model, batch, rng))]
            values += [scalar_result(f"metrics[{name!r}]", metric(model, batch)) for name, metric in recipe.metrics]
        return jnp.stack(values)

    return jax.lax.map(one, order).mean(axis=0)


def learning_rates(opt_state: Any) -> list[Float[Array, ""]]:
    """Those that the optimiser's state holds."""
    return [rate for _, rate in optax.tree.get_all_with_path(opt_state, "learning_rate", filtering=_is_array)]


def with_learning_rate(opt_state: Any, rate: float) -> Any:
    """The optimiser's state with another learning rate."""
    [as_it_was] = learning_rates(opt_state)
    return optax.tree.set(opt_state, _is_array, learning_rate=jnp.asarray(rate, as_it_was.dtype))


def _is_array(path: Any, value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def select(data: PyTree, indices: PyTree) -> PyTree:
    """The examples of these indices ``b``; where there are no data, these are the examples."""
    return indices if data is None else jax.tree.map(lambda x: x[indices], data)


def scalar_result(name: str, x: Any) -> Float[Array, ""]:
    """What a loss or metric returned, in float32 or wider, so that a mean over many keeps its digits."""
    if not isinstance(x, jax.Array | np.ndarray | np.number | float | int) or jnp.shape(x) != ():
        fact = f"an array of shape {jnp.shape(x)}" if isinstance(x, jax.Array) else f"{type(x).__name__}"
        raise ValueError(f"{name} must return one number, the mean over the batch. Got {fact}.")
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x))


def _check_same_variables(before: Any, after: Any) -> None:
    structures: list[Any] = [jax.tree.structure(x) for x in (before, after)]
    if structures[0] != structures[1]:
        raise ValueError(
            "loss must not add variables to the model, as sow does, or take some away. Got a model with other "
            "variables after the call than before it."
        )


def _check_unchanged(before: Any, after: Any) -> None:
    """Raise ValueError if the model has changed its state, of which pieces that run side by side would make several."""
    changed = [
        path
        for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if x is not y
    ]
    if changed:
        raise ValueError(
            "accumulate must be 1 for a model that changes its own state while training. Got "
            f"{variable_at(changed[0])}, which changes."
        )
