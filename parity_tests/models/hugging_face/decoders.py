"""A tiny configuration of each family of decoders, for `transformers`."""

from functools import partial
from typing import Any

from parity_tests.models.hugging_face.case import TEXT, Case

__all__ = ["CONFIGS", "ROWS", "V", "made"]

V = 29
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 50.0,
    "short_factor": [1.0],
    "long_factor": [2.0],
    "original_max_position_embeddings": 16,
}
# Without groups of heads.
EQUAL: dict[str, Any] = {name: x for name, x in SIZES.items() if name != "num_key_value_heads"}
OPT: dict[str, Any] = {name: x for name, x in EQUAL.items() if name != "intermediate_size"} | {"ffn_dim": 20}
GPT: dict[str, Any] = {name: SIZES[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}

# By a name: the model, and its settings.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", {**GPT, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 32}),
    "Llama": ("LlamaForCausalLM", {**SIZES, "head_dim": 4, "attention_bias": True, "mlp_bias": True}),
    "Mistral": ("MistralForCausalLM", {**SIZES, "head_dim": 6, "sliding_window": 4}),
    "Mistral without a window": ("MistralForCausalLM", {**SIZES, "head_dim": 4, "sliding_window": None}),
    "Qwen 2": (
        "Qwen2ForCausalLM",
        {**SIZES, "hidden_size": 16, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "Qwen 2, tied": ("Qwen2ForCausalLM", {**SIZES, "hidden_size": 16, "tie_word_embeddings": True}),
    "Qwen 3": ("Qwen3ForCausalLM", {**SIZES, "head_dim": 6}),
    "Gemma": ("GemmaForCausalLM", {**SIZES, "head_dim": 6}),
    "Gemma 2": (
        "Gemma2ForCausalLM",
        {
            **SIZES,
            "head_dim": 6,
            "sliding_window": 4,
            "query_pre_attn_scalar": 3,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        },
    ),
    "Gemma 3": (
        "Gemma3ForCausalLM",
        {
            **SIZES,
            "head_dim": 6,
            "sliding_window": 4,
            "query_pre_attn_scalar": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "Mixtral": (
        "MixtralForCausalLM",
        {**SIZES, "head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            **SIZES,
            "head_dim": 6,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 3,
            "swiglu_limit": 0.5,
        },
    ),
    "Granite": (
        "GraniteForCausalLM",
        {
            **SIZES,
            "hidden_size": 16,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
    ),
    "Phi-3": ("Phi3ForCausalLM", {**SIZES, "hidden_size": 16, "sliding_window": 4}),
    "Phi-3, part of the features": (
        "Phi3ForCausalLM",
        {**SIZES, "hidden_size": 16, "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}},
    ),
    "OLMo 2": ("Olmo2ForCausalLM", {**SIZES, "hidden_size": 16}),
    "GPT-NeoX": (
        "GPTNeoXForCausalLM",
        {**EQUAL, "hidden_size": 32, "rotary_pct": 0.5},
    ),
    "GPT-NeoX, in turn": (
        "GPTNeoXForCausalLM",
        {**EQUAL, "hidden_size": 32, "use_parallel_residual": False, "attention_bias": False},
    ),
    "BLOOM": ("BloomForCausalLM", {**GPT, "hidden_size": 24, "n_layer": 2, "n_head": 6}),
    "OPT": ("OPTForCausalLM", OPT),
    "OPT, norms after": (
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8, "enable_bias": False},
    ),
}


def made(name: str, implementation: str = "eager", **more: Any) -> Any:
    """The model of `transformers`, in the dtype that is PyTorch's default now."""
    import transformers

    kind, settings = CONFIGS[name]
    config_class = getattr(transformers, kind).config_class
    settings = {**settings, **more}
    # Experts one after the other, as their grouped product has no float64.
    ways = {"attn_implementation": implementation, "experts_implementation": "eager"}
    return getattr(transformers, kind)(config_class(**settings, **ways))


ROWS = {name: Case(partial(made, name), TEXT, generates=True) for name in CONFIGS}
