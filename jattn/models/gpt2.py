"""GPT-2: a decoder with learned positions. v is the vocabulary."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import causal
from jattn.models import gpt2_weights, hugging_face
from jattn.nn import FeedForward, LayerNorm, LearnedPositions, MultiHeadAttention, embedding
from jattn.nn.dropout import Dropout, split
from jattn.nn.weights import as_pair, in_turn

__all__ = ["GPT2", "GPT2Block"]


class GPT2Block(nnx.Module):
    """Causal self-attention and a tanh-GELU network f, each with a residual: ``x = x + dropout(f(norm(x)))``."""

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm_epsilon: float,
        dropout_rate: float,
        attention_dropout_rate: float,
        **types: Any,
    ) -> None:
        self.norm1 = LayerNorm(features, epsilon=norm_epsilon, **types)
        self.attention = MultiHeadAttention(
            num_heads, features, use_bias=True, dropout_rate=attention_dropout_rate, **types
        )
        self.norm2 = LayerNorm(features, epsilon=norm_epsilon, **types)
        self.feed_forward = FeedForward(features, feedforward_features, activation="gelu_tanh", **types)
        self.dropout = Dropout(dropout_rate)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        valid_lens: Any = None,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t m"] | Any:
        """The output; with return_weights also the attention weights."""
        rngs = split(rng, 3)
        attended = self.attention(
            self.norm1(x), valid_lens=valid_lens, mask=causal(), return_weights=return_weights, rng=rngs[0]
        )
        y, weights = as_pair(attended, return_weights)
        x = x + self.dropout(y, rngs[1])
        x = x + self.dropout(self.feed_forward(self.norm2(x)), rngs[2])
        return (x, weights) if return_weights else x


class GPT2(hugging_face.PretrainedModel):
    """Token and position embeddings, pre-norm blocks, a norm, and logits by the token embedding, which is tied.

    Args:
        vocab_size: v, how many tokens there are.
        max_length: the longest sequence.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width; 4 m by default.
        dropout_rate: in training, of the embeddings and of what each block adds.
        attention_dropout_rate: of the attention weights; dropout_rate by default.
        norm_epsilon: of the layer norms.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    Example:

        >>> model = GPT2(50, max_length=16, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> logits, weights = model(jnp.ones((2, 5), int), valid_lens=jnp.array([5, 3]), return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((2, 5, 50), 2, (2, 3, 5, 5))
    """

    hugging_face = gpt2_weights.GPT2_FAMILY

    def __init__(
        self,
        vocab_size: int,
        *,
        max_length: int = 1024,
        features: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        feedforward_features: int | None = None,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        rates: dict[str, Any] = dict(
            dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
        )
        hidden = 4 * features if feedforward_features is None else feedforward_features
        self.embedding = embedding(vocab_size, features, **types)
        self.positions = LearnedPositions(max_length, features, **types)
        self.blocks = nnx.List(
            [
                GPT2Block(num_heads, features, hidden, norm_epsilon=norm_epsilon, **rates, **types)
                for _ in range(num_layers)
            ]
        )
        self.norm = LayerNorm(features, epsilon=norm_epsilon, **types)
        self.dropout = Dropout(dropout_rate)
        self.max_length = max_length

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        valid_lens: int | Int[Array, "b"] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Any:
        """The logits of the token after each.

        Args:
            tokens: ``b t``, token numbers.
            valid_lens: how many tokens of each sequence are real; what follows them is not attended to.
            return_weights: also return the list of each block's weights ``b h t t``.
            rng: a ``jax.random.key`` for dropout in training.
        """
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "b t", 2)
        checks.at_most("tokens", tokens.shape[-1], "max_length", self.max_length)
        rngs = split(rng, len(self.blocks) + 1)
        x = self.dropout(self.positions(self.embedding(tokens)), rngs[0])
        x, weights = in_turn(self.blocks, x, valid_lens, return_weights=return_weights, rngs=rngs[1:])
        logits = self.embedding.attend(self.norm(x))
        return (logits, weights) if return_weights else logits
