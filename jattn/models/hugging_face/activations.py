"""The activations that `transformers` names, for models of all kinds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jattn._engine import checks
from jattn.nn.feed_forward import Activation

__all__ = ["ACTIVATIONS", "TanhGelu", "activation_of"]


@dataclasses.dataclass(frozen=True)
class TanhGelu:
    """GELU's tanh approximation with sqrt(2 / pi) in as many digits as a model's code has."""

    factor: float

    def __call__(self, x: Array) -> Array:
        """Of each x."""
        return 0.5 * x * (1 + jnp.tanh(self.factor * x * (1 + 0.044715 * x * x)))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _clipped_gelu(x: Array) -> Array:
    return jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10)


def _laplace(x: Array) -> Array:
    return 0.5 * (1 + jax.scipy.special.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


def _linear(x: Array) -> Array:
    return x


def _squared_relu(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


# By transformers' name; those with parameters of their own, prelu and xielu, are not here.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_10": _clipped_gelu,
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": TanhGelu(0.7978845608),
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": "relu",
    "relu2": _squared_relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": "silu",
    "swish": "silu",
    "tanh": jnp.tanh,
}


def activation_of(config: Mapping[str, Any], name: str, default: str) -> Activation:
    """The activation here, for the setting of that name.

    Example:

        >>> activation_of({"hidden_act": "gelu_new"}, "hidden_act", "gelu"), activation_of({}, "hidden_act", "gelu")
        ('gelu_tanh', 'gelu')
    """
    given = config.get(name, default)
    checks.one_of(f"config's {name}", given, tuple(ACTIVATIONS))
    return ACTIVATIONS[given]
