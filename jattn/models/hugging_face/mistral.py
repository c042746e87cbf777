"""Mistral: Llama with a window."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import activation_of, gated_block, heads_of, llama_like, llama_table
from jattn.models.hugging_face.family import Family, count_setting, optional_count_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm

__all__ = ["Mistral"]


def _mistral_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6))
    block = gated_block(
        config,
        norm_kind=norm,
        activation=activation_of(config, "hidden_act", "silu"),
        rotary=rotary_of(config),
        **heads_of(config),
    )
    block["window"] = optional_count_setting(config, "sliding_window", 4096)
    return llama_like(config, norm=norm, layers=[block] * count_setting(config, "num_hidden_layers"))


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
