"""The encoder-decoder of all families: what differs between them is data. s is the source, v the vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.cache import Cache
from jattn.decoding.decodable import last_of, reordered, rewound
from jattn.masks import Mask, all_of, dense
from jattn.models.hugging_face.audio import FrameEmbedding
from jattn.models.hugging_face.block_stack import BlockStack
from jattn.models.hugging_face.family import PretrainedModel
from jattn.models.hugging_face.stack import StackOutput, TextOptions, WithHidden, caches_of, real_tokens, returned
from jattn.nn import Embed, Linear
from jattn.nn.dropout import split
from jattn.nn.multi_head import KeysAndValues
from jattn.nn.weights import Cached, Outputs, outputs
from jattn.portable import Inputs

__all__ = ["DecodingState", "EncoderDecoder", "EncoderDecoderHidden", "EncoderDecoderWeights"]


class EncoderDecoderWeights(NamedTuple):
    """The attention weights of an `EncoderDecoder`, of each block."""

    encoder: Any  # b h s s; None where nothing was encoded
    decoder: Any  # b h t t
    cross: Any  # b h t s


class EncoderDecoderHidden(NamedTuple):
    """The hidden states of an `EncoderDecoder`: what the first block gets, what each gives, and the last one normed."""

    encoder: list[Array]  # b s m
    decoder: list[Array]  # b t m


class DecodingState(NamedTuple):
    """What the decoder of an `EncoderDecoder` knows before a step."""

    caches: tuple[Cache, ...]
    memory: list[KeysAndValues]  # of each block, of the source
    real: Bool[Array, "b s"] | None  # which of it is no padding

    def reordered(self, examples: Int[Array, "b"]) -> "DecodingState":
        """With other continuations of the same sources."""
        return self._replace(caches=reordered(self.caches, examples))

    def rewound(self, before: "DecodingState", n: Int[Array, "b"], since: int) -> "DecodingState":
        """As it was n tokens after ``before``; the memory is the same at each step."""
        return self._replace(caches=rewound(self.caches, before.caches, n, since))


class _SourceAndTargetOptions(TextOptions, total=False):
    target_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None
    target_valid_lens: int | Int[Array, "b"] | None
    target_positions: Int[Array, "b t"] | None
    target_mask: Mask | Bool[Array, "..."] | None
    memory_mask: Mask | Bool[Array, "..."] | None


class _TargetOptions(TextOptions, total=False):
    memory_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None
    memory_valid_lens: int | Int[Array, "b"] | None
    memory_mask: Mask | Bool[Array, "..."] | None


class EncoderDecoder(PretrainedModel):
    """An encoder of the source, a decoder of the target that attends to it, and logits of the target's next tokens.

    Args:
        vocab_size: v, how many tokens there are.
        features: m, the width.
        encoder, decoder: the arguments of either `BlockStack`, by name.
        source_vocab_size: how many tokens the source has, where they have embeddings of their own; by default they have
            those of the target.
        mel_bins: of how many bands the source's features are, where it is sound and not text.
        embedding_scale: what embeddings are multiplied by.
        padding_idx: the token whose embedding has no gradient from being looked up.
        tied: whether the logits are products with the token embedding, rather than with weights of their own.
        logits_scale: what the last states are multiplied by before that.
        logits_bias: whether each token has a summand of its logit.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example (two sources of 7 and of 5 tokens):

        >>> from jattn.nn import Norm
        >>> block = dict(num_heads=2, feedforward_features=16, norm="pre")
        >>> side = dict(layers=[block], norm=Norm("layer"), max_length=20)
        >>> model = EncoderDecoder(50, features=8, encoder=side, decoder=side, rngs=nnx.Rngs(0))
        >>> source, target = jnp.ones((2, 7), int), jnp.ones((2, 4), int)
        >>> logits, weights = model(source, target, valid_lens=jnp.array([7, 5]), return_weights=True)
        >>> logits.shape, weights.cross[0].shape
        ((2, 4, 50), (2, 2, 4, 7))
        >>> memory = model.project(model.encode(source))
        >>> model.decode(target, memory).shape
        (2, 4, 50)
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        source_vocab_size: int | None = None,
        mel_bins: int | None = None,
        embedding_scale: float | None = None,
        padding_idx: int | None = None,
        tied: bool = True,
        logits_scale: float | None = None,
        logits_bias: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if source_vocab_size is not None and mel_bins is not None:
            raise ValueError(
                "mel_bins must be None where source_vocab_size is given: a source is text or sound. Got both."
            )
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        looked_up: dict[str, Any] = dict(padding_idx=padding_idx, scale=embedding_scale, **types)
        self.embedding = Embed(vocab_size, features, **looked_up)
        source: Embed | FrameEmbedding | None = None
        if mel_bins is not None:
            source = FrameEmbedding(mel_bins, features, **types)
        elif source_vocab_size is not None:
            source = Embed(source_vocab_size, features, **looked_up)
        self.source_embedding = source
        self.encoder = BlockStack(features, decodes=False, **encoder, **types)
        self.decoder = BlockStack(features, decodes=True, **decoder, **types)
        self.output = None if tied else Linear(features, vocab_size, use_bias=False, **types)
        biased = checks.flag("logits_bias", logits_bias)
        self.logits_bias = nnx.Param(jnp.zeros(vocab_size, param_dtype)) if biased else None
        self.logits_scale = logits_scale
        self.max_length = self.decoder.max_length

    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[_SourceAndTargetOptions],
    ) -> WithHidden: ...
    @overload
    def __call__(
        self, source: Array, target: Array, *, return_weights: Literal[True], **options: Unpack[_SourceAndTargetOptions]
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_SourceAndTargetOptions],
    ) -> Float[Array, "b t v"]: ...
    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[_SourceAndTargetOptions],
    ) -> Float[Array, "b t v"] | Outputs | WithHidden: ...

    def __call__(
        self,
        source: Int[Array, "b s"] | Float[Array, "b mel frames"],
        target: Int[Array, "b t"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        positions: Int[Array, "b s"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        target_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        target_valid_lens: int | Int[Array, "b"] | None = None,
        target_positions: Int[Array, "b t"] | None = None,
        target_mask: Mask | Bool[Array, "..."] | None = None,
        memory_mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Outputs | WithHidden:
        """The logits of the token after each of the target.

        Args:
            source, attention_mask, valid_lens, positions, mask: of the encoder, as in `encode`.
            target: ``b t``, token numbers, the first of which starts it.
            target_attention_mask, target_valid_lens, target_positions, target_mask: likewise of the decoder.
            memory_mask: which tokens of the target may attend to which of the source, ``b h t s``, beside the real
                ones; such as ``jattn.masks.segments(target_ids, source_ids)`` for packed texts.
            return_weights: also return `EncoderDecoderWeights`.
            return_hidden: return a `WithHidden`, whose ``hidden`` is an `EncoderDecoderHidden`.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The logits; with return_weights an `Outputs` of logits and weights; with return_hidden a `WithHidden`.
        """
        rngs = split(rng, 2)
        encoded = self._encoded(source, attention_mask, valid_lens, positions, mask, return_weights, rngs[0])
        decoded = self._decoded(
            target,
            encoded.x,
            (target_attention_mask, target_valid_lens, target_positions, target_mask),
            (attention_mask, valid_lens, memory_mask),
            return_weights,
            rngs[1],
            "target_",
        )
        logits = self._logits(decoded.x)
        weights = _weights_of(encoded.weights, decoded) if return_weights else None
        if return_hidden:
            return WithHidden(logits, weights, EncoderDecoderHidden(_hidden_of(encoded), _hidden_of(decoded)))
        return outputs(logits, weights, return_weights)

    @overload
    def encode(
        self,
        source: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[TextOptions],
    ) -> WithHidden: ...
    @overload
    def encode(self, source: Array, *, return_weights: Literal[True], **options: Unpack[TextOptions]) -> Outputs: ...
    @overload
    def encode(
        self, source: Array, *, return_weights: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Float[Array, "b s m"]: ...
    @overload
    def encode(
        self,
        source: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "b s m"] | Outputs | WithHidden: ...

    def encode(
        self,
        source: Int[Array, "b s"] | Float[Array, "b mel frames"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        positions: Int[Array, "b s"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b s m"] | Outputs | WithHidden:
        """What the decoder attends to.

        Args:
            source: ``b s``, token numbers; of sound ``b mel frames``, log-mel features, two frames to one of s.
            attention_mask: ``b s``, 1 where a token is real, 0 where it is padding, on whichever side.
            valid_lens: how many of each source are real, if padding follows them.
            positions: of the tokens, for learned positions, masks and biases; by default 0 ... s - 1, and for learned
                ones counted over the real tokens.
            mask: further, who may attend to whom.
            return_weights: also return the list of each block's weights ``b h s s``.
            return_hidden: return `WithHidden`.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``b s m``; with return_weights an `Outputs`; with return_hidden a `WithHidden`.
        """
        ran = self._encoded(source, attention_mask, valid_lens, positions, mask, return_weights, rng)
        return returned(ran.x, ran, return_weights=return_weights, return_hidden=return_hidden)

    def project(self, memory: Float[Array, "b s m"]) -> list[KeysAndValues]:
        """What `encode` returned as the keys and values of each block of the decoder, for many calls of `decode`."""
        projected = []
        for block in self.decoder.blocks:
            assert block.cross_attention is not None
            projected.append(block.cross_attention.project(memory))
        return projected

    def new_cache(self, batch_size: int, room: int, *, dtype: Any = None) -> tuple[Cache, ...]:
        """A cache without tokens for `decode`, of up to ``room`` tokens of the target; as `TextDecoder.new_cache`."""
        return caches_of(self.decoder.blocks, self.decoder.windows, batch_size, room, dtype)

    @overload
    def decode(
        self,
        target: Array,
        memory: Array | list[KeysAndValues],
        *,
        cache: Sequence[Cache],
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[_TargetOptions],
    ) -> Cached: ...
    @overload
    def decode(
        self,
        target: Array,
        memory: Array | list[KeysAndValues],
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[_TargetOptions],
    ) -> WithHidden: ...
    @overload
    def decode(
        self,
        target: Array,
        memory: Array | list[KeysAndValues],
        *,
        return_weights: Literal[True],
        **options: Unpack[_TargetOptions],
    ) -> Outputs: ...
    @overload
    def decode(
        self,
        target: Array,
        memory: Array | list[KeysAndValues],
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_TargetOptions],
    ) -> Float[Array, "b t v"]: ...
    @overload
    def decode(
        self,
        target: Array,
        memory: Array | list[KeysAndValues],
        *,
        cache: Sequence[Cache] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[_TargetOptions],
    ) -> Float[Array, "b t v"] | Outputs | WithHidden | Cached: ...

    def decode(
        self,
        target: Int[Array, "b t"],
        memory: Float[Array, "b s m"] | list[KeysAndValues],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        memory_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        memory_valid_lens: int | Int[Array, "b"] | None = None,
        memory_mask: Mask | Bool[Array, "..."] | None = None,
        cache: Sequence[Cache] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Outputs | WithHidden | Cached:
        """The logits of the token after each of the target, given what `encode` made of the source.

        Args:
            target: ``b t``, token numbers.
            memory: what `encode` returned, or `project` made of that.
            attention_mask, valid_lens, positions, mask: of the target, as in `encode`.
            memory_attention_mask, memory_valid_lens: those that the source was encoded with.
            memory_mask: as at the call of the model.
            cache: of the target's tokens before these, from `new_cache` or an earlier call.
            return_weights: also return `EncoderDecoderWeights`, without the encoder's.
            return_hidden: return `WithHidden`, of the decoder.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The logits; with return_weights an `Outputs`; with return_hidden a `WithHidden`; with a cache a `Cached`, of
            whose parts those are there that were asked for.
        """
        of_target = (attention_mask, valid_lens, positions, mask)
        of_memory = (memory_attention_mask, memory_valid_lens, memory_mask)
        ran = self._decoded(target, memory, of_target, of_memory, return_weights, rng, cache=cache)
        logits = self._logits(ran.x)
        weights = _weights_of(None, ran) if return_weights else None
        if ran.caches is not None:
            return Cached(logits, ran.caches, weights, _hidden_of(ran) if return_hidden else None)
        if return_hidden:
            return WithHidden(logits, weights, _hidden_of(ran))
        return outputs(logits, weights, return_weights)

    @property
    def vocab_size(self) -> int:
        """v, how many tokens there are."""
        return self.embedding.num_embeddings

    def start(
        self,
        batch_size: int,
        room: int,
        *,
        source: Int[Array, "b s"] | Float[Array, "b mel frames"],
        source_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        dtype: Any = None,
    ) -> "DecodingState":
        """The state of decoding before the first token of the target, as `jattn.decoding.Decodable` says.

        Args:
            batch_size, room, dtype: as of `new_cache`.
            source: what is encoded.
            source_attention_mask: ``b s``, 1 where it is real, 0 where it is padding.
        """
        if (n := jnp.shape(source)[0]) != batch_size:
            raise ValueError(f"source must be one for each of {batch_size} prompts. Got {n}.")
        memory = self.project(self.encode(source, attention_mask=source_attention_mask))
        real = real_tokens(source_attention_mask, (batch_size, memory[0].keys.shape[1]), "source_attention_mask")
        return DecodingState(self.new_cache(batch_size, room, dtype=dtype), memory, real)

    def step(
        self,
        tokens: Int[Array, "b t"],
        state: "DecodingState",
        *,
        valid_lens: Int[Array, "b"] | None = None,
        each: bool = False,
    ) -> tuple[Float[Array, "b v"] | Float[Array, "b t v"], "DecodingState"]:
        """The logits of what follows these tokens, and the state after them, as `jattn.decoding.Decodable` says."""
        ran = self._decoded(
            tokens,
            state.memory,
            (None, valid_lens, None, None),
            (state.real, None, None),
            return_weights=False,
            rng=None,
            cache=state.caches,
        )
        assert ran.caches is not None
        logits = self._logits(ran.x if each else last_of(ran.x, valid_lens))
        return logits, state._replace(caches=ran.caches)

    def inputs(self) -> Inputs:
        """What a program of it is called with: a source, a target, and which tokens are real; sound is whole."""
        target = {"target": "int32[b,t]", "target_attention_mask": "int32[b,t]"}
        source, real = {"source": "int32[b,s]"}, {"attention_mask": "int32[b,s]"}
        if isinstance(self.source_embedding, FrameEmbedding):
            frames = "s" if self.encoder.max_length is None else 2 * self.encoder.max_length
            source, real = {"source": f"float[b,{self.source_embedding.conv1.in_features},{frames}]"}, {}
        longest = {"s": self.encoder.max_length if real else None, "t": self.max_length}
        return Inputs(
            {**source, **target, **real},
            tuple(f"{letter} <= {n}" for letter, n in longest.items() if n is not None),
            {**source, **{f"source_{name}": x for name, x in real.items()}},
        )

    def _encoded(
        self, source: Any, attention_mask: Any, lens: Any, positions: Any, mask: Any, return_weights: bool, rng: Any
    ) -> StackOutput:
        if isinstance(self.source_embedding, FrameEmbedding):
            x = self.source_embedding(source)
        else:
            embedding = self.embedding if self.source_embedding is None else self.source_embedding
            x = embedding(checks.tokens("source", source, embedding.num_embeddings, "b s", 2))
        return self.encoder(
            x,
            real=real_tokens(attention_mask, x.shape[:2]),
            valid_lens=checks.example_lengths("valid_lens", lens, x.shape[:1]),
            positions=None if positions is None else checks.positions("positions", positions, x.shape[:1], x.shape[1]),
            mask=mask,
            return_weights=return_weights,
            rng=rng,
        )

    def _decoded(
        self,
        target: Any,
        memory: Any,
        of_target: Any,
        of_memory: Any,
        return_weights: bool,
        rng: Any,
        prefix: str = "",
        *,
        cache: Any = None,
    ) -> StackOutput:
        """The run of the decoder; prefix is that of the names of the target's arguments."""
        target = checks.tokens("target", target, self.embedding.num_embeddings, "b t", 2)
        (attention_mask, lens, positions, mask), (memory_attention, memory_lens, memory_mask) = of_target, of_memory
        b, t = target.shape
        if isinstance(memory, list) and len(memory) != len(self.decoder.blocks):
            raise ValueError(
                f"memory must be what project returned, keys and values for each of {len(self.decoder.blocks)} blocks. "
                f"Got {len(memory)}."
            )
        if not isinstance(memory, list):
            memory = checks.floating("memory", memory, "b s m", 3)
            checks.width("memory", memory, self.embedding.embedding.shape[-1])
        n, s = memory[0].keys.shape[:2] if isinstance(memory, list) else memory.shape[:2]
        if n != b:
            raise ValueError(f"target must have as many sequences as {'source' if prefix else 'memory'}, {n}. Got {b}.")
        real = real_tokens(memory_attention, (b, s), "memory_attention_mask")
        return self.decoder(
            self.embedding(target),
            memory,
            real=real_tokens(attention_mask, (b, t), f"{prefix}attention_mask"),
            valid_lens=checks.example_lengths(f"{prefix}valid_lens", lens, (b,)),
            caches=cache,
            positions=None if positions is None else checks.positions(f"{prefix}positions", positions, (b,), t),
            mask=mask,
            memory_valid_lens=checks.example_lengths("memory_valid_lens", memory_lens, (b,)),
            memory_mask=all_of(None if real is None else dense(real[:, None, None, :]), memory_mask),
            return_weights=return_weights,
            rng=rng,
        )

    def _logits(self, x: Array) -> Array:
        if self.logits_scale is not None:
            x = x * jnp.asarray(self.logits_scale, x.dtype)
        logits = self.embedding.attend(x) if self.output is None else self.output(x)
        return logits if self.logits_bias is None else logits + self.logits_bias[...].astype(logits.dtype)

    def _stacks_of_equal_heads(self) -> list[nnx.Module]:
        return [self.encoder, self.decoder]


def _weights_of(encoder: Any, decoded: StackOutput) -> EncoderDecoderWeights:
    own, across = zip(*decoded.weights, strict=True)
    return EncoderDecoderWeights(encoder, list(own), list(across))


def _hidden_of(ran: StackOutput) -> list[Array]:
    return [*ran.hidden[:-1], ran.x]
