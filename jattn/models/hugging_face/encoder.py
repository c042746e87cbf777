"""The text encoder of all families: what differs between them is data."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn import biases
from jattn._engine import checks
from jattn.masks import Mask
from jattn.models.hugging_face.family import PretrainedModel
from jattn.models.hugging_face.stack import (
    StackOptions,
    WithHidden,
    blocks_of,
    looked_up,
    real_tokens,
    returned,
    run_blocks,
)
from jattn.nn import Embed, LearnedPositions, Linear, Norm, Outputs
from jattn.nn.dropout import Dropout, split
from jattn.portable import Inputs

__all__ = ["EncoderOptions", "TextEncoder"]


class EncoderOptions(StackOptions, total=False):
    """What a `TextEncoder` takes beside its tokens and how many of them are real."""

    token_types: Int[Array, "b t"] | None
    positions: Int[Array, "b t"] | None


class TextEncoder(PretrainedModel):
    """The sum of token, position and token type embeddings, normed, then blocks that see all tokens.

    `TextEncoder.from_folder` gives the encoder of a folder of any family, without heads. Dropout is on at first, as in
    every module here; a model from `from_folder` has it off.

    Args:
        vocab_size: how many tokens there are.
        features: m, the width.
        layers: for each block its arguments, those of `TransformerBlock`, and ``window``, how many tokens it sees to
            either side, its own among them; all by default.
        max_length: the longest sequence of tokens.
        learned_positions: whether there is a learned vector for each of so many positions.
        first_position: how many rows that table has before that of the first token; 2 in RoBERTa.
        num_token_types: how many types of tokens there are, such as the two sentences of a pair; None for none.
        embedding_features: the width of the embeddings, if they are projected to m.
        norm: of the embeddings, the attribute ``norm``.
        final_norm: what follows the last block, if anything.
        relative_buckets: of how many distances the blocks share a learned bias, as in MPNet; None for none.
        padding_idx: the token whose embedding has no gradient from being looked up.
        dropout_rate: of the embeddings, in training.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example (two blocks, of which the first sees a token to either side; the second text is padded on the left):

        >>> from jattn.nn import Rotary
        >>> block = dict(num_heads=4, feedforward_features=24, norm="pre", rotary=Rotary())
        >>> layers = [{**block, "window": 2}, block]
        >>> model = TextEncoder(
        ...     50, features=16, layers=layers, max_length=64, learned_positions=False, norm=Norm(), rngs=nnx.Rngs(0)
        ... )
        >>> padded = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
        >>> hidden, weights = model(jnp.ones((2, 5), int), attention_mask=padded, return_weights=True)
        >>> hidden.shape, len(weights), weights[0].shape
        ((2, 5, 16), 2, (2, 4, 5, 5))
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        layers: Sequence[Mapping[str, Any]],
        max_length: int,
        learned_positions: bool = True,
        first_position: int = 0,
        num_token_types: int | None = None,
        embedding_features: int | None = None,
        norm: Norm | None = None,
        final_norm: Norm | None = None,
        relative_buckets: int | None = None,
        padding_idx: int | None = None,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        narrow = features if embedding_features is None else embedding_features
        checks.positive_integers(max_length=max_length, relative_buckets=relative_buckets)
        self.words = Embed(vocab_size, narrow, padding_idx=padding_idx, **types)
        self.positions = (
            LearnedPositions(first_position + max_length, narrow, first=first_position, **types)
            if checks.flag("learned_positions", learned_positions)
            else None
        )
        self.token_types = None if num_token_types is None else Embed(num_token_types, narrow, **types)
        self.norm = None if norm is None else norm(narrow, **types)
        self.dropout = Dropout(dropout_rate)
        self.projection = None if embedding_features is None else Linear(narrow, features, **types)
        blocks, self.windows = blocks_of(features, layers, causal=False, **types)
        self.blocks = nnx.List(blocks)
        self.final_norm = None if final_norm is None else final_norm(features, **types)
        heads = self.blocks[0].attention.query.kernel.shape[1]
        self.relative = (
            None if relative_buckets is None else nnx.Param(jnp.zeros((relative_buckets, heads), param_dtype))
        )
        self.max_length = max_length

    @overload
    def __call__(
        self,
        tokens: Array,
        valid_lens: int | Array | None = None,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> WithHidden: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[True],
        **options: Unpack[EncoderOptions],
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[EncoderOptions],
    ) -> Float[Array, "b t m"]: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> Float[Array, "b t m"] | Outputs | WithHidden: ...

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        valid_lens: int | Int[Array, "b"] | None = None,
        *,
        token_types: Int[Array, "b t"] | None = None,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        positions: Int[Array, "b t"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t m"] | Outputs | WithHidden:
        """Encode.

        Args:
            tokens: ``b t``, token numbers.
            valid_lens: how many tokens of each sequence are real; what follows them is not attended to.
            token_types: the type of each token; 0 by default.
            attention_mask: 1 where a token is real, 0 where it is padding, on whichever side; as in `transformers`.
            positions: of the tokens, for learned and rotary positions, masks and biases; by default 0 ... t - 1, and
                for learned ones counted over the real tokens.
            mask: further, who may attend to whom, such as ``jattn.masks.segments(ids)`` for packed texts.
            return_weights: also return the list of each block's weights ``b h t t``.
            return_hidden: return `WithHidden`.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The last block's output ``b t m``, normed if there is a norm; with return_weights an `Outputs` of it and the
            weights; with return_hidden a `WithHidden`.
        """
        tokens = checks.tokens("tokens", tokens, self.words.num_embeddings, "b t", 2)
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        if positions is not None:
            positions = checks.positions("positions", positions, tokens.shape[:1], tokens.shape[1])
        real = real_tokens(attention_mask, tokens.shape)
        rngs = split(rng, len(self.blocks) + 1)
        ran = run_blocks(
            self.blocks,
            self.windows,
            self._embed(tokens, token_types, real, positions, rngs[0]),
            valid_lens=valid_lens,
            real=real,
            mask=mask,
            bias_of=None if self.relative is None else self._bias_of,
            positions=positions,
            return_weights=return_weights,
            rngs=rngs[1:],
        )
        x = ran.x if self.final_norm is None else self.final_norm(ran.x)
        return returned(x, ran._replace(x=x), return_weights=return_weights, return_hidden=return_hidden)

    def inputs(self) -> Inputs:
        """What a program of it is called with: tokens, which of them are real, and their types if it has some."""
        types = {} if self.token_types is None else {"token_types": "int32[b,t]"}
        return Inputs({"tokens": "int32[b,t]", "attention_mask": "int32[b,t]", **types}, (f"t <= {self.max_length}",))

    @property
    def biased_by_head(self) -> bool:
        """Whether each head's logits have a bias of their own, the same in all blocks."""
        return self.relative is not None

    def _bias_of(self, heads: Any) -> biases.Bias:
        assert self.relative is not None
        return biases.relative(self.relative[:, heads])

    def _embed(
        self, tokens: Array, token_types: Array | None, real: Array | None, positions: Array | None, rng: Any
    ) -> Array:
        x = self.words(tokens)
        if self.token_types is not None:
            x = x + self.token_types(_types_of(tokens, token_types, self.token_types.num_embeddings))
        elif token_types is not None:
            raise ValueError("token_types must be None for a model without types of tokens. Got some.")
        if self.positions is not None:
            x = self.positions(x, looked_up("tokens", tokens.shape[-1], self.max_length, real, positions))
        x = self.dropout(x if self.norm is None else self.norm(x), rng)
        return x if self.projection is None else self.projection(x)


def _types_of(tokens: Array, token_types: Array | None, kinds: int) -> Array:
    if token_types is None:
        return jnp.zeros((1, 1), int)
    token_types = checks.tokens("token_types", token_types, kinds, "b t", 2)
    if token_types.shape != tokens.shape:
        raise ValueError(
            f"token_types must have one entry for each of tokens, shape {tokens.shape}. Got shape {token_types.shape}."
        )
    return token_types
