"""A text encoder with the head of a task, and how Hugging Face stores both."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask
from jattn.models.hugging_face.encoder import EncoderOptions, TextEncoder
from jattn.models.hugging_face.family import Family, PretrainedModel, family_of
from jattn.models.hugging_face.stack import WithHidden, and_within, real_tokens
from jattn.nn import Embed, Linear, Norm, Outputs
from jattn.nn.dropout import Dropout, split
from jattn.nn.feed_forward import Activation, activation_function
from jattn.portable import Inputs
from jattn.weights import Table, dropped, prefixed

__all__ = ["EncoderFamily", "EncoderHead", "EncoderWithHead", "TaskHead"]


class EncoderHead(nnx.Module):
    """What a task puts on an encoder: logits for each token, or for each sequence.

    ``output(drop(norm(activation(dense(drop(x))))))``, of which most heads have a part.

    Args:
        features: m, the encoder's width.
        outputs: c, how many logits there are.
        pooling: ``"first"`` for the logits of the first real token, ``"mean"`` for those of the mean of the real ones,
            None for those of each token.
        dense_features: the width of a layer before the last one, if there is one.
        dense_bias: whether that has a bias.
        activation: what follows it.
        norm: what follows that, if anything.
        tied: whether the last layer's weights are the token embedding.
        use_bias: whether the last layer has a bias.
        input_dropout_rate, dropout_rate: before the first and before the last of two layers, in training.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> EncoderHead(8, 3, pooling="first", rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
        (2, 3)
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        pooling: Literal["first", "mean"] | None = None,
        dense_features: int | None = None,
        dense_bias: bool = True,
        activation: Activation = "gelu",
        norm: Norm | None = None,
        tied: bool = False,
        use_bias: bool = True,
        input_dropout_rate: float = 0.0,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        checks.one_of("pooling", pooling, (None, "first", "mean"))
        checks.positive_integers(features=features, outputs=outputs, dense_features=dense_features)
        activation_function(activation)
        width = features if dense_features is None else dense_features
        self.input_dropout = Dropout(input_dropout_rate)
        self.dense = None if dense_features is None else Linear(features, width, use_bias=dense_bias, **types)
        self.norm = None if norm is None else norm(width, **types)
        self.dropout = Dropout(dropout_rate)
        self.output = None if checks.flag("tied", tied) else Linear(width, outputs, use_bias=use_bias, **types)
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if tied and use_bias else None
        self.activation: Activation = activation
        self.pooling = pooling

    def __call__(
        self,
        hidden: Float[Array, "b t m"],
        real: Bool[Array, "b t"] | None = None,
        *,
        embedding: Embed | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "..."]:
        """Logits.

        Args:
            hidden: ``b t m``, the encoder's output.
            real: which tokens are real; all by default.
            embedding: of the tokens, for a head that is tied to it.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``b c`` of a head that pools, otherwise ``b t c``.
        """
        rngs = split(rng, 2)
        x = self.input_dropout(self._pooled(hidden, real), rngs[0])
        if self.dense is not None:
            x = activation_function(self.activation)(self.dense(x))
        x = self.dropout(x if self.norm is None else self.norm(x), rngs[1])
        if self.output is not None:
            return self.output(x)
        if embedding is None:
            raise ValueError("embedding must be given to a head with tied=True. Got None.")
        logits = embedding.attend(x)
        return logits if self.bias is None else logits + self.bias[...].astype(logits.dtype)

    def _pooled(self, x: Array, real: Array | None) -> Array:
        if self.pooling is None:
            return x
        if self.pooling == "first":
            return x[:, 0] if real is None else x[jnp.arange(x.shape[0]), real.argmax(-1)]
        if real is None:
            return x.mean(axis=1)
        return jnp.where(real[..., None], x, 0).sum(1) / jnp.maximum(real.sum(-1, keepdims=True), 1).astype(x.dtype)


class TaskHead(NamedTuple):
    """How Hugging Face stores the head of a task.

    Attributes:
        options: from the settings and the encoder's arguments to those of the `EncoderHead`, but for its first one.
        lines: from the head here to the lines that lead to its names, ``head.`` in front; the state dict's own names
            have all their prefixes.
    """

    options: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    lines: Callable[[EncoderHead], Sequence[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFamily(Family):
    """A family of encoders.

    Attributes:
        bare: the architecture without a head.
        heads: by their architectures.
        others: architectures of which the encoder alone can be had.
        prefix: what is in front of the encoder's names where there is a head.
        lines: from an encoder to the lines that lead to it from its names there, without the prefix.
        beside: a regular expression for names that are no encoder's; a head's and the pooler's.
        older: lines for the names of older files.
    """

    table: Callable[[Any], Table] = dataclasses.field(init=False)
    bare: str
    heads: Mapping[str, TaskHead]
    others: Sequence[str] = ()
    prefix: str
    lines: Callable[[Any], Sequence[Any]]
    beside: str
    older: Sequence[Any] = ()

    def __post_init__(self) -> None:
        known = (None, [self.bare], *([name] for name in (*self.heads, *self.others)))
        object.__setattr__(self, "table", self._table)
        object.__setattr__(self, "implemented", {"architectures": known, **self.implemented})

    def head_of(self, config: Mapping[str, Any]) -> str | None:
        """The architecture with a head that a configuration asks for."""
        names = config.get("architectures")
        if isinstance(names, str):
            raise ValueError(f"config's architectures must be a list. Got {names!r:.80}.")
        if not names or names == [self.bare]:
            return None
        if len(names) > 1 or names[0] not in self.heads:
            raise ValueError(
                f"config's architectures must be one of {', '.join((self.bare, *self.heads))}. Got "
                f"{', '.join(map(str, names))}. jattn.models.TextEncoder.from_folder gives the encoder without a head."
            )
        return names[0]

    def of_heads(self, names: Iterable[str]) -> list[str]:
        """Those among the names of a state dict that are a head's."""
        alone = (name.removeprefix(self.prefix) for name in names)
        return sorted(name for name in alone if re.match(self.beside, name) and not name.startswith("pooler."))

    def _table(self, encoder: Any) -> Table:
        """To an encoder alone, whatever is on it there."""
        alone = [prefixed(self.prefix, optional=True, back=False), dropped(self.beside, optional=True)]
        return Table([*self.older, *alone, *self.lines(encoder)])

    def table_with_head(self, model: "EncoderWithHead") -> Table:
        """To an encoder with a head, nothing left out but a pooler that the architecture has no use for."""
        assert model.architecture is not None
        own = r"^head\."
        return Table(
            [
                *self.older,
                *self.heads[model.architecture].lines(model.head),
                prefixed(self.prefix, but=own),
                dropped(r"^pooler\.", optional=True),
                *self.lines(model.encoder),
                prefixed("", "encoder.", but=own),
            ]
        )


class EncoderWithHead(PretrainedModel):
    """A text encoder with the head of a task.

    `jattn.models.load` gives one for a folder whose ``architectures`` say so, such as ``BertForMaskedLM`` (logits
    ``b t v``), ``...ForSequenceClassification`` (``b c``), ``...ForTokenClassification`` (``b t c``) and
    ``...ForQuestionAnswering`` (``b t 2``, where an answer starts and where it ends). The names of the classes are in
    its ``config``, as ``id2label``.

    Args:
        encoder: a `TextEncoder`.
        head: a `EncoderHead`.
        architecture: what `transformers` calls both together; without one it can't be saved for `transformers`.

    Example (from an encoder of yours to three classes):

        >>> from jattn.models import Bert
        >>> rngs = nnx.Rngs(0)
        >>> sizes = dict(vocab_size=50, features=12, num_heads=3, num_layers=2, feedforward_features=20)
        >>> model = EncoderWithHead(Bert(**sizes, rngs=rngs), EncoderHead(12, 3, pooling="first", rngs=rngs))
        >>> model.eval()
        >>> model(jnp.ones((2, 5), int), jnp.array([5, 3])).shape
        (2, 3)
    """

    def __init__(self, encoder: TextEncoder, head: EncoderHead, *, architecture: str | None = None) -> None:
        self.encoder, self.head, self.architecture = encoder, head, architecture

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
    ) -> Float[Array, "..."]: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> Float[Array, "..."] | Outputs | WithHidden: ...

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
    ) -> Float[Array, "..."] | Outputs | WithHidden:
        """The head's logits; arguments and further outputs are those of `TextEncoder`."""
        rngs = split(rng, 2)
        tokens = checks.tokens("tokens", tokens, self.encoder.words.num_embeddings, "b t", 2)
        result: Any = self.encoder(
            tokens,
            valid_lens,
            token_types=token_types,
            attention_mask=attention_mask,
            positions=positions,
            mask=mask,
            return_weights=return_weights,
            return_hidden=return_hidden,
            rng=rngs[0],
        )
        more = return_weights or return_hidden
        hidden = result.output if more else result
        real = and_within(real_tokens(attention_mask, tokens.shape), valid_lens, tokens.shape)
        logits = self.head(hidden, real, embedding=self.encoder.words, rng=rngs[1])
        return result._replace(output=logits) if more else logits

    @classmethod
    def _maker(cls, config: Mapping[str, Any]) -> Callable[[nnx.Rngs], Any]:
        kind = family_of(config, TextEncoder)
        family = kind.hugging_face
        architecture = family.head_of(config) if isinstance(family, EncoderFamily) else None
        if architecture is None:
            raise ValueError(
                f"config's architectures must be one with a head. Got {config.get('architectures')}. "
                "jattn.models.TextEncoder.from_folder gives an encoder without one."
            )
        assert isinstance(family, EncoderFamily)
        options = family.arguments(config)
        head = family.heads[architecture].options(config, options)
        return lambda rngs: cls(
            kind(**options, rngs=rngs), EncoderHead(options["features"], **head, rngs=rngs), architecture=architecture
        )

    def inputs(self) -> Inputs:
        """What a program of it is called with: as the encoder."""
        return self.encoder.inputs()

    def _family(self) -> Family:
        if self.architecture is None:
            raise ValueError(
                "model must have the architecture of a model of transformers. Got None. Keep it with "
                "jattn.weights.save."
            )
        family = self.encoder._family()
        assert isinstance(family, EncoderFamily)
        return Family(
            table=family.table_with_head,
            implemented=family.implemented,
            options=family.options,
            without_effect=family.without_effect,
            any_head_features=family.any_head_features,
        )
