"""The transformer block: attention and a network on each position, with residuals and layer norms."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask, all_of
from jattn.masks import causal as causal_mask
from jattn.nn.dropout import Dropout, split
from jattn.nn.layers import Initializer, LayerNorm, Linear, default_bias_init, default_kernel_init
from jattn.nn.multi_head import MultiHeadAttention
from jattn.nn.weights import as_pair

__all__ = ["ACTIVATION_FUNCTIONS", "Activation", "FeedForward", "TransformerBlock"]

Activation = Literal["relu", "gelu", "gelu_tanh"]
ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class FeedForward(nnx.Module):
    """The same two-layer network on each position: ``dropout(W_2 dropout(activation(W_1 x)))``.

    Args:
        features: m, the width of input and output.
        hidden_features: the width between.
        activation: ``"relu"``, ``"gelu"``, the exact one, or ``"gelu_tanh"``, its approximation.
        dropout_rate: in training, in [0, 1).
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> FeedForward(8, 32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: Activation = "relu",
        dropout_rate: float = 0.0,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.one_of("activation", activation, tuple(ACTIVATION_FUNCTIONS))
        options: dict[str, Any] = dict(
            kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.linear1 = Linear(features, hidden_features, **options)
        self.linear2 = Linear(hidden_features, features, **options)
        self.activation = activation
        self.dropout = Dropout(dropout_rate)

    def __call__(self, x: Float[Array, "*b t m"], *, rng: PRNGKeyArray | None = None) -> Float[Array, "*b t m"]:
        """The network's output; ``rng`` a ``jax.random.key`` for dropout in training."""
        x = checks.floating("x", x, "*b t m", 1)
        checks.width("x", x, self.linear1.in_features)
        inner, outer = split(rng, 2)
        x = self.dropout(ACTIVATION_FUNCTIONS[self.activation](self.linear1(x)), inner)
        return self.dropout(self.linear2(x), outer)


class TransformerBlock(nnx.Module):
    """Self-attention, optionally attention to a memory, and a feed-forward network, each f with a residual.

    ``norm="post"``: ``x = dropout(norm(x + f(x)))``, dropout here and none inside the feed-forward network.
    ``norm="pre"``: ``x = x + f(norm(x))``, dropout inside the feed-forward network.

    Args:
        num_heads: how many query heads.
        features: m, the width.
        feedforward_features: the feed-forward network's inner width.
        norm: ``"post"`` (Vaswani et al., 2017) or ``"pre"`` (Xiong et al., 2020).
        activation: ``"relu"``, ``"gelu"``, the exact one, or ``"gelu_tanh"``, its approximation.
        dropout_rate: in training, in [0, 1).
        attention_dropout_rate: of the attention weights.
        use_bias: whether the attention's projections have biases.
        causal: whether self-attention sees the past only.
        cross_attention: whether there is a second attention, to a memory of the same width. Its norm is ``norm2``,
            the feed-forward network's then ``norm3``.
        num_kv_heads, normalize_qk: as in `MultiHeadAttention`, for both attentions.
        rotary_base: as there, for self-attention.
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> block = TransformerBlock(num_heads=2, features=8, feedforward_features=32, causal=True, rngs=nnx.Rngs(0))
        >>> x, weights = block(jnp.ones((2, 5, 8)), return_weights=True)
        >>> x.shape, weights.shape
        ((2, 5, 8), (2, 2, 5, 5))
    """

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm: Literal["post", "pre"] = "post",
        activation: Activation = "relu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        use_bias: bool = True,
        causal: bool = False,
        cross_attention: bool = False,
        num_kv_heads: int | None = None,
        normalize_qk: bool = False,
        rotary_base: float | None = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.one_of("norm", norm, ("post", "pre"))
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        inits: dict[str, Any] = dict(kernel_init=kernel_init, bias_init=bias_init)
        heads: dict[str, Any] = dict(
            num_kv_heads=num_kv_heads,
            use_bias=use_bias,
            normalize_qk=normalize_qk,
            dropout_rate=attention_dropout_rate,
        )
        self.pre_norm = norm == "pre"
        self.causal = causal
        self.attention = MultiHeadAttention(num_heads, features, rotary_base=rotary_base, **heads, **inits, **types)
        # The positions of a memory are not those of x, so cross attention is never rotary.
        self.cross_attention = (
            MultiHeadAttention(num_heads, features, **heads, **inits, **types) if cross_attention else None
        )
        self.feed_forward = FeedForward(
            features,
            feedforward_features,
            activation=activation,
            dropout_rate=dropout_rate if self.pre_norm else 0.0,
            **inits,
            **types,
        )
        self.norm1 = LayerNorm(features, **types)
        self.norm2 = LayerNorm(features, **types)
        self.norm3 = LayerNorm(features, **types) if cross_attention else None
        self.dropout = Dropout(0.0 if self.pre_norm else dropout_rate)

    def __call__(
        self,
        x: Float[Array, "*b t m"],
        memory: Float[Array, "*b s m"] | None = None,
        *,
        valid_lens: int | Int[Array, "..."] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        memory_valid_lens: int | Int[Array, "..."] | None = None,
        memory_mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b t m"] | Any:
        """Run the block.

        Args:
            x: ``*b t m``.
            memory: ``*b s m``, what cross attention attends to.
            valid_lens, mask: who may attend to whom within x, as in `MultiHeadAttention`.
            memory_valid_lens, memory_mask: likewise for the memory.
            return_weights: also return the weights ``*b h t t``; with cross attention the pair of self-attention's and
                cross attention's (``*b h t s``).
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``*b t m``; with return_weights also the weights.
        """
        x = checks.floating("x", x, "*b t m", 2)
        checks.width("x", x, self.norm1.num_features)
        if memory is None and self.cross_attention is not None:
            raise ValueError("memory must be given to a block with cross_attention=True. Got None.")
        if memory is not None and self.cross_attention is None:
            raise ValueError(
                "memory must be None for a block with cross_attention=False. Got an array. "
                "Make the block with cross_attention=True."
            )
        if memory is None and (memory_valid_lens is not None or memory_mask is not None):
            raise ValueError("memory_valid_lens and memory_mask must be None without a memory. Got at least one.")
        if self.causal:
            mask = all_of(causal_mask(), mask)
        rngs = split(rng, 6)
        # The residual stream has one axis of tokens: with several, XLA on a CPU fuses the whole chain of its gradients
        # anew into the operands of each product.
        shape, x = x.shape, x.reshape(-1, x.shape[-1])

        attended = self.attention(
            self._before(self.norm1, x).reshape(shape),
            valid_lens=valid_lens,
            mask=mask,
            return_weights=return_weights,
            rng=rngs[0],
        )
        y, weights = as_pair(attended, return_weights)
        x = self._after(self.norm1, x, y.reshape(x.shape), rngs[1])

        if self.cross_attention is not None:
            attended = self.cross_attention(
                self._before(self.norm2, x).reshape(shape),
                memory,
                valid_lens=memory_valid_lens,
                mask=memory_mask,
                return_weights=return_weights,
                rng=rngs[2],
            )
            y, cross_weights = as_pair(attended, return_weights)
            x = self._after(self.norm2, x, y.reshape(x.shape), rngs[3])
            weights = (weights, cross_weights)

        norm = self.norm2 if self.norm3 is None else self.norm3
        y = self.feed_forward(self._before(norm, x), rng=rngs[4])
        x = self._after(norm, x, y, rngs[5]).reshape(shape)
        return (x, weights) if return_weights else x

    def _before(self, norm: LayerNorm, x: Array) -> Array:
        """What a sublayer sees of x."""
        return norm(x) if self.pre_norm else x

    def _after(self, norm: LayerNorm, x: Array, y: Array, rng: PRNGKeyArray | None) -> Array:
        """x with a sublayer's output y added."""
        return x + y if self.pre_norm else self.dropout(norm(x + y), rng)
