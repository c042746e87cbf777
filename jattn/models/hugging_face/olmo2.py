"""OLMo 2: Llama with norms after the sublayers, and of queries and keys over their full width."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_LAYER,
    activation_of,
    gated_block,
    heads_of,
    llama_like,
    llama_table,
)
from jattn.models.hugging_face.family import Family, count_setting, flag_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm

__all__ = ["OLMo2"]


def _olmo2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-5))
    block = gated_block(
        config,
        norm="branch",
        norm_kind=norm,
        activation=activation_of(config, "hidden_act", "silu"),
        use_bias=flag_setting(config, "attention_bias", False),
        normalize_qk=norm,
        rotary=rotary_of(config),
    )
    block |= heads_of(config)
    block["attention_options"] |= {"qk_norm_over": "width"}
    return llama_like(config, norm=norm, layers=[block] * count_setting(config, "num_hidden_layers"), padding=1)


_OLMO2_LAYER = {name: ours for name, ours in LLAMA_LAYER.items() if "layernorm" not in name} | {
    "self_attn.q_norm": "attention.query_ln",
    "self_attn.k_norm": "attention.key_ln",
    "post_attention_layernorm": "norm1",
    "post_feedforward_layernorm": "norm2",
}


class OLMo2(TextDecoder):
    """OLMo 2; the arguments are those of `TextDecoder`.

    Source: OLMo Team, 2 OLMo 2 Furious, 2025.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, _OLMO2_LAYER),
        implemented={"model_type": ("olmo2",)},
        options=_olmo2_options,
        any_head_features=True,
    )
