"""MPNet: BERT's blocks, which share learned biases of how far apart tokens are."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily
from jattn.models.hugging_face.encoder_settings import (
    ENCODERS,
    IGNORED,
    bert_embedding,
    bert_lines,
    first_token_head,
    masked_head,
    token_head,
)
from jattn.models.hugging_face.settings import count_setting, real_setting
from jattn.weights import rename

__all__ = ["MPNet"]

_PADDING = 1  # whatever the settings say


def _mpnet_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return bert_embedding(
        config,
        max_length=count_setting(config, "max_position_embeddings") - _PADDING - 1,
        first_position=_PADDING + 1,
        relative_buckets=32,
        padding_idx=_PADDING,
    )


def _dropout_of_head(config: Mapping[str, Any]) -> float:
    return real_setting(config, "hidden_dropout_prob", "[0, 1)", 0.1)


_MPNET_LAYER = {
    "attention.attn.q": "attention.query",
    "attention.attn.k": "attention.key",
    "attention.attn.v": "attention.value",
    "attention.attn.o": "attention.out",
    "attention.LayerNorm": "norm1",
    "intermediate.dense": "feed_forward.linear1",
    "output.dense": "feed_forward.linear2",
    "output.LayerNorm": "norm2",
}


class MPNet(TextEncoder):
    """MPNet; the arguments are those of `TextEncoder`.

    Source: Song et al., MPNet: Masked and Permuted Pre-training for Language Understanding, 2020.
    """

    hugging_face = EncoderFamily(
        # transformers cuts distances into 32 whatever the settings say.
        implemented={"model_type": ("mpnet",), "relative_attention_num_buckets": (32,), **ENCODERS},
        options=_mpnet_options,
        without_effect=IGNORED,
        bare="MPNetModel",
        heads={
            "MPNetForMaskedLM": masked_head(
                "mpnet.embeddings.word_embeddings",
                dense="lm_head.dense",
                norm="lm_head.layer_norm",
                output="lm_head.decoder",
                bias="lm_head.bias",
            ),
            "MPNetForSequenceClassification": first_token_head(
                "classifier.dense", "classifier.out_proj", dropout=_dropout_of_head
            ),
            "MPNetForTokenClassification": token_head("classifier", _dropout_of_head),
            "MPNetForQuestionAnswering": token_head("qa_outputs"),
        },
        others=("MPNetForMultipleChoice",),
        prefix="mpnet.",
        lines=lambda encoder: [
            rename("encoder.relative_attention_bias.weight", "relative"),
            *bert_lines(encoder, _MPNET_LAYER),
        ],
        beside=r"^(pooler|lm_head|classifier|qa_outputs)\.",
    )
