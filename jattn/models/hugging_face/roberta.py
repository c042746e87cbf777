"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's blocks, and positions that begin behind the token of padding."""

from collections.abc import Mapping
from typing import Any

from jattn._engine import checks
from jattn.models.hugging_face.encoder import TextEncoder
from jattn.models.hugging_face.encoder_heads import EncoderFamily
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
from jattn.models.hugging_face.settings import count_setting

__all__ = ["Camembert", "Roberta", "XLMRoberta"]


def _roberta_options(config: Mapping[str, Any]) -> dict[str, Any]:
    rows = count_setting(config, "max_position_embeddings")
    padding = checks.number("config's pad_token_id", config.get("pad_token_id", 1), f"[0, {rows - 2}]", integer=True)
    return bert_embedding(
        config,
        max_length=rows - padding - 1,
        first_position=padding + 1,
        num_token_types=count_setting(config, "type_vocab_size"),
        padding_idx=padding,
    )


def _roberta_family(model_type: str, name: str) -> EncoderFamily:
    """The family of which transformers' classes are named so."""
    return EncoderFamily(
        implemented={"model_type": (model_type,), **ENCODERS},
        options=_roberta_options,
        without_effect=IGNORED,
        bare=f"{name}Model",
        heads={
            f"{name}ForMaskedLM": masked_head(
                "roberta.embeddings.word_embeddings",
                dense="lm_head.dense",
                norm="lm_head.layer_norm",
                output="lm_head.decoder",
                bias="lm_head.bias",
            ),
            f"{name}ForSequenceClassification": first_token_head("classifier.dense", "classifier.out_proj"),
            f"{name}ForTokenClassification": token_head("classifier", head_dropout),
            f"{name}ForQuestionAnswering": token_head("qa_outputs"),
        },
        others=(f"{name}ForMultipleChoice",),
        prefix="roberta.",
        lines=bert_lines,
        beside=r"^(pooler|lm_head|classifier|qa_outputs)\.",
        older=OLDER,
    )


class Roberta(TextEncoder):
    """RoBERTa; the arguments are those of `TextEncoder`.

    Source: Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, 2019.
    """

    hugging_face = _roberta_family("roberta", "Roberta")


class XLMRoberta(TextEncoder):
    """XLM-RoBERTa; the arguments are those of `TextEncoder`.

    Source: Conneau et al., Unsupervised Cross-lingual Representation Learning at Scale, 2020.
    """

    hugging_face = _roberta_family("xlm-roberta", "XLMRoberta")


class Camembert(TextEncoder):
    """CamemBERT; the arguments are those of `TextEncoder`.

    Source: Martin et al., CamemBERT: a Tasty French Language Model, 2020.
    """

    hugging_face = _roberta_family("camembert", "Camembert")
