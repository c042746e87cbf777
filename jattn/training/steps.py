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

Loss = Callable[[Any, Any, PRNGKeyArray], Array]
Metric = Callable[[Any, Any], Array]


class Recipe(NamedTuple):
    """What is fixed while compiling; equal recipes share what was compiled."""

    train_graph: Any  # the model's structure in training mode
    eval_graph: Any  # and in eval mode
    wrt: Any  # the filter that tells parameters from the rest
    loss: Loss
    metrics: tuple[Metric, ...]
    optimizer: optax.GradientTransformation
    skip: bool  # whether a step that is not finite is left out, or ends the run


class State(NamedTuple):
    """What a step changes."""

    parameters: Any
    rest: Any  # the model's other variables
    opt_state: Any
    step: Int[Array, ""]  # how many there were
    failed: Bool[Array, ""]  # whether the run has ended


class Steps(NamedTuple):
    """What a step tells."""

    loss: Float[Array, "n"]
    learning_rate: Float[Array, "n"]
    finite: Bool[Array, "n"]  # the loss, and all of its gradient


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def run_steps(
    state: State, data: PyTree, order: Int[Array, "n b"], rng: PRNGKeyArray, recipe: Recipe
) -> tuple[State, Steps]:
    """One step for each row of ``order``, the indices of a batch. A step that is not finite changes nothing."""

    def step(state: State, indices: Array) -> tuple[State, Steps]:
        batch = _select(data, indices)

        def loss(parameters: Any) -> tuple[Array, Any]:
            model = nnx.merge(recipe.train_graph, parameters, state.rest, copy=True)  # a model may change its state
            value = recipe.loss(model, batch, jax.random.fold_in(rng, state.step))
            _, _, rest = nnx.split(model, recipe.wrt, ...)  # type: ignore[misc]
            return _number("loss", value), rest

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(state.parameters)
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.parameters)
        updated = (optax.apply_updates(state.parameters, updates), rest, opt_state)
        finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in jax.tree.leaves((value, gradients))])
        go = finite & ~state.failed
        before = (state.parameters, state.rest, state.opt_state)
        parameters, rest, opt_state = jax.tree.map(functools.partial(jnp.where, go), updated, before)
        failed = state.failed | (~finite & (not recipe.skip))
        after = State(parameters, rest, opt_state, state.step + 1, failed)
        return after, Steps(value, learning_rate(opt_state), finite)

    return jax.lax.scan(step, state, order)


@functools.partial(jax.jit, static_argnames="recipe")
def evaluate(
    state: State, data: PyTree, order: Int[Array, "n b"], rng: PRNGKeyArray, recipe: Recipe
) -> Float[Array, "numbers"]:
    """Loss and metrics in eval mode, the mean over the rows of ``order``."""

    def one(indices: Array) -> Array:
        batch = _select(data, indices)
        model = nnx.merge(recipe.eval_graph, state.parameters, state.rest)
        values = [_number("loss", recipe.loss(model, batch, rng))]
        return jnp.stack(values + [_number("a metric", metric(model, batch)) for metric in recipe.metrics])

    return jax.lax.map(one, order).mean(axis=0)


def learning_rate(opt_state: Any) -> Float[Array, ""]:
    """The one that the optimiser's state holds; NaN if it holds none, or several."""
    try:
        return jnp.asarray(optax.tree.get(opt_state, "learning_rate", jnp.nan, filtering=_is_array))
    except KeyError:
        return jnp.asarray(jnp.nan)


def with_learning_rate(opt_state: Any, rate: float) -> Any:
    """The optimiser's state with another learning rate."""
    as_it_was = jnp.asarray(rate, learning_rate(opt_state).dtype)
    return optax.tree.set(opt_state, _is_array, learning_rate=as_it_was)


def _is_array(path: Any, value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _select(data: PyTree, indices: Int[Array, "b"]) -> PyTree:
    return jax.tree.map(lambda x: x[indices], data)


def _number(name: str, x: Any) -> Float[Array, ""]:
    if not isinstance(x, jax.Array | np.ndarray | float | int) or jnp.shape(x) != ():
        fact = f"an array of shape {jnp.shape(x)}" if isinstance(x, jax.Array) else f"{type(x).__name__}"
        raise ValueError(f"{name} must return one number, the mean over the batch. Got {fact}.")
    return jnp.asarray(x, jnp.result_type(x, jnp.bfloat16))
