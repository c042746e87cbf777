"""BERT: a text encoder, and how Hugging Face stores it."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.models.hugging_face.family import Family, PretrainedModel, count_setting, real_setting
from jattn.nn import Embed, LayerNorm, LearnedPositions, Norm, TransformerBlock
from jattn.nn.dropout import Dropout, split
from jattn.nn.weights import in_turn, outputs
from jattn.weights import Table, dropped, prefixed, rename

__all__ = ["BERT_FAMILY", "TextEncoder"]


def _bert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `TextEncoder` for the settings of a ``BertModel``."""
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "hidden_size"),
        num_heads=count_setting(config, "num_attention_heads"),
        num_layers=count_setting(config, "num_hidden_layers"),
        feedforward_features=count_setting(config, "intermediate_size"),
        max_length=count_setting(config, "max_position_embeddings"),
        num_token_types=count_setting(config, "type_vocab_size"),
        activation=config.get("hidden_act", "gelu"),
        norm_epsilon=real_setting(config, "layer_norm_eps", "[0, inf)"),
        dropout_rate=real_setting(config, "hidden_dropout_prob", "[0, 1)"),
        attention_dropout_rate=real_setting(config, "attention_probs_dropout_prob", "[0, 1)"),
    )


def _bert_table(model: Any) -> Table:
    """From a ``BertModel``, or one with heads on it, which are not kept; nor is the pooler."""
    layer, block = "encoder.layer.#", "blocks.#"
    return Table(
        [
            prefixed("bert.", optional=True, back=False),  # of whole models
            dropped(r"^(pooler|cls)\.", optional=True),
            dropped("embeddings.position_ids", optional=True),  # 0, 1, 2, ...
            rename(r"LayerNorm\.gamma$", "LayerNorm.weight", optional=True, back=False),  # of the oldest files
            rename(r"LayerNorm\.beta$", "LayerNorm.bias", optional=True, back=False),
            rename("embeddings.word_embeddings", "words"),
            rename("embeddings.position_embeddings", "positions.embedding"),
            rename("embeddings.token_type_embeddings", "token_types"),
            rename("embeddings.LayerNorm", "norm"),
            rename(f"{layer}.attention.self", f"{block}.attention"),
            rename(f"{layer}.attention.output.dense", f"{block}.attention.out"),
            rename(f"{layer}.attention.output.LayerNorm", f"{block}.norm1"),
            rename(f"{layer}.intermediate.dense", f"{block}.feed_forward.linear1"),
            rename(f"{layer}.output.dense", f"{block}.feed_forward.linear2"),
            rename(f"{layer}.output.LayerNorm", f"{block}.norm2"),
        ]
    )


BERT_FAMILY = Family(
    table=_bert_table,
    implemented={
        "model_type": ("bert",),
        "architectures": (None, ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"]),
        "hidden_act": ("gelu", "relu"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    options=_bert_options,
    without_effect=frozenset({"tie_word_embeddings"}),
)


class TextEncoder(PretrainedModel):
    """BERT's encoder: the sum of word, position and token type embeddings, normed, then post-norm blocks.

    Without the pooler, a layer on the first token that BERT's next-sentence task was trained with. Dropout is on at
    first, as in every module here; a model from `from_folder` has it off.

    Args:
        vocab_size: how many tokens there are.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width.
        max_length: the longest sequence of tokens.
        num_token_types: how many types of tokens there are; BERT tells the sentences of a pair apart by them.
        activation: ``"gelu"``, the exact one, or ``"relu"``.
        norm_epsilon: of the layer norms.
        dropout_rate: in training, in [0, 1).
        attention_dropout_rate: of the attention weights.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, 2019.

    Example (two sequences, the second with 3 real tokens and 2 of padding):

        >>> model = TextEncoder(
        ...     vocab_size=50, features=12, num_heads=3, num_layers=2, feedforward_features=20, rngs=nnx.Rngs(0)
        ... )
        >>> model.eval()
        >>> hidden, weights = model(jnp.ones((2, 5), int), jnp.array([5, 3]), return_weights=True)
        >>> hidden.shape, len(weights), weights[0].shape
        ((2, 5, 12), 2, (2, 3, 5, 5))
    """

    hugging_face = BERT_FAMILY

    def __init__(
        self,
        *,
        vocab_size: int,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        max_length: int = 512,
        num_token_types: int = 2,
        activation: Literal["relu", "gelu"] = "gelu",
        norm_epsilon: float = 1e-12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.words = Embed(vocab_size, features, **options)
        self.positions = LearnedPositions(max_length, features, **options)
        self.token_types = Embed(num_token_types, features, **options)
        self.norm = LayerNorm(features, epsilon=norm_epsilon, **options)
        self.dropout = Dropout(dropout_rate)
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    num_heads,
                    features,
                    feedforward_features,
                    norm_kind=Norm("layer", epsilon=norm_epsilon),
                    activation=activation,
                    residual_dropout_rate=dropout_rate,
                    attention_dropout_rate=attention_dropout_rate,
                    **options,
                )
                for _ in range(num_layers)
            ]
        )
        self.max_length = max_length

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        valid_lens: int | Int[Array, "b"] | None = None,
        *,
        token_types: Int[Array, "b t"] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t m"] | Any:
        """Encode.

        Args:
            tokens: numbers of tokens.
            valid_lens: how many tokens of each sequence are real; what follows them is not attended to.
            token_types: the type of each token; 0 by default.
            return_weights: also return the list of each block's weights ``b h t t``.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The last block's output ``b t m``; with return_weights also the list.
        """
        tokens = checks.tokens("tokens", tokens, self.words.num_embeddings, "b t", 2)
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        checks.at_most("tokens", tokens.shape[-1], "max_length", self.max_length)
        if token_types is None:
            token_types = jnp.zeros((1, 1), int)
        else:
            token_types = checks.tokens("token_types", token_types, self.token_types.num_embeddings, "b t", 2)
            if token_types.shape != tokens.shape:
                raise ValueError(
                    f"token_types must have one entry for each of tokens, shape {tokens.shape}. "
                    f"Got shape {token_types.shape}."
                )
        rngs = split(rng, len(self.blocks) + 1)
        x = self.positions(self.words(tokens) + self.token_types(token_types))
        x = self.dropout(self.norm(x), rngs[0])
        x, weights = in_turn(self.blocks, x, valid_lens=valid_lens, return_weights=return_weights, rngs=rngs[1:])
        return outputs(x, weights, return_weights)
