"""Granite: Llama with multipliers of embeddings, residuals, attention and logits."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import activation_of, gated_block, heads_of, llama_like, llama_table
from jattn.models.hugging_face.family import Family, count_setting, flag_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm

__all__ = ["Granite"]


def _granite_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6))
    factors = {
        name: real_setting(config, f"{name}_multiplier", "(-inf, inf)", 1.0)
        for name in ("embedding", "residual", "attention")
    }
    heads = heads_of(config)
    heads["attention_options"] |= {"scale": factors["attention"]}
    block = gated_block(
        config,
        norm_kind=norm,
        activation=activation_of(config, "hidden_act", "silu"),
        use_bias=flag_setting(config, "attention_bias", False),
        feedforward_bias=flag_setting(config, "mlp_bias", False),
        residual_scale=factors["residual"],
        rotary=rotary_of(config),
        **heads,
    )
    return llama_like(config, norm=norm, layers=[block] * count_setting(config, "num_hidden_layers")) | {
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
