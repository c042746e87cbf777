"""How Hugging Face stores a GPT-2: the names of its parts, its settings, and its fused and turned weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn.models.hugging_face import Family, count_setting, optional_count_setting, parameters, real_setting

__all__ = ["GPT2_FAMILY"]

_GPT2_EMBEDDING = "transformer.wte.weight"
_C_ATTN = ("query", "key", "value")  # which it holds, in this order


def _gpt2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `GPT2` for the settings of a ``GPT2LMHeadModel``."""
    rates = {name: real_setting(config, name, "[0, 1)", 0.1) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    if rates["embd_pdrop"] != rates["resid_pdrop"]:
        raise ValueError(
            "config must have an embd_pdrop equal to resid_pdrop, as the model has one rate for both. "
            f"Got {rates['embd_pdrop']} and {rates['resid_pdrop']}. Set them alike: in eval mode neither matters."
        )
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        max_length=count_setting(config, "n_positions"),
        features=count_setting(config, "n_embd"),
        num_heads=count_setting(config, "n_head"),
        num_layers=count_setting(config, "n_layer"),
        feedforward_features=optional_count_setting(config, "n_inner"),
        dropout_rate=rates["resid_pdrop"],
        attention_dropout_rate=rates["attn_pdrop"],
        norm_epsilon=real_setting(config, "layer_norm_epsilon", "[0, inf)", 1e-5),
    )


def _taken_apart(state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Query, key and value out of c_attn, and each Conv1D's ``(in, out)`` as a Linear's ``(out, in)``."""
    bare = not any(name.startswith("transformer.") for name in state_dict)  # as the official files have it
    full = {f"transformer.{name}" if bare else name: x for name, x in state_dict.items()}
    arrays = parameters(full, without=r"\.attn\.(masked_)?bias$", tied=_GPT2_EMBEDDING)
    arrays = {name: x.T if ".c_" in name else x for name, x in arrays.items()}
    for name in [name for name in arrays if "c_attn" in name]:
        for part, x in zip(_C_ATTN, np.array_split(arrays.pop(name), 3), strict=True):
            arrays[name.replace("c_attn", part)] = x
    return arrays


def _put_together(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `_taken_apart`."""
    arrays = {"lm_head.weight": arrays[_GPT2_EMBEDDING], **arrays}
    for name in [name for name in arrays if ".query." in name]:
        parts = [arrays.pop(name.replace("query", part)) for part in _C_ATTN]
        arrays[name.replace("query", "c_attn")] = np.concatenate(parts)
    return {name: x.T if ".c_" in name else x for name, x in arrays.items()}


GPT2_FAMILY = Family(
    names={  # c_attn, which holds query, key and value, is taken apart before
        "transformer.wte": "embedding",
        "transformer.wpe": "positions.embedding",
        "transformer.h.#.ln_1": "blocks.#.norm1",
        "transformer.h.#.attn.query": "blocks.#.attention.query",
        "transformer.h.#.attn.key": "blocks.#.attention.key",
        "transformer.h.#.attn.value": "blocks.#.attention.value",
        "transformer.h.#.attn.c_proj": "blocks.#.attention.out",
        "transformer.h.#.ln_2": "blocks.#.norm2",
        "transformer.h.#.mlp.c_fc": "blocks.#.feed_forward.linear1",
        "transformer.h.#.mlp.c_proj": "blocks.#.feed_forward.linear2",
        "transformer.ln_f": "norm",
    },
    implemented={
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    },
    options=_gpt2_options,
    import_entries=_taken_apart,
    export_entries=_put_together,
)
