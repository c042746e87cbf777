"""Optimisers that mean what PyTorch's of the same name mean, built from optax's parts.

Each keeps its learning rate, and whatever else follows a schedule, in its state (`optax.inject_hyperparams`), so that
`jattn.training.fit` can record the rate, and lower it on a plateau. ``learning_rate``, ``b1`` and ``momentum`` are
numbers or schedules, functions of the number of updates made so far. Parity is asserted in float32 and float64.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jattn._engine import checks

__all__ = ["Schedule", "adam", "adamw", "clip_grad_norm", "sgd"]

Schedule = Callable[[Any], Any]


def adam(
    learning_rate: float | Schedule = 1e-3,
    b1: float | Schedule = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam as ``torch.optim.Adam``: its weight decay is an L2 penalty, ``weight_decay * parameter`` in the gradient.

    Args:
        learning_rate: the step's size.
        b1, b2: how much of the moments each step keeps.
        eps: added to the root of the second moment.
        weight_decay: of the L2 penalty.

    Raises:
        ValueError: if a number is negative, or b1 or b2 not below 1.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015.

    Example:

        >>> optimizer = adam(1e-3, weight_decay=1e-4)
        >>> state = optimizer.init(jnp.ones(3))
    """
    b2, eps, weight_decay = _check("b2", b2), _check("eps", eps), _check("weight_decay", weight_decay)
    return _with_hyperparameters(
        lambda learning_rate, b1: optax.chain(
            optax.add_decayed_weights(weight_decay),
            _scale_by_adam(b1, b2, eps),
            optax.scale_by_learning_rate(learning_rate),
        ),
        learning_rate=learning_rate,
        b1=b1,
    )


def adamw(
    learning_rate: float | Schedule = 1e-3,
    b1: float | Schedule = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``. Arguments as in `adam`.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.

    Example:

        >>> optimizer = adamw(1e-3)
    """
    b2, eps, weight_decay = _check("b2", b2), _check("eps", eps), _check("weight_decay", weight_decay)
    return _with_hyperparameters(
        lambda learning_rate, b1: optax.chain(
            _scale_by_adam(b1, b2, eps),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        ),
        learning_rate=learning_rate,
        b1=b1,
    )


def sgd(
    learning_rate: float | Schedule = 1e-3,
    momentum: float | Schedule = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Gradient descent with momentum, as ``torch.optim.SGD``.

    ``velocity = momentum * velocity + gradient``, and ``learning_rate * velocity`` is subtracted.

    Args:
        learning_rate: the step's size.
        momentum: how much of the velocity each step keeps.
        nesterov: whether ``gradient + momentum * velocity`` is subtracted in the velocity's place.
        weight_decay: of an L2 penalty.

    Raises:
        ValueError: if a number is negative.

    Example:

        >>> optimizer = sgd(0.1, momentum=0.9)
    """
    weight_decay = _check("weight_decay", weight_decay)
    return _with_hyperparameters(
        lambda learning_rate, momentum: optax.chain(
            optax.add_decayed_weights(weight_decay),
            _trace(momentum, nesterov),
            optax.scale_by_learning_rate(learning_rate),
        ),
        learning_rate=learning_rate,
        momentum=momentum,
    )


def clip_grad_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale the gradients by ``min(1, max_norm / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_``.

    ``optax.clip_by_global_norm`` has no 1e-6 there.

    Args:
        max_norm: the largest norm of all gradients together.

    Raises:
        ValueError: if max_norm is not above 0.

    Example:

        >>> clip = clip_grad_norm(1.0)
        >>> gradients, _ = clip.update(jnp.array([3.0, 4.0]), clip.init(None))
        >>> print(optax.tree.norm(gradients).round(3))
        1.0
    """
    max_norm = checks.number("max_norm", max_norm, "(0, inf)")

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _with_hyperparameters(
    make: Callable[..., optax.GradientTransformation], **hyperparameters: float | Schedule
) -> optax.GradientTransformation:
    """``make`` of the hyperparameters, the learning rate and any schedules being kept in the state.

    Other numbers stay Python's, so that ``1 - b1`` is not a difference of float32. What is in the state is in float32
    or wider, also where the parameters are bfloat16, which has no 0.01.
    """
    numbers = [name for name, x in hyperparameters.items() if name != "learning_rate" and not callable(x)]
    checked = {name: x if callable(x) else _check(name, x) for name, x in hyperparameters.items()}
    return optax.inject_hyperparams(make, static_args=numbers, hyperparam_dtype=float)(**checked)


def _check(name: str, x: Any) -> Any:
    """A number that PyTorch would take, as a float."""
    number = checks.number(name, x, "[0, 1)" if name in ("b1", "b2") else "[0, inf)")
    return float(number) if checks.is_concrete(number) else number


def _trace(momentum: Any, nesterov: bool) -> optax.GradientTransformation:
    """`optax.trace` whose velocity keeps its dtype, also under a scheduled momentum, which is in float32."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, optax.TraceState]:
        def add(g: Any, v: Any) -> Any:
            return (g + momentum * v).astype(v.dtype)

        velocity = jax.tree.map(add, gradients, state.trace)
        return jax.tree.map(add, gradients, velocity) if nesterov else velocity, optax.TraceState(velocity)

    return optax.GradientTransformation(lambda params: optax.TraceState(jax.tree.map(jnp.zeros_like, params)), update)


def _scale_by_adam(b1: Any, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with bias corrections that are exact in float32 too.

    ``1 - 0.999**count`` loses four digits of seven in float32, as long as count is small; PyTorch computes it in
    Python's float64.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.int32(0), zeros, zeros)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, gradients)
        c1, c2 = _one_minus_power(b1, count), _one_minus_power(b2, count)
        updates = jax.tree.map(lambda m, v: m / c1.astype(m.dtype) / (jnp.sqrt(v / c2.astype(v.dtype)) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _one_minus_power(b: Any, count: Any) -> jax.Array:
    """``1 - b**count``."""
    logarithm = jnp.log(b) if isinstance(b, jax.Array) else math.log(b) if b > 0 else -math.inf
    return -jnp.expm1(count.astype(float) * logarithm)
