"""OLMo 2: Llama with norms after the sublayers, and of queries and keys over their full width."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_ATTENTION,
    LLAMA_NETWORK,
    QK_NORMS,
    llama_options,
    llama_table,
    rms_norm_of,
)
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import flag_setting

__all__ = ["OLMo2"]


def _olmo2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = rms_norm_of(config, 1e-5)
    return llama_options(
        config,
        norm_kind=norm,
        norm="branch",
        normalize_qk=norm,
        attention_options={"qk_norm_over": "width"},
        use_bias=flag_setting(config, "attention_bias", False),
        padding=1,
    )


_OLMO2_NORMS = {"post_attention_layernorm": "norm1", "post_feedforward_layernorm": "norm2"}


class OLMo2(TextDecoder):
    """OLMo 2; the arguments are those of `TextDecoder`.

    Source: OLMo Team, 2 OLMo 2 Furious, 2025.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, {**LLAMA_ATTENTION, **QK_NORMS, **LLAMA_NETWORK, **_OLMO2_NORMS}),
        implemented={"model_type": ("olmo2",)},
        options=_olmo2_options,
        any_head_features=True,
    )
