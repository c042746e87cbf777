"""Llama: a decoder with rotary positions and grouped heads. v is the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import causal
from jattn.models import hugging_face, llama_weights
from jattn.nn import Linear, MultiHeadAttention, RMSNorm, embedding
from jattn.nn.dropout import split
from jattn.nn.weights import as_pair, in_turn

__all__ = ["Llama", "LlamaBlock", "SwiGLU"]


class SwiGLU(nnx.Module):
    """A gated network on each position: ``W_down (silu(W_gate x) * W_up x)``, without biases.

    Source: Shazeer, GLU Variants Improve Transformer, 2020.
    """

    def __init__(self, features: int, hidden_features: int, **types: Any) -> None:
        self.gate = Linear(features, hidden_features, use_bias=False, **types)
        self.up = Linear(features, hidden_features, use_bias=False, **types)
        self.down = Linear(hidden_features, features, use_bias=False, **types)

    def __call__(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        """The network's output."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nnx.Module):
    """Causal self-attention with rotary positions and a SwiGLU f, each with a residual: ``x = x + f(norm(x))``."""

    def __init__(self, features: int, hidden_features: int, epsilon: float, *, heads: Any, **types: Any) -> None:
        self.norm1 = RMSNorm(features, epsilon=epsilon, **types)
        self.attention = MultiHeadAttention(in_features=features, **heads, **types)
        self.norm2 = RMSNorm(features, epsilon=epsilon, **types)
        self.feed_forward = SwiGLU(features, hidden_features, **types)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        valid_lens: Any = None,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t m"] | Any:
        """The output; with return_weights also the attention weights."""
        attended = self.attention(
            self.norm1(x), valid_lens=valid_lens, mask=causal(), return_weights=return_weights, rng=rng
        )
        y, weights = as_pair(attended, return_weights)
        x = x + y
        x = x + self.feed_forward(self.norm2(x))
        return (x, weights) if return_weights else x


class Llama(hugging_face.PretrainedModel):
    """Token embeddings, pre-norm blocks without biases, a norm, and logits.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        num_heads: query heads in each block.
        num_kv_heads: key and value heads, a divisor of num_heads, which it is by default.
        num_layers: how many blocks.
        feedforward_features: the SwiGLU's inner width.
        head_features: d, the width of a head; ``m / num_heads`` by default.
        rotary_base: of the rotary positions' wavelengths.
        tied: whether the logits are products with the token embedding, rather than with weights of their own.
        attention_dropout_rate: of the attention weights, in training.
        norm_epsilon: of the norms.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Touvron et al., Llama 2: Open Foundation and Fine-Tuned Chat Models, 2023.

    Example:

        >>> options = dict(features=16, num_heads=4, num_kv_heads=2, num_layers=2, feedforward_features=24)
        >>> model = Llama(50, **options, rngs=nnx.Rngs(0))
        >>> logits, weights = model(jnp.ones((2, 5), int), valid_lens=jnp.array([5, 3]), return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((2, 5, 50), 2, (2, 4, 5, 5))
    """

    hugging_face = llama_weights.LLAMA_FAMILY
    max_length = None  # rotary positions have none

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        num_kv_heads: int | None = None,
        head_features: int | None = None,
        rotary_base: float = 10000.0,
        tied: bool = False,
        attention_dropout_rate: float = 0.0,
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        heads: dict[str, Any] = dict(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qkv_features=None if head_features is None else num_heads * head_features,
            rotary_base=rotary_base,
            dropout_rate=attention_dropout_rate,
        )
        self.embedding = embedding(vocab_size, features, **types)
        block = (features, feedforward_features, norm_epsilon)
        self.blocks = nnx.List([LlamaBlock(*block, heads=heads, **types) for _ in range(num_layers)])
        self.norm = RMSNorm(features, epsilon=norm_epsilon, **types)
        self.output = None if tied else Linear(features, vocab_size, use_bias=False, **types)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        valid_lens: int | Int[Array, "b"] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Any:
        """The logits of the token after each; arguments and result as in `GPT2`."""
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "b t", 2)
        x, rngs = self.embedding(tokens), split(rng, len(self.blocks))
        x, weights = in_turn(self.blocks, x, valid_lens, return_weights=return_weights, rngs=rngs)
        x = self.norm(x)
        logits = self.embedding.attend(x) if self.output is None else self.output(x)
        return (logits, weights) if return_weights else logits
