"""Gemma, Gemma 2 and Gemma 3's text model: scaled embeddings, norms times 1 + weight, GELU gates."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_ATTENTION,
    LLAMA_NETWORK,
    LLAMA_NORMS,
    QK_NORMS,
    layers_of,
    llama_options,
    llama_table,
    rms_norm_of,
    windows_by_kind,
)
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_by_kind
from jattn.models.hugging_face.settings import count_setting, flag_setting, real_setting
from jattn.nn import Norm

__all__ = ["Gemma", "Gemma2", "Gemma3"]


def _gemma_norm(config: Mapping[str, Any]) -> Norm:
    return rms_norm_of(config, 1e-6, scale_offset=1.0)


def _gemma_options(config: Mapping[str, Any]) -> dict[str, Any]:
    # Its first files say gelu, and mean the approximation.
    activation = "gelu_tanh" if config.get("hidden_act") == "gelu" else activation_of(config, "hidden_act", "gelu_new")
    return _any_gemma(config, activation=activation)


def _any_gemma(config: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """What all three have in common."""
    return llama_options(
        config,
        norm_kind=_gemma_norm(config),
        head_features=256,
        use_bias=flag_setting(config, "attention_bias", False),
        padding=0,
        tied=True,
        **changed,
    ) | {"embedding_scale": count_setting(config, "hidden_size") ** 0.5}


def _newer_gemma(config: Mapping[str, Any], *, cap: float | None, **changed: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common: a scale that is that of another width, and logits that may be capped.

    ``cap`` is that of the attention's where the settings don't say it.
    """
    scale = real_setting(config, "query_pre_attn_scalar", "(0, inf)", 256.0) ** -0.5
    return _any_gemma(
        config,
        norm="sandwich",
        activation=activation_of(config, "hidden_activation", "gelu_pytorch_tanh"),
        attention_options={"scale": scale, "logits_soft_cap": config.get("attn_logit_softcapping", cap)},
        **changed,
    )


def _gemma2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    n = count_setting(config, "num_hidden_layers")
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(n)]
    options = _newer_gemma(config, cap=50.0, layers=layers_of(config, kinds, windows_by_kind(config, 4096)))
    return options | {"logits_soft_cap": config.get("final_logit_softcapping", 30.0)}


def _gemma3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    n, period = count_setting(config, "num_hidden_layers"), config.get("sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n)]
    # Of older files, the layers without a window alone are scaled.
    bases = {"sliding_attention": ("rope_local_base_freq", 1e4), "full_attention": ("rope_theta", 1e6)}
    rotary = rotary_by_kind(config, bases, scaled=("full_attention",))
    by_kind = {kind: {**layer, "rotary": rotary[kind]} for kind, layer in windows_by_kind(config, 4096).items()}
    options = _newer_gemma(
        config, cap=None, layers=layers_of(config, kinds, by_kind), rotary=None, normalize_qk=_gemma_norm(config)
    )
    return options | {"logits_soft_cap": config.get("final_logit_softcapping")}


_GEMMA_NORMS = {
    **LLAMA_NORMS,
    "post_attention_layernorm": "norms_after.0",
    "pre_feedforward_layernorm": "norm2",
    "post_feedforward_layernorm": "norms_after.1",
}
_GEMMA_PLAIN = {"use_bidirectional_attention": (None, False)}


class Gemma(TextDecoder):
    """Gemma; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma: Open Models Based on Gemini Research and Technology, 2024.
    """

    hugging_face = Family(
        table=llama_table,
        implemented={"model_type": ("gemma",), **_GEMMA_PLAIN},
        options=_gemma_options,
        without_effect=frozenset({"hidden_activation"}),
        any_head_features=True,
    )


class Gemma2(TextDecoder):
    """Gemma 2; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, 2024.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, {**LLAMA_ATTENTION, **_GEMMA_NORMS, **LLAMA_NETWORK}),
        implemented={"model_type": ("gemma2",), **_GEMMA_PLAIN},
        options=_gemma2_options,
        without_effect=frozenset({"hidden_act", "sliding_window_size"}),
        any_head_features=True,
    )


class Gemma3(TextDecoder):
    """Gemma 3's text model; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma 3 Technical Report, 2025.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, {**LLAMA_ATTENTION, **QK_NORMS, **_GEMMA_NORMS, **LLAMA_NETWORK}),
        implemented={"model_type": ("gemma3_text",), "attn_logit_softcapping": (None,), **_GEMMA_PLAIN},
        options=_gemma3_options,
        without_effect=frozenset({"hidden_act", "_sliding_window_pattern"}),
        any_head_features=True,
    )
