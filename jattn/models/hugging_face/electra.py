"""ELECTRA: BERT's blocks, on embeddings that may be narrower."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily, TaskHead
from jattn.models.hugging_face.encoder_settings import (
    ENCODERS,
    IGNORED,
    OLDER,
    bert_embedding,
    bert_lines,
    first_token_head,
    head_dropout,
    masked_head,
    token_head,
)
from jattn.models.hugging_face.settings import count_setting, optional_count_setting, padding_of
from jattn.weights import rename

__all__ = ["Electra"]


def _electra_options(config: Mapping[str, Any]) -> dict[str, Any]:
    narrow = optional_count_setting(config, "embedding_size") or 128
    return bert_embedding(
        config,
        num_token_types=count_setting(config, "type_vocab_size"),
        embedding_features=None if narrow == config.get("hidden_size") else narrow,
        padding_idx=padding_of(config, 0),
    )


def _electra_lines(encoder: Any) -> list[Any]:
    projected = [] if encoder.projection is None else [rename("embeddings_project", "projection")]
    return [*projected, *bert_lines(encoder)]


_REPLACED = TaskHead(  # whether each token is the original one
    lambda config, encoder: dict(
        outputs=1, dense_features=encoder["features"], activation=activation_of(config, "hidden_act", "gelu")
    ),
    lambda head: [
        rename("discriminator_predictions.dense", "head.dense"),
        rename("discriminator_predictions.dense_prediction", "head.output"),
    ],
)


class Electra(TextEncoder):
    """ELECTRA; the arguments are those of `TextEncoder`.

    With ``ElectraForPreTraining``'s head, `jattn.models.load` gives a logit ``b t 1`` for each token, that it was
    replaced.

    Source: Clark et al., ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, 2020.
    """

    hugging_face = EncoderFamily(
        implemented={"model_type": ("electra",), **ENCODERS},
        options=_electra_options,
        without_effect=IGNORED | {"summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"},
        bare="ElectraModel",
        heads={
            "ElectraForMaskedLM": masked_head(
                "electra.embeddings.word_embeddings",
                dense="generator_predictions.dense",
                norm="generator_predictions.LayerNorm",
                output="generator_lm_head",
            ),
            "ElectraForPreTraining": _REPLACED,
            "ElectraForSequenceClassification": first_token_head(
                "classifier.dense", "classifier.out_proj", activation="gelu"
            ),
            "ElectraForTokenClassification": token_head("classifier", head_dropout),
            "ElectraForQuestionAnswering": token_head("qa_outputs"),
        },
        others=("ElectraForMultipleChoice",),
        prefix="electra.",
        lines=_electra_lines,
        beside=r"^(generator_predictions|generator_lm_head|discriminator_predictions|classifier|qa_outputs)\.",
        older=OLDER,
    )
