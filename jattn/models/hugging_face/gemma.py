"""Gemma, Gemma 2 and Gemma 3's text model: scaled embeddings, norms times 1 + weight, GELU gates."""

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
    windows_of,
)
from jattn.models.hugging_face.family import Family, count_setting, flag_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm, Rotary

__all__ = ["Gemma", "Gemma2", "Gemma3"]


def _gemma_norm(config: Mapping[str, Any]) -> Norm:
    return Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6), scale_offset=1.0)


def _gemma_decoder(config: Mapping[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    scale = count_setting(config, "hidden_size") ** 0.5
    given = {**llama_like(config, norm=_gemma_norm(config), layers=layers, padding=0), "embedding_scale": scale}
    return given | {"tied": flag_setting(config, "tie_word_embeddings", True)}


def _gemma_block(config: Mapping[str, Any], activation: Any, **changed: Any) -> dict[str, Any]:
    heads = heads_of(config, head_features=256)
    heads["attention_options"] |= changed.pop("attention_options", {})
    use_bias = flag_setting(config, "attention_bias", False)
    block = gated_block(config, norm_kind=_gemma_norm(config), activation=activation, use_bias=use_bias)
    return block | heads | changed


def _gemma_options(config: Mapping[str, Any]) -> dict[str, Any]:
    # Its first files say gelu, and mean the approximation.
    activation = "gelu_tanh" if config.get("hidden_act") == "gelu" else activation_of(config, "hidden_act", "gelu_new")
    block = _gemma_block(config, activation, rotary=rotary_of(config))
    return _gemma_decoder(config, [block] * count_setting(config, "num_hidden_layers"))


def _gemma_attention(config: Mapping[str, Any], *, cap: float | None) -> dict[str, Any]:
    """The scale is that of another width, and logits are capped; by ``cap`` where the settings don't say."""
    cap = config.get("attn_logit_softcapping", cap)
    return {"scale": real_setting(config, "query_pre_attn_scalar", "(0, inf)", 256.0) ** -0.5, "logits_soft_cap": cap}


def _gemma2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    activation = activation_of(config, "hidden_activation", "gelu_pytorch_tanh")
    block = _gemma_block(
        config,
        activation,
        norm="sandwich",
        rotary=rotary_of(config),
        attention_options=_gemma_attention(config, cap=50.0),
    )
    n = count_setting(config, "num_hidden_layers")
    windows = windows_of(config, ["full_attention" if i % 2 else "sliding_attention" for i in range(n)], window=4096)
    layers = [{**block, "window": window} for window in windows]
    return {**_gemma_decoder(config, layers), "logits_soft_cap": config.get("final_logit_softcapping", 30.0)}


def _gemma3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    n, period = count_setting(config, "num_hidden_layers"), config.get("sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n)]
    windows = windows_of(config, kinds, window=4096)
    near, far = _gemma3_rotary(config)
    common = dict(
        norm="sandwich", normalize_qk=_gemma_norm(config), attention_options=_gemma_attention(config, cap=None)
    )
    block = _gemma_block(config, activation_of(config, "hidden_activation", "gelu_pytorch_tanh"), **common)
    kinds = config.get("layer_types") or kinds
    rotary = {"sliding_attention": near, "full_attention": far}
    layers = [{**block, "window": w, "rotary": rotary[kind]} for w, kind in zip(windows, kinds, strict=True)]
    return {**_gemma_decoder(config, layers), "logits_soft_cap": config.get("final_logit_softcapping")}


def _gemma3_rotary(config: Mapping[str, Any]) -> tuple[Rotary, Rotary]:
    """Of the layers with a window, and of the others, which alone are scaled."""
    given = config.get("rope_parameters") or {}
    if "full_attention" in given or "sliding_attention" in given:
        longest = {"max_position_embeddings": config.get("max_position_embeddings")}
        bases = {"sliding_attention": 1e4, "full_attention": 1e6}
        near, far = (
            rotary_of({**longest, "rope_parameters": {"rope_theta": base, **(given.get(kind) or {})}})
            for kind, base in bases.items()
        )
        return near, far
    if given:
        raise ValueError(
            "config's rope_parameters must have full_attention or sliding_attention, as each kind of layers has its "
            f"own. Got {given!r:.80}."
        )
    base = real_setting(config, "rope_local_base_freq", "(0, inf)", 1e4)
    return Rotary(base), rotary_of({"rope_theta": 1e6, **{name: config[name] for name in config if "rope" in name}})


_GEMMA_AFTER = {
    "post_attention_layernorm": "norms_after.0",
    "pre_feedforward_layernorm": "norm2",
    "post_feedforward_layernorm": "norms_after.1",
}
_GEMMA_NORMED = {"self_attn.q_norm": "attention.query_ln", "self_attn.k_norm": "attention.key_ln"}
_GEMMA_PLAIN = {"use_bidirectional_attention": (None, False)}


class Gemma(TextDecoder):
    """Gemma; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma: Open Models Based on Gemini Research and Technology, 2024.
    """

    hugging_face = Family(
        table=llama_table,
        implemented={"model_type": ("gemma",), **_GEMMA_PLAIN},
        options=_gemma_options,
        without_effect=frozenset({"hidden_activation", "max_position_embeddings"}),
        any_head_features=True,
    )


class Gemma2(TextDecoder):
    """Gemma 2; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, 2024.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, {**LLAMA_LAYER, **_GEMMA_AFTER}),
        implemented={"model_type": ("gemma2",), **_GEMMA_PLAIN},
        options=_gemma2_options,
        without_effect=frozenset({"hidden_act", "max_position_embeddings", "sliding_window_size"}),
        any_head_features=True,
    )


class Gemma3(TextDecoder):
    """Gemma 3's text model; the arguments are those of `TextDecoder`.

    Source: Gemma Team, Gemma 3 Technical Report, 2025.
    """

    hugging_face = Family(
        table=lambda model: llama_table(model, {**LLAMA_LAYER, **_GEMMA_AFTER, **_GEMMA_NORMED}),
        implemented={"model_type": ("gemma3_text",), "attn_logit_softcapping": (None,), **_GEMMA_PLAIN},
        options=_gemma3_options,
        without_effect=frozenset({"hidden_act", "max_position_embeddings", "_sliding_window_pattern"}),
        any_head_features=True,
    )
