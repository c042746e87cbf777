"""DistilBERT: BERT's blocks without types of tokens, under names of its own."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily
from jattn.models.hugging_face.encoder_settings import (
    ENCODERS,
    IGNORED,
    first_token_head,
    lines_of,
    masked_head,
    post_norm_block,
    token_head,
)
from jattn.models.hugging_face.settings import count_setting, padding_of, real_setting
from jattn.nn import Norm

__all__ = ["DistilBert"]

_NORM = Norm("layer", epsilon=1e-12)


def _dropout(name: str, default: float) -> Any:
    return lambda config: real_setting(config, name, "[0, 1)", default)


def _distilbert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    dropout_rate = _dropout("dropout", 0.1)(config)
    block = post_norm_block(
        _NORM,
        (0.0, dropout_rate),  # none of what the attention gives
        num_heads=count_setting(config, "n_heads"),
        feedforward_features=count_setting(config, "hidden_dim"),
        activation=activation_of(config, "activation", "gelu"),
        attention_dropout_rate=_dropout("attention_dropout", 0.1)(config),
    )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "dim"),
        layers=[block] * count_setting(config, "n_layers"),
        max_length=count_setting(config, "max_position_embeddings"),
        norm=_NORM,
        padding_idx=padding_of(config, 0),
        dropout_rate=dropout_rate,
    )


_DISTILBERT_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions.embedding",
    "embeddings.LayerNorm": "norm",
}
_DISTILBERT_LAYER = {
    "attention.q_lin": "attention.query",
    "attention.k_lin": "attention.key",
    "attention.v_lin": "attention.value",
    "attention.out_lin": "attention.out",
    "sa_layer_norm": "norm1",
    "ffn.lin1": "feed_forward.linear1",
    "ffn.lin2": "feed_forward.linear2",
    "output_layer_norm": "norm2",
}


class DistilBert(TextEncoder):
    """DistilBERT; the arguments are those of `TextEncoder`.

    Source: Sanh et al., DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter, 2019.
    """

    hugging_face = EncoderFamily(
        implemented={"model_type": ("distilbert",), **ENCODERS},
        options=_distilbert_options,
        # Sinusoidal positions are in the file, as learned ones are.
        without_effect=IGNORED | {"qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"},
        bare="DistilBertModel",
        heads={
            "DistilBertForMaskedLM": masked_head(
                "distilbert.embeddings.word_embeddings",
                dense="vocab_transform",
                norm="vocab_layer_norm",
                output="vocab_projector",
                activation=lambda config: activation_of(config, "activation", "gelu"),
            ),
            "DistilBertForSequenceClassification": first_token_head(
                "pre_classifier",
                "classifier",
                activation="relu",
                dropout=_dropout("seq_classif_dropout", 0.2),
                first=False,
            ),
            "DistilBertForTokenClassification": token_head("classifier", _dropout("dropout", 0.1)),
            "DistilBertForQuestionAnswering": token_head("qa_outputs", _dropout("qa_dropout", 0.1)),
        },
        others=("DistilBertForMultipleChoice",),
        prefix="distilbert.",
        lines=lambda encoder: [
            *lines_of(_DISTILBERT_NAMES),
            *lines_of(_DISTILBERT_LAYER, "transformer.layer.#.", "blocks.#."),
        ],
        beside=r"^(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs)\.",
    )
