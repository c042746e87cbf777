"""Granite: Llama with multipliers of embeddings, residuals, attention and logits."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import llama_options, llama_table, rms_norm_of
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import flag_setting, real_setting

__all__ = ["Granite"]


def _granite_options(config: Mapping[str, Any]) -> dict[str, Any]:
    factors = {
        name: real_setting(config, f"{name}_multiplier", "(-inf, inf)", 1.0)
        for name in ("embedding", "residual", "attention")
    }
    return llama_options(
        config,
        norm_kind=rms_norm_of(config, 1e-6),
        attention_options={"scale": factors["attention"]},
        use_bias=flag_setting(config, "attention_bias", False),
        feedforward_bias=flag_setting(config, "mlp_bias", False),
        residual_scale=factors["residual"],
    ) | {
        "embedding_scale": factors["embedding"],
        "logits_scale": 1 / real_setting(config, "logits_scaling", "(0, inf)", 1.0),
    }


class Granite(TextDecoder):
    """Granite; the arguments are those of `TextDecoder`.

    Source: IBM Granite Team, Granite 3.0 Language Models, 2024.
    """

    hugging_face = Family(
        table=llama_table,
        implemented={"model_type": ("granite",)},
        options=_granite_options,
        any_head_features=True,
    )
