"""GPT-2: a decoder with learned positions. v is the vocabulary."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.models import gpt2_weights, hugging_face
from jattn.nn import Embed, LayerNorm, LearnedPositions, Norm, TransformerBlock
from jattn.nn.dropout import Dropout, split
from jattn.nn.weights import in_turn, outputs

__all__ = ["GPT2"]


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
        block: dict[str, Any] = dict(
            norm="pre",
            norm_kind=Norm("layer", epsilon=norm_epsilon),
            activation="gelu_tanh",
            residual_dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
            causal=True,
        )
        hidden = 4 * features if feedforward_features is None else feedforward_features
        self.embedding = Embed(vocab_size, features, **types)
        self.positions = LearnedPositions(max_length, features, **types)
        self.blocks = nnx.List(
            [TransformerBlock(num_heads, features, hidden, **block, **types) for _ in range(num_layers)]
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
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        checks.at_most("tokens", tokens.shape[-1], "max_length", self.max_length)
        rngs = split(rng, len(self.blocks) + 1)
        x = self.dropout(self.positions(self.embedding(tokens)), rngs[0])
        x, weights = in_turn(self.blocks, x, valid_lens=valid_lens, return_weights=return_weights, rngs=rngs[1:])
        logits = self.embedding.attend(self.norm(x))
        return outputs(logits, weights, return_weights)
