"""Mistral: Llama with a window."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import llama_options, llama_table, rms_norm_of
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import optional_count_setting

__all__ = ["Mistral"]


def _mistral_options(config: Mapping[str, Any]) -> dict[str, Any]:
    window = optional_count_setting(config, "sliding_window", 4096)
    return llama_options(config, norm_kind=rms_norm_of(config, 1e-6), window=window)


class Mistral(TextDecoder):
    """Mistral 7B and its like; the arguments are those of `TextDecoder`.

    Source: Jiang et al., Mistral 7B, 2023.
    """

    hugging_face = Family(
        table=llama_table,
        implemented={"model_type": ("mistral",)},
        options=_mistral_options,
        any_head_features=True,
    )
