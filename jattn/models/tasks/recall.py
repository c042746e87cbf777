"""A task of long-term dependency: name the first token of a sequence after having read it all."""

from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.nn import Embed, LearnedPositions, Linear, TransformerBlock
from jattn.nn.dropout import split
from jattn.nn.weights import Outputs, in_turn, outputs
from jattn.portable import Exportable, Inputs

__all__ = ["RecallClassifier"]


class RecallClassifier(Exportable, nnx.Module):
    """Embedding, post-norm transformer blocks, and a class for each token, read from the last position.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_expansion: the feed-forward network's inner width, in units of m.
        max_length: the longest sequence, where there are positions.
        positions: whether tokens know their positions; without them, the order of the tokens before the last has no
            effect.
        dropout_rate: in training.
        param_dtype: of the parameters.
        rngs: for the initial parameters.

    Example:

        >>> model = RecallClassifier(vocab_size=5, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> logits, weights = model(jnp.ones((2, 20), int), return_weights=True)
        >>> logits.shape, weights[0].shape
        ((2, 5), (2, 4, 20, 20))
    """

    def __init__(
        self,
        vocab_size: int,
        features: int = 32,
        num_heads: int = 4,
        num_layers: int = 1,
        *,
        feedforward_expansion: int = 2,
        max_length: int = 20,
        positions: bool = True,
        dropout_rate: float = 0.1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.embedding = Embed(vocab_size, features, **options)
        self.positions = LearnedPositions(max_length, features, **options) if positions else None
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    num_heads, features, feedforward_expansion * features, dropout_rate=dropout_rate, **options
                )
                for _ in range(num_layers)
            ]
        )
        self.output = Linear(features, vocab_size, **options)

    @overload
    def __call__(self, tokens: Array, *, return_weights: Literal[True], rng: PRNGKeyArray | None = None) -> Outputs: ...
    @overload
    def __call__(
        self, tokens: Array, *, return_weights: Literal[False] = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b v"]: ...
    @overload
    def __call__(
        self, tokens: Array, *, return_weights: bool, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b v"] | Outputs: ...

    def __call__(
        self, tokens: Int[Array, "*b t"], *, return_weights: bool = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b v"] | Outputs:
        """Logits ``*b v`` of the first token; with return_weights also the list of the blocks' weights ``*b h t t``."""
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "*b t", 1)
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(x)
        rngs = split(rng, len(self.blocks))
        x, weights = in_turn(self.blocks, x, return_weights=return_weights, rngs=rngs)
        logits = self.output(x[..., -1, :])
        return outputs(logits, weights, return_weights)

    def inputs(self) -> Inputs:
        """What a program of it is called with: tokens."""
        positions = self.positions
        longest = () if positions is None else (f"t <= {positions.embedding.num_embeddings}",)
        return Inputs({"tokens": "int32[b,t]"}, longest)
