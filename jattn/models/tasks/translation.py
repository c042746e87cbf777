"""Sequence to sequence: a recurrent encoder, and a recurrent decoder that attends to it (Bahdanau et al., 2015).

More axes here: v vocabulary · n hidden width · l recurrent layer. The decoder runs step by step on a
`DecoderState` that the caller carries, so the same code serves teacher forcing (one scan) and any search for the best
translation.
"""

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.decoding import last_of
from jattn.nn import GRU, AdditiveAttention, DotProductAttention, Embed, Linear
from jattn.nn.dropout import split
from jattn.nn.weights import Outputs, outputs
from jattn.portable import Exportable, Inputs

__all__ = ["Decoder", "DecoderState", "Encoder", "Seq2Seq", "TranslationState"]


class DecoderState(NamedTuple):
    """What the decoder knows before a step."""

    outputs: Float[Array, "b s n"]  # the encoder's, for all source positions
    hidden: Float[Array, "l b n"]  # the decoder's; the encoder's last to begin with
    valid_lens: Int[Array, "b"] | None  # of the source


class TranslationState(NamedTuple):
    """What a `Seq2Seq` knows between steps, examples first."""

    outputs: Float[Array, "b s n"]  # the encoder's
    hidden: Float[Array, "b l n"]  # the decoder's
    valid_lens: Int[Array, "b"] | None  # of the source

    @classmethod
    def of(cls, state: DecoderState) -> "TranslationState":
        """As the decoder has it."""
        return cls(state.outputs, jnp.swapaxes(state.hidden, 0, 1), state.valid_lens)

    @property
    def of_decoder(self) -> DecoderState:
        """As the decoder takes it."""
        return DecoderState(self.outputs, jnp.swapaxes(self.hidden, 0, 1), self.valid_lens)

    def reordered(self, examples: Int[Array, "b"]) -> "TranslationState":
        """With other continuations of the same sources."""
        return self._replace(hidden=jnp.take(self.hidden, examples, axis=0))


class Encoder(nnx.Module):
    """Embeds the source and runs a GRU over it."""

    def __init__(
        self,
        vocab_size: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int,
        dropout_rate: float,
        **options: Any,
    ) -> None:
        self.embedding = Embed(vocab_size, embedding_features, **options)
        self.gru = GRU(embedding_features, hidden_features, num_layers, dropout_rate, **options)

    def __call__(
        self, source: Int[Array, "b s"], valid_lens: Int[Array, "b"] | None = None, *, rng: PRNGKeyArray | None = None
    ) -> DecoderState:
        """Read ``source``; what comes after the valid lengths leaves no trace. Returns the decoder's first state."""
        source = checks.tokens("source", source, self.embedding.num_embeddings, "b s", 2)
        outputs, hidden = self.gru(self.embedding(source), valid_lens=valid_lens, rng=rng)
        return DecoderState(outputs, hidden, valid_lens)


class Decoder(nnx.Module):
    """A GRU over the last token and a context, the encoder's outputs pooled by attention.

    ``context = attention(query=top layer's previous state, keys=values=encoder's outputs)``
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int,
        score: str,
        dropout_rate: float,
        **options: Any,
    ) -> None:
        n = hidden_features
        self.embedding = Embed(vocab_size, embedding_features, **options)
        self.attention = DotProductAttention(scale=1.0) if score == "dot" else AdditiveAttention(n, n, n, **options)
        self.gru = GRU(embedding_features + n, n, num_layers, dropout_rate, **options)
        self.output = Linear(n, vocab_size, **options)

    def __call__(
        self,
        target: Int[Array, "b t"],
        state: DecoderState,
        valid_lens: Int[Array, "b"] | None = None,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b t v"], DecoderState, Float[Array, "b t s"]]:
        """Feed ``target`` in, token by token; what comes after the valid lengths leaves no trace in the state.

        Returns:
            The logits ``b t v`` of each next token, the state after the last, and the weights of all steps ``b t s``.
        """
        target = checks.tokens("target", target, self.embedding.num_embeddings, "b t", 2)
        if target.shape[0] != state.hidden.shape[1]:
            raise ValueError(f"target must have the source's batch, {state.hidden.shape[1]}. Got shape {target.shape}.")
        t = target.shape[1]
        rngs = None if rng is None else jax.random.split(rng, t)
        real = None if valid_lens is None else jnp.arange(t)[:, None] < valid_lens

        def step(hidden: Array, inputs: tuple[Array, Array | None, Any]) -> tuple[Array, tuple[Array, Array]]:
            token, is_real, step_rng = inputs
            logits, after, weights = self.step(token, state._replace(hidden=hidden), rng=step_rng)
            new = after.hidden if is_real is None else jnp.where(is_real[:, None], after.hidden, hidden)
            return new, (logits, weights)

        hidden, (logits, weights) = jax.lax.scan(step, state.hidden, (target.T, real, rngs))
        return jnp.swapaxes(logits, 0, 1), state._replace(hidden=hidden), jnp.swapaxes(weights, 0, 1)

    def step(
        self, token: Int[Array, "b"], state: DecoderState, *, rng: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b v"], DecoderState, Float[Array, "b s"]]:
        """One token further: the logits ``b v`` of the next one, the new state, and the weights ``b s``."""
        token = checks.tokens("token", token, self.embedding.num_embeddings, "b", 1)
        query = state.hidden[-1][:, None, :]
        context, weights = self.attention(
            query, state.outputs, state.outputs, valid_lens=state.valid_lens, return_weights=True
        )
        x = jnp.concatenate([self.embedding(token), context[:, 0]], axis=-1)
        output, hidden = self.gru.step(x, state.hidden, rng=rng)
        return self.output(output), state._replace(hidden=hidden), weights[:, 0]


class Seq2Seq(Exportable, nnx.Module):
    """Encoder and decoder together, taught with the true target as the decoder's input.

    Args:
        source_vocab_size, target_vocab_size: how many tokens each side has.
        embedding_features: the width of a token.
        hidden_features: n, the width of the recurrent state and of the attention.
        num_layers: of either GRU.
        score: ``"additive"``, or ``"dot"``, the dot product without a scale.
        dropout_rate: between recurrent layers in training.
        param_dtype: of the parameters.
        rngs: for the initial parameters.

    Source: Bahdanau, Cho and Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015.

    Example (teacher forcing; then one step of decoding by hand):

        >>> model = Seq2Seq(10, 12, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> source, target, valid_lens = jnp.ones((2, 7), int), jnp.ones((2, 5), int), jnp.array([4, 7])
        >>> logits, weights = model(source, target, valid_lens, return_weights=True)
        >>> logits.shape, weights.shape
        ((2, 5, 12), (2, 5, 7))
        >>> state = model.encoder(source, valid_lens)
        >>> logits, state, weights = model.decoder.step(target[:, 0], state)
        >>> logits.shape, weights.shape
        ((2, 12), (2, 7))
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        embedding_features: int = 32,
        hidden_features: int = 32,
        num_layers: int = 2,
        score: Literal["additive", "dot"] = "additive",
        dropout_rate: float = 0.1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.one_of("score", score, ("additive", "dot"))
        sizes = (embedding_features, hidden_features, num_layers)
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.encoder = Encoder(source_vocab_size, *sizes, dropout_rate, **options)
        self.decoder = Decoder(target_vocab_size, *sizes, score, dropout_rate, **options)

    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        source_valid_lens: Array | None = None,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        source_valid_lens: Array | None = None,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"]: ...
    @overload
    def __call__(
        self,
        source: Array,
        target: Array,
        source_valid_lens: Array | None = None,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Outputs: ...

    def __call__(
        self,
        source: Int[Array, "b s"],
        target: Int[Array, "b t"],
        source_valid_lens: Int[Array, "b"] | None = None,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t v"] | Outputs:
        """Logits ``b t v`` of the token after each of ``target``; with return_weights also the weights ``b t s``."""
        encoder_rng, decoder_rng = split(rng, 2)
        state = self.encoder(source, source_valid_lens, rng=encoder_rng)
        logits, _, weights = self.decoder(target, state, rng=decoder_rng)
        return outputs(logits, weights, return_weights)

    @property
    def vocab_size(self) -> int:
        """How many tokens a target may be of."""
        return self.decoder.embedding.num_embeddings

    def start(
        self,
        batch_size: int,
        room: int,
        *,
        source: Int[Array, "b s"],
        source_valid_lens: Int[Array, "b"] | None = None,
    ) -> TranslationState:
        """The state before the first token of the target, as `jattn.decoding.Decodable` says.

        Args:
            batch_size, room: as there; a recurrent state has room for all tokens.
            source: ``b s``, token numbers.
            source_valid_lens: ``b``, how many tokens of each source are real.
        """
        if (n := jnp.shape(source)[0]) != batch_size:
            raise ValueError(f"source must be one for each of {batch_size} prompts. Got {n}.")
        return TranslationState.of(self.encoder(source, source_valid_lens))

    def step(
        self,
        tokens: Int[Array, "b t"],
        state: TranslationState,
        *,
        valid_lens: Int[Array, "b"] | None = None,
        each: bool = False,
    ) -> tuple[Float[Array, "b v"] | Float[Array, "b t v"], TranslationState]:
        """The logits of what follows these tokens, and the state after them, as `jattn.decoding.Decodable` says."""
        logits, after, _ = self.decoder(tokens, state.of_decoder, valid_lens)
        return logits if each else last_of(logits, valid_lens), TranslationState.of(after)

    def inputs(self) -> Inputs:
        """What a program of it is called with: a source, how much of it is real, and a target."""
        source: dict[str, Any] = {"source": "int32[b,s]", "source_valid_lens": "int32[b]"}
        return Inputs({**source, "target": "int32[b,t]"}, given=source)
