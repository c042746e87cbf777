"""The decoder of all families: what differs between them is data. v is the vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn import biases
from jattn._engine import checks
from jattn.cache import Cache
from jattn.decoding.decodable import last_of
from jattn.masks import Mask
from jattn.models.hugging_face.family import PretrainedModel
from jattn.models.hugging_face.stack import (
    StackOutput,
    TextOptions,
    WithHidden,
    blocks_of,
    caches_of,
    looked_up,
    next_tokens,
    real_tokens,
    returned,
    run_blocks,
)
from jattn.nn import Cached, Embed, LearnedPositions, Linear, Norm, Outputs
from jattn.nn.dropout import Dropout, split
from jattn.portable import Inputs

__all__ = ["TextDecoder"]


class TextDecoder(PretrainedModel):
    """Token embeddings, blocks that see the past, a norm, and logits.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        layers: for each block its arguments, those of `TransformerBlock`, and ``window``, how many tokens it sees, its
            own among them; all by default.
        norm: what follows the last block, if anything.
        max_length: up to how many tokens there are learned positions; none by default.
        first_position: how many rows the table of positions has before that of the first token; 2 in OPT.
        alibi: whether blocks add ALiBi's biases.
        embedding_features: the width of the embeddings, if they are projected to m and back.
        embedding_scale: what embeddings are multiplied by.
        embedding_norm: what norms them, if anything.
        padding_idx: the token whose embedding has no gradient from being looked up.
        tied: whether the logits are products with the token embedding, rather than with weights of their own.
        logits_scale: what logits are multiplied by.
        logits_bias: whether each token has a summand of its logit, after that, as in Phi and GPT-J.
        logits_soft_cap: by which they are capped in the end.
        dropout_rate: of the embeddings, in training.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example (two blocks, of which the first sees four tokens):

        >>> from jattn.nn import Rotary
        >>> block = dict(num_heads=4, feedforward_features=24, norm="pre", norm_kind="rms", rotary=Rotary())
        >>> layers = [{**block, "window": 4}, block]
        >>> model = TextDecoder(50, features=16, layers=layers, norm=Norm("rms"), rngs=nnx.Rngs(0))
        >>> padded = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
        >>> logits, weights = model(jnp.ones((2, 5), int), attention_mask=padded, return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((2, 5, 50), 2, (2, 4, 5, 5))
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        layers: Sequence[Mapping[str, Any]],
        norm: Norm | None = None,
        max_length: int | None = None,
        first_position: int = 0,
        alibi: bool = False,
        embedding_features: int | None = None,
        embedding_scale: float | None = None,
        embedding_norm: Norm | None = None,
        padding_idx: int | None = None,
        tied: bool = True,
        logits_scale: float | None = None,
        logits_bias: bool = False,
        logits_soft_cap: float | None = None,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        narrow = features if embedding_features is None else embedding_features
        self.embedding = Embed(vocab_size, narrow, padding_idx=padding_idx, scale=embedding_scale, **types)
        self.embedding_norm = None if embedding_norm is None else embedding_norm(features, **types)
        projected = embedding_features is not None
        self.project_in = Linear(narrow, features, use_bias=False, **types) if projected else None
        self.project_out = Linear(features, narrow, use_bias=False, **types) if projected else None
        self.positions = (
            None
            if max_length is None
            else LearnedPositions(first_position + max_length, features, first=first_position, **types)
        )
        blocks, self.windows = blocks_of(features, layers, causal=True, **types)
        self.blocks = nnx.List(blocks)
        self.norm = None if norm is None else norm(features, **types)
        self.output = None if tied else Linear(narrow, vocab_size, use_bias=False, **types)
        biased = checks.flag("logits_bias", logits_bias)
        self.logits_bias = nnx.Param(jnp.zeros(vocab_size, param_dtype)) if biased else None
        self.dropout = Dropout(dropout_rate)
        self.max_length = max_length
        heads = self.blocks[0].attention.query.kernel.shape[1]
        self.slopes = tuple(biases.alibi_slopes(heads).tolist()) if checks.flag("alibi", alibi) else None
        self.logits_scale, self.logits_soft_cap = logits_scale, logits_soft_cap

    @overload
    def __call__(
        self,
        tokens: Array,
        *,
        cache: Sequence[Cache],
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[TextOptions],
    ) -> Cached: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[TextOptions],
    ) -> WithHidden: ...
    @overload
    def __call__(self, tokens: Array, *, return_weights: Literal[True], **options: Unpack[TextOptions]) -> Outputs: ...
    @overload
    def __call__(
        self, tokens: Array, *, return_weights: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Float[Array, "b t v"]: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        *,
        cache: Sequence[Cache] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "b t v"] | Outputs | WithHidden | Cached: ...

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        cache: Sequence[Cache] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Outputs | WithHidden | Cached:
        """The logits of the token after each.

        Args:
            tokens: ``b t``, token numbers.
            attention_mask: 1 where a token is real, 0 where it is padding, on whichever side; as in `transformers`.
            valid_lens: how many tokens of each sequence are real, if padding follows them.
            positions: of the tokens, for learned and rotary positions, masks and biases; by default 0 ... t - 1, and
                for learned ones counted over the real tokens.
            mask: further, who may attend to whom, such as ``jattn.masks.segments(ids)`` for packed texts.
            cache: of the tokens before these, from `new_cache` or an earlier call; positions are then counted on, and
                padding, by attention_mask, is not kept.
            return_weights: also return the list of each block's weights ``b h t t``.
            return_hidden: return `WithHidden`.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The logits; with return_weights an `Outputs` of logits and weights; with return_hidden a `WithHidden`; with
            a cache a `Cached`, of whose parts those are there that were asked for.

        Example (a text in two parts):

            >>> block = dict(num_heads=2, feedforward_features=16, norm="pre")
            >>> model = TextDecoder(50, features=8, layers=[block], max_length=9, rngs=nnx.Rngs(0))
            >>> text = jnp.array([[3, 1, 4, 1, 5]])
            >>> begun = model(text[:, :3], cache=model.new_cache(1, room=9))
            >>> gone_on = model(text[:, 3:], cache=begun.cache)
            >>> bool(jnp.allclose(gone_on.output, model(text)[:, 3:], atol=1e-5))
            True
        """
        options: dict[str, Any] = dict(
            attention_mask=attention_mask, valid_lens=valid_lens, positions=positions, mask=mask, cache=cache
        )
        ran = self._run(tokens, **options, return_weights=return_weights, rng=rng)
        return returned(self._logits(ran.x), ran, return_weights=return_weights, return_hidden=return_hidden)

    def _run(
        self,
        tokens: Array,
        *,
        attention_mask: Any,
        valid_lens: Any,
        positions: Any,
        mask: Any,
        cache: Any = None,
        return_weights: bool,
        rng: PRNGKeyArray | None,
    ) -> StackOutput:
        """What the blocks give, x as the logits are made of it."""
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "b t", 2)
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        if positions is not None:
            positions = checks.positions("positions", positions, tokens.shape[:1], tokens.shape[1])
        real = real_tokens(attention_mask, tokens.shape)
        if cache is not None:
            real, positions = next_tokens(cache, self.blocks, tokens.shape, real, valid_lens, positions)
            valid_lens = None
        rngs = split(rng, len(self.blocks) + 1)
        x = self._embed(tokens, real, positions, rngs[0])
        ran = run_blocks(
            self.blocks,
            self.windows,
            x,
            valid_lens=valid_lens,
            real=real,
            mask=mask,
            bias_of=None if self.slopes is None else self._bias_of,
            positions=positions,
            caches=cache,
            return_weights=return_weights,
            rngs=rngs[1:],
        )
        x = ran.x if self.norm is None else self.norm(ran.x)
        x = x if self.project_out is None else self.project_out(x)
        return ran._replace(x=x)

    def new_cache(self, batch_size: int, room: int, *, dtype: Any = None) -> tuple[Cache, ...]:
        """A cache without tokens: for each block the keys and values of up to ``room`` tokens, or of its window.

        Args:
            batch_size: b.
            room: how many tokens there may be, prompt and continuation together.
            dtype: of keys and values as they are kept; that of the model by default.
        """
        return caches_of(self.blocks, self.windows, batch_size, room, dtype)

    @property
    def vocab_size(self) -> int:
        """v, how many tokens there are."""
        return self.embedding.num_embeddings

    def start(self, batch_size: int, room: int, *, dtype: Any = None) -> tuple[Cache, ...]:
        """The state of decoding before the first token, as `jattn.decoding.Decodable` says: `new_cache`."""
        return self.new_cache(batch_size, room, dtype=dtype)

    def step(
        self,
        tokens: Int[Array, "b t"],
        state: tuple[Cache, ...],
        *,
        valid_lens: Int[Array, "b"] | None = None,
        each: bool = False,
    ) -> tuple[Float[Array, "b v"] | Float[Array, "b t v"], tuple[Cache, ...]]:
        """The logits of what follows these tokens, and the state after them, as `jattn.decoding.Decodable` says."""
        ran = self._run(
            tokens,
            attention_mask=None,
            valid_lens=valid_lens,
            positions=None,
            mask=None,
            cache=state,
            return_weights=False,
            rng=None,
        )
        assert ran.caches is not None
        return self._logits(ran.x if each else last_of(ran.x, valid_lens)), ran.caches

    def inputs(self) -> Inputs:
        """What a program of it is called with: tokens, and which of them are real."""
        return Inputs(
            {"tokens": "int32[b,t]", "attention_mask": "int32[b,t]"},
            () if self.max_length is None else (f"t <= {self.max_length}",),
        )

    @property
    def biased_by_head(self) -> bool:
        """Whether each head's logits have a bias of their own, the same in all blocks."""
        return self.slopes is not None

    def _bias_of(self, heads: Any) -> biases.Bias:
        return biases.alibi(jnp.array(self.slopes, jnp.float32)[heads])

    def _embed(self, tokens: Array, real: Array | None, positions: Array | None, rng: Any) -> Array:
        x = self.embedding(tokens)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = self.positions(x, looked_up("tokens", tokens.shape[-1], self.max_length, real, positions))
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.dropout(x, rng)

    def _logits(self, x: Array) -> Array:
        logits = self.embedding.attend(x) if self.output is None else self.output(x)
        if self.logits_scale is not None:
            logits = logits * jnp.asarray(self.logits_scale, logits.dtype)
        if self.logits_bias is not None:
            logits = logits + self.logits_bias[...].astype(logits.dtype)
        cap = self.logits_soft_cap
        return logits if cap is None else (cap * jnp.tanh(logits / cap)).astype(logits.dtype)
