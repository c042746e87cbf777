"""How Hugging Face stores a Llama: the names of its parts, and its settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn.models.hugging_face import Format, check_settings, parameters, setting

# Hugging Face's name of each part, and the name here.
NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers.#.input_layernorm": "blocks.#.norm1",
    "model.layers.#.self_attn.q_proj": "blocks.#.attention.query",
    "model.layers.#.self_attn.k_proj": "blocks.#.attention.key",
    "model.layers.#.self_attn.v_proj": "blocks.#.attention.value",
    "model.layers.#.self_attn.o_proj": "blocks.#.attention.out",
    "model.layers.#.post_attention_layernorm": "blocks.#.norm2",
    "model.layers.#.mlp.gate_proj": "blocks.#.feed_forward.gate",
    "model.layers.#.mlp.up_proj": "blocks.#.feed_forward.up",
    "model.layers.#.mlp.down_proj": "blocks.#.feed_forward.down",
    "model.norm": "norm",
    "lm_head": "output",
}
EMBEDDING = "model.embed_tokens.weight"
IMPLEMENTED = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
}


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Llama` for the settings of a ``LlamaForCausalLM``."""
    check_settings(config, IMPLEMENTED)
    return dict(
        vocab_size=setting(config, "vocab_size"),
        features=setting(config, "hidden_size"),
        num_heads=setting(config, "num_attention_heads"),
        num_kv_heads=config.get("num_key_value_heads"),
        head_features=config.get("head_dim"),
        num_layers=setting(config, "num_hidden_layers"),
        feedforward_features=setting(config, "intermediate_size"),
        rotary_base=rotary_base(config),
        tied=config.get("tie_word_embeddings", False),
        attention_dropout_rate=config.get("attention_dropout", 0.0),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
    )


def rotary_base(config: Mapping[str, Any]) -> float:
    """Of unscaled rotary positions; newer files have it in ``rope_parameters``, older ones in ``rope_theta``."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    for name in ("rope_scaling", "rope_parameters"):
        rope.update(config.get(name) or {})
        if rope.keys() != {"rope_theta", "rope_type"} or rope["rope_type"] != "default":
            raise ValueError(
                f"config must have no {name}: scaled rotary positions are not implemented. Got {config[name]}."
            )
    return rope["rope_theta"]


def taken(state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters; the oldest files hold the frequencies of the rotary positions too."""
    tied = EMBEDDING if options["tied"] else None
    return parameters(state_dict, without=r"\.rotary_emb\.inv_freq$", tied=tied)


def given(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `taken`."""
    return {"lm_head.weight": arrays[EMBEDDING], **arrays}


FORMAT = Format(NAMES, options, taken, given)
