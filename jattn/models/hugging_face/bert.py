"""BERT: a text encoder, and how Hugging Face stores it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily
from jattn.models.hugging_face.encoder_settings import (
    ENCODERS,
    IGNORED,
    OLDER,
    bert_embedding_sizes,
    bert_lines,
    bert_sizes,
    first_token_head,
    head_dropout,
    masked_head,
    post_norm_block,
    token_head,
)
from jattn.models.hugging_face.settings import count_setting, padding_of, real_setting
from jattn.nn import Norm
from jattn.nn.feed_forward import Activation
from jattn.weights import dropped

__all__ = ["Bert"]


def _bert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Bert` for the settings of a ``BertModel``."""
    return dict(
        **bert_embedding_sizes(config),
        **bert_sizes(config),
        num_layers=count_setting(config, "num_hidden_layers"),
        num_token_types=count_setting(config, "type_vocab_size"),
        norm_epsilon=real_setting(config, "layer_norm_eps", "[0, inf)", 1e-12),
        padding_idx=padding_of(config, 0),
    )


_POOLER = {"directionality", "pooler_type", "pooler_fc_size", "pooler_size_per_head"}
_POOLER |= {"pooler_num_attention_heads", "pooler_num_fc_layers"}


class Bert(TextEncoder):
    """BERT's encoder: the sum of word, position and token type embeddings, normed, then post-norm blocks.

    Without the pooler, a layer on the first token that BERT's next-sentence task was trained with.

    Args:
        vocab_size: how many tokens there are.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        feedforward_features: the feed-forward network's inner width.
        max_length: the longest sequence of tokens.
        num_token_types: how many types of tokens there are; BERT tells the sentences of a pair apart by them.
        activation: of the `FeedForward`: ``"gelu"``, the exact one, or another.
        norm_epsilon: of the layer norms.
        dropout_rate: in training, in [0, 1).
        attention_dropout_rate: of the attention weights.
        padding_idx: the token whose embedding has no gradient from being looked up.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, 2019.

    Example (two sequences, the second with 3 real tokens and 2 of padding):

        >>> sizes = dict(vocab_size=50, features=12, num_heads=3, num_layers=2, feedforward_features=20)
        >>> model = Bert(**sizes, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> hidden, weights = model(jnp.ones((2, 5), int), jnp.array([5, 3]), return_weights=True)
        >>> hidden.shape, len(weights), weights[0].shape
        ((2, 5, 12), 2, (2, 3, 5, 5))
    """

    hugging_face = EncoderFamily(
        implemented={"model_type": ("bert",), **ENCODERS},
        options=_bert_options,
        without_effect=IGNORED | _POOLER,
        bare="BertModel",
        heads={
            "BertForMaskedLM": masked_head(
                "bert.embeddings.word_embeddings",
                dense="cls.predictions.transform.dense",
                norm="cls.predictions.transform.LayerNorm",
                output="cls.predictions.decoder",
                bias="cls.predictions.bias",
                activation=lambda config: activation_of(config, "hidden_act", "gelu"),
                # The official files say that they have this head alone, and have that of the next sentence too.
                further=[dropped(r"^cls\.seq_relationship\.", optional=True)],
            ),
            "BertForSequenceClassification": first_token_head("bert.pooler.dense", "classifier", first=False),
            "BertForTokenClassification": token_head("classifier", head_dropout),
            "BertForQuestionAnswering": token_head("qa_outputs"),
        },
        others=("BertForPreTraining", "BertForNextSentencePrediction", "BertForMultipleChoice"),
        prefix="bert.",
        lines=bert_lines,
        beside=r"^(pooler|cls|classifier|qa_outputs)\.",
        older=OLDER,
    )

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
        activation: Activation = "gelu",
        norm_epsilon: float = 1e-12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        padding_idx: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        norm = Norm("layer", epsilon=norm_epsilon)
        block = post_norm_block(
            norm,
            dropout_rate,
            num_heads=num_heads,
            feedforward_features=feedforward_features,
            activation=activation,
            attention_dropout_rate=attention_dropout_rate,
        )
        super().__init__(
            vocab_size,
            features=features,
            layers=[block] * num_layers,
            max_length=max_length,
            num_token_types=num_token_types,
            norm=norm,
            padding_idx=padding_idx,
            dropout_rate=dropout_rate,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
