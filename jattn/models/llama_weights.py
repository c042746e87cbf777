"""How Hugging Face stores a Llama: the names of its parts, and its settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn._engine import checks
from jattn.models.hugging_face import Family, count_setting, optional_count_setting, parameters, real_setting
from jattn.models.rotary_settings import rotary_of

__all__ = ["LLAMA_FAMILY"]

_LLAMA_EMBEDDING = "model.embed_tokens.weight"


def _llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Llama` for the settings of a ``LlamaForCausalLM``."""
    if config.get("sliding_window") is not None:  # a Llama's masks in transformers are causal whatever it says
        raise ValueError(
            "config must have no sliding_window: of a Llama, transformers cuts only the cache of generate to it, so "
            f"that generate differs from the model. Got {config['sliding_window']!r}."
        )
    features, heads, head_features = (
        count_setting(config, "hidden_size"),
        count_setting(config, "num_attention_heads"),
        optional_count_setting(config, "head_dim"),
    )
    if head_features is None:
        checks.divides("config's num_attention_heads", heads, "hidden_size", features)
    if (d := head_features or features // heads) % 2:
        raise ValueError(
            "config's head_dim, hidden_size / num_attention_heads by default, must be even, as rotary positions turn "
            f"pairs of features. Got {d}."
        )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=features,
        num_heads=heads,
        num_kv_heads=optional_count_setting(config, "num_key_value_heads"),
        head_features=head_features,
        num_layers=count_setting(config, "num_hidden_layers"),
        feedforward_features=count_setting(config, "intermediate_size"),
        rotary=rotary_of(config),
        tied=config.get("tie_word_embeddings", False),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
        norm_epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6),
    )


def _without_frequencies(state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters; the oldest files hold the frequencies of the rotary positions too."""
    tied = _LLAMA_EMBEDDING if options["tied"] else None
    return parameters(state_dict, without=r"\.rotary_emb\.inv_freq$", tied=tied)


def _with_output(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `_without_frequencies`."""
    return {"lm_head.weight": arrays[_LLAMA_EMBEDDING], **arrays}


LLAMA_FAMILY = Family(
    names={
        "model.embed_tokens": "embedding",
        "model.layers.#.input_layernorm": "blocks.#.norm1",
        "model.layers.#.self_attn.q_proj": "blocks.#.attention.query",
        "model.layers.#.self_attn.k_proj": "blocks.#.attention.key",
        "model.layers.#.self_attn.v_proj": "blocks.#.attention.value",
        "model.layers.#.self_attn.o_proj": "blocks.#.attention.out",
        "model.layers.#.post_attention_layernorm": "blocks.#.norm2",
        "model.layers.#.mlp.gate_proj": "blocks.#.feed_forward.gate",
        "model.layers.#.mlp.up_proj": "blocks.#.feed_forward.linear1",
        "model.layers.#.mlp.down_proj": "blocks.#.feed_forward.linear2",
        "model.norm": "norm",
        "lm_head": "output",
    },
    implemented={
        "model_type": ("llama",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "quantization_config": (None,),
    },
    options=_llama_options,
    import_entries=_without_frequencies,
    export_entries=_with_output,
    any_head_features=True,
)
