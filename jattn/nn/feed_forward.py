"""The network on each position of a transformer: with any activation, gated or not."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.nn.dropout import Dropout, split
from jattn.nn.layers import Initializer, Linear, default_bias_init, default_kernel_init

__all__ = ["Activation", "FeedForward", "GateFn", "activation_function", "hidden_of", "is_gated"]

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"] | Callable[[Array], Array]
GateFn = Callable[[Array, Array], Array]
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The function of that name, or the one given."""
    if callable(activation):
        return activation
    checks.one_of("activation", activation, tuple(_ACTIVATIONS))
    return _ACTIVATIONS[activation]


def is_gated(activation: Activation, gated: bool | GateFn) -> bool:
    """Whether there is a gate; ValueError if either argument says nothing that is known."""
    activation_function(activation)
    if callable(gated):
        return True
    return checks.flag("gated", gated)


def hidden_of(x: Array, gate: Array | None, activation: Activation, gated: bool | GateFn) -> Array:
    """What is between the two layers, of what the first one and the gate gave."""
    if gate is None:
        return activation_function(activation)(x)
    return gated(gate, x) if callable(gated) else activation_function(activation)(gate) * x


class FeedForward(nnx.Module):
    """The same two-layer network on each position: ``dropout(W_2 dropout(activation(W_1 x)))``.

    Gated: ``dropout(W_2 dropout(activation(W_gate x) * W_1 x))``, without activation on W_1; with SiLU, the SwiGLU of
    Llama, with GELU the GeGLU of Gemma.

    Args:
        features: m, the width of input and output.
        hidden_features: the width between.
        activation: ``"relu"``, ``"gelu"`` (exact), ``"gelu_tanh"``, its approximation, ``"silu"``, or a function.
        gated: whether there is a gate; or a function of W_gate x and W_1 x, in place of the product above.
        use_bias: whether the layers have biases.
        dropout_rate: in training, in [0, 1).
        hidden_dropout_rate: of the values between; dropout_rate by default.
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: the gate, Shazeer, GLU Variants Improve Transformer, 2020.

    Example:

        >>> network = FeedForward(8, 32, activation="silu", gated=True, use_bias=False, rngs=nnx.Rngs(0))
        >>> network(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: Activation = "relu",
        gated: bool | GateFn = False,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        hidden_dropout_rate: float | None = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(features=features, hidden_features=hidden_features)
        checks.flag("use_bias", use_bias)
        options: dict[str, Any] = dict(
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.linear1 = Linear(features, hidden_features, **options)
        self.gate = Linear(features, hidden_features, **options) if is_gated(activation, gated) else None
        self.linear2 = Linear(hidden_features, features, **options)
        self.activation: Activation = activation
        self.gated = gated
        self.dropout = Dropout(dropout_rate)
        self.hidden_dropout = Dropout(dropout_rate if hidden_dropout_rate is None else hidden_dropout_rate)

    def __call__(self, x: Float[Array, "*b t m"], *, rng: PRNGKeyArray | None = None) -> Float[Array, "*b t m"]:
        """The network's output; ``rng`` a ``jax.random.key`` for dropout in training."""
        x = checks.floating("x", x, "*b t m", 1)
        checks.width("x", x, self.linear1.in_features)
        inner, outer = split(rng, 2)
        gate = None if self.gate is None else self.gate(x)
        hidden = hidden_of(self.linear1(x), gate, self.activation, self.gated)
        return self.dropout(self.linear2(self.hidden_dropout(hidden, inner)), outer)
