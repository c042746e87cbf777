"""A gated recurrent unit with PyTorch's parameters, run as one scan over time."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn._engine.dtypes import widest
from jattn.masks import lengths
from jattn.nn.dropout import Dropout, split
from jattn.nn.layers import Initializer, Linear, default_bias_init, default_kernel_init

__all__ = ["GRU", "GRUCell"]


class GRUCell(nnx.Module):
    """One layer's step, with a bias on the input's side and one on the state's, as PyTorch and cuDNN have it.

    The reset gate acts after the state's bias; ``flax.nnx.GRUCell`` has neither that bias nor this order.
    """

    def __init__(self, in_features: int, hidden_features: int, **options: Any) -> None:
        self.input = Linear(in_features, 3 * hidden_features, **options)
        self.hidden = Linear(hidden_features, 3 * hidden_features, **options)

    def __call__(self, x: Float[Array, "b m"], state: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """The next state: ``z state + (1 - z) tanh(W x + r (U state + c))`` with the gates r and z."""
        input_r, input_z, input_n = jnp.split(self.input(x), 3, axis=-1)
        hidden_r, hidden_z, hidden_n = jnp.split(self.hidden(state), 3, axis=-1)
        reset = jax.nn.sigmoid(input_r + hidden_r)
        update = jax.nn.sigmoid(input_z + hidden_z)
        candidate = jnp.tanh(input_n + reset * hidden_n)
        return update * state + (1 - update) * candidate


class GRU(nnx.Module):
    """A stack of gated recurrent layers, dropout between them; on the same parameters the same as ``torch.nn.GRU``.

    Args:
        in_features: m, the input's width.
        hidden_features: n, the width of the state and of the output.
        num_layers: l, how many layers.
        dropout_rate: between layers in training, in [0, 1).
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, in the form of torch.nn.GRU.

    Example:

        >>> gru = GRU(4, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> outputs, state = gru(jnp.ones((3, 5, 4)))
        >>> outputs.shape, state.shape
        ((3, 5, 8), (2, 3, 8))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_layers: int = 1,
        dropout_rate: float = 0.0,
        *,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(in_features=in_features, hidden_features=hidden_features, num_layers=num_layers)
        options: dict[str, Any] = dict(
            kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        widths = [in_features, *[hidden_features] * (num_layers - 1)]
        self.layers = nnx.List([GRUCell(width, hidden_features, **options) for width in widths])
        self.dropout = Dropout(dropout_rate)
        self.in_features, self.hidden_features = in_features, hidden_features

    def __call__(
        self,
        x: Float[Array, "b t m"],
        state: Float[Array, "l b n"] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b t n"], Float[Array, "l b n"]]:
        """Run over a sequence.

        Args:
            x: ``b t m``; finite, also where it is padding.
            state: each layer's state before it, ``l b n``; zeros by default.
            valid_lens: ``b``; from there on an example's state stays as it is, and its outputs are zero, as with
                PyTorch's packed sequences.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The top layer's outputs ``b t n``, and each layer's last state ``l b n``.
        """
        x = checks.floating("x", x, "b t m", 3)
        checks.width("x", x, self.in_features)
        b, t, _ = x.shape
        initial = self.initial_state(b, x.dtype)
        if state is not None:
            initial = checks.floating("state", state, "l b n", 3).astype(initial.dtype)
        if initial.shape != (len(self.layers), b, self.hidden_features):
            raise ValueError(
                f"state must have shape {(len(self.layers), b, self.hidden_features)}, the axes l b n. "
                f"Got {initial.shape}."
            )
        real = jnp.ones((b, t), bool)
        if valid_lens is not None:
            rule = lengths(valid_lens, per_query=False)
            rule.check(Shape((b,), None, 1, t))
            real = jnp.broadcast_to(rule.as_array(1, t).reshape(-1, t), (b, t))
        rngs = None if rng is None else jax.random.split(rng, t)

        def step(state: Array, inputs: tuple[Array, Array, PRNGKeyArray | None]) -> tuple[Array, Array]:
            x, real, rng = inputs
            output, new_state = self.step(x, state, rng=rng)
            return jnp.where(real[:, None], new_state, state), jnp.where(real[:, None], output, 0)

        last, outputs = jax.lax.scan(step, initial, (jnp.swapaxes(x, 0, 1), real.T, rngs))
        return jnp.swapaxes(outputs, 0, 1), last

    def step(
        self, x: Float[Array, "b m"], state: Float[Array, "l b n"], *, rng: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b n"], Float[Array, "l b n"]]:
        """One step in time: the top layer's output ``b n`` and the new state ``l b n``."""
        states: list[Array] = []
        for layer, layer_state, layer_rng in zip(self.layers, state, split(rng, len(self.layers)), strict=True):
            x = self.dropout(x, layer_rng) if states else x
            x = layer(x, layer_state)
            states.append(x)
        return x, jnp.stack(states)

    def initial_state(self, b: int, dtype: Any = jnp.float32) -> Float[Array, "l b n"]:
        """Zeros, of the type that the layers compute in for inputs of ``dtype``."""
        dtype = self.layers[0].input.dtype or widest(dtype, self.layers[0].input.kernel.dtype)
        return jnp.zeros((len(self.layers), b, self.hidden_features), dtype)
