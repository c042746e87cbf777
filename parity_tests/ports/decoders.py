"""Mistral, Gemma 2, gpt-oss and BLOOM out of one decoder, and the mistakes that are made on the way."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from jattn import biases, masks
from jattn.nn import LinearScaling, Norm, Rotary, YaRNScaling
from parity_tests.ports import rewired
from parity_tests.ports.decoder import Decoder
from parity_tests.ports.port import (
    SWAPPED_KEYS,
    SWAPPED_NORMS,
    Change,
    Mistake,
    Parts,
    Port,
    argument,
    block,
    every,
    squared_relu,
    swapped,
    whole,
)

__all__ = ["DECODERS"]

V, M, FF = 19, 20, 28
SIZES = {
    "vocab_size": V,
    "hidden_size": M,
    "intermediate_size": FF,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
}
# PyTorch's names to the port's.
LLAMA_NAMES = {
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
}
OF_LAYER = "model.layers.#."


def tokens(padding: str | None = None) -> dict[str, Any]:
    """Two texts of nine tokens, the second, where it is padded, of six."""
    numbers = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(0))
    if padding is None:
        return {"input_ids": numbers}
    real = torch.ones(2, 9, dtype=torch.long)
    real[1, 6:] = 0
    return {"input_ids": numbers, "attention_mask": real}


def ours_of(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments by the port's names."""
    return {("tokens" if name == "input_ids" else name): x.numpy() for name, x in given.items()}


def rms(epsilon: float = 1e-5, offset: float = 0.0) -> Norm:
    return Norm("rms", epsilon=epsilon, scale_offset=offset)


def tied(parts: Parts) -> None:
    parts.settings["tied"] = True
    parts.names["lm_head"] = ""


AHEAD, TURNED = masks.causal(offset=1), masks.where(lambda q, k: k >= q)
ROTARY_OF_ONE = "rotary positions of queries or keys alone"
ATTENTION = r"self_attn|self_attention"
# Mistakes that any decoder of this kind can have, by what is true of it.
PLAIN: tuple[Mistake, ...] = (
    Mistake("post-norm", every(norm="post"), r"layers\.0|norm", ("post-norm for pre-norm",)),
    Mistake("parallel", every(parallel=True), r"layers\.0", ("sublayers in parallel",)),
    Mistake(
        "layer norm",
        every(norm_kind=Norm("layer", epsilon=1e-5, use_bias=False)),
        r"layernorm",
        ("RMS norm or layer norm",),
    ),
    Mistake("epsilon", every(norm_kind=rms(1e-3)), r"layernorm", ("layer-norm epsilon",)),
    Mistake("exact GELU", every(activation="gelu"), r"mlp", ("another activation",)),
    Mistake("tanh GELU", every(activation="gelu_tanh"), r"mlp", ("another activation",)),
    Mistake("ReLU", every(activation="relu"), r"mlp", ("another activation",)),
    Mistake(
        "gate and up swapped",
        swapped(f"{OF_LAYER}mlp.gate_proj", f"{OF_LAYER}mlp.up_proj"),
        r"mlp",
        ("gate and up projection swapped",),
    ),
    Mistake("rotary base", every(rotary=Rotary(500.0)), ATTENTION, ("rotary base",)),
    Mistake("interleaved", every(rotary=Rotary(interleaved=True)), ATTENTION, ("pairs of rotary features",)),
    Mistake("no rotary", every(rotary=None), ATTENTION, ("missing rotary positions",)),
    Mistake("half of the features", every(rotary=Rotary(features=4)), ATTENTION, ("rotary width",)),
    Mistake("scaled frequencies", every(rotary=Rotary(scaling=LinearScaling(2.0))), ATTENTION, ("rotary scaling",)),
    Mistake("not causal", whole(causal=None), ATTENTION, ("missing causal mask",)),
    Mistake("causal off by one", whole(causal=AHEAD), ATTENTION, ("causal mask off by one",)),
    Mistake("causal for keys", whole(causal=TURNED), ATTENTION, ("causal mask over the wrong axis",)),
    Mistake("rotary of queries alone", rewired.rotary_of_queries, ATTENTION, (ROTARY_OF_ONE,)),
    Mistake("queries ahead", rewired.queries_ahead, ATTENTION, ("rotary positions off by one",)),
    Mistake("tiled heads", rewired.tiled, ATTENTION, ("order of grouped heads",)),
    Mistake("merged by feature", rewired.merged_by_feature, ATTENTION, ("order of heads and features",)),
    Mistake("squared ReLU", every(activation=squared_relu), r"mlp", ("another activation",)),
    Mistake("tied head", tied, r"lm_head|model", ("tied embeddings",)),
    Mistake("no scale", every(attention_options={"scale": 1.0}), ATTENTION, ("missing scale",)),
    Mistake("1 / d", every(attention_options={"scale": 1 / 6}), ATTENTION, ("another scale", "missing scale")),
    Mistake("scale of the width", every(attention_options={"scale": M**-0.5}), ATTENTION, ("another scale",)),
    Mistake(
        "keys as values",
        swapped(f"{OF_LAYER}self_attn.k_proj", f"{OF_LAYER}self_attn.v_proj"),
        r"[kv]_proj",
        SWAPPED_KEYS,
    ),
    Mistake(
        "norms swapped",
        swapped(f"{OF_LAYER}input_layernorm", f"{OF_LAYER}post_attention_layernorm"),
        r"layernorm",
        SWAPPED_NORMS,
    ),
    Mistake("embedding scale", whole(embedding_scale=M**0.5), r"embed", ("embedding scale", "constant factor")),
    Mistake("cap of the attention", every(attention_options={"logits_soft_cap": 2.0}), ATTENTION, ("soft cap",)),
    Mistake("cap of the logits", whole(logits_soft_cap=2.0), r"lm_head|model", ("soft cap of the output's logits",)),
)


def mistral(implementation: str) -> torch.nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(**SIZES, sliding_window=4, rms_norm_eps=1e-5, attn_implementation=implementation)
    )


MISTRAL_BLOCK: dict[str, Any] = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "feedforward_features": FF,
    "norm": "pre",
    "norm_kind": rms(),
    "activation": "silu",
    "gated": True,
    "feedforward_bias": False,
    "use_bias": False,
    "rotary": Rotary(),
    "attention_options": {"qkv_features": 24},
    "window": 4,
}
MISTRAL = Port(
    "Mistral",
    mistral,
    Decoder,
    {"v": V, "features": M, "layers": [dict(MISTRAL_BLOCK), dict(MISTRAL_BLOCK)], "norm": rms(), "tied": False},
    LLAMA_NAMES,
    tokens("right"),
    ours_of(tokens("right")),
    (
        *PLAIN,
        Mistake("no window", every(window=None), ATTENTION, ("missing window",)),
        Mistake("window of 3", every(window=3), ATTENTION, ("window off by one",)),
        Mistake("window of 5", every(window=5), ATTENTION, ("window off by one",)),
        Mistake("window of the second layer", block(1, window=None), r"layers\.1\.", ("missing window",)),
        Mistake("1 + w", every(norm_kind=rms(1e-5, 1.0)), r"layernorm", ("norm times 1 + weight",)),
    ),
)


def gemma2(implementation: str) -> torch.nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            sliding_window=4,
            rms_norm_eps=1e-5,
            query_pre_attn_scalar=3,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
            attn_implementation=implementation,
        )
    )


GEMMA2_BLOCK: dict[str, Any] = {
    **MISTRAL_BLOCK,
    "norm": "sandwich",
    "norm_kind": rms(1e-5, 1.0),
    "activation": "gelu_tanh",
    "attention_options": {"qkv_features": 24, "scale": 3**-0.5, "logits_soft_cap": 1.5},
}
GEMMA2_NAMES = {
    **{name: ours for name, ours in LLAMA_NAMES.items() if name != "lm_head"},
    f"{OF_LAYER}post_attention_layernorm": "blocks.#.norms_after.0",
    f"{OF_LAYER}pre_feedforward_layernorm": "blocks.#.norm2",
    f"{OF_LAYER}post_feedforward_layernorm": "blocks.#.norms_after.1",
    "lm_head": "",
}
GEMMA2 = Port(
    "Gemma 2",
    gemma2,
    Decoder,
    {
        "v": V,
        "features": M,
        "layers": [dict(GEMMA2_BLOCK), {**GEMMA2_BLOCK, "window": None}],
        "norm": rms(1e-5, 1.0),
        "padding_idx": 0,
        "embedding_scale": M**0.5,
        "logits_soft_cap": 2.0,
    },
    GEMMA2_NAMES,
    tokens(),
    ours_of(tokens()),
    (
        Mistake("no 1 + w", every(norm_kind=rms()), r"layernorm", ("norm times 1 + weight",)),
        Mistake("epsilon", every(norm_kind=rms(1e-3, 1.0)), r"layernorm", ("layer-norm epsilon",)),
        Mistake(
            "no embedding scale",
            whole(embedding_scale=None),
            r"embed|model|layers\.0",
            ("embedding scale", "constant factor"),
        ),
        Mistake("exact GELU", every(activation="gelu"), r"mlp", ("exact or tanh GELU",)),
        Mistake("SiLU", every(activation="silu"), r"mlp", ("another activation",)),
        Mistake(
            "gate and up swapped",
            swapped(f"{OF_LAYER}mlp.gate_proj", f"{OF_LAYER}mlp.up_proj"),
            r"mlp",
            ("gate and up projection swapped",),
        ),
        Mistake("rotary base", every(rotary=Rotary(500.0)), ATTENTION, ("rotary base",)),
        Mistake("interleaved", every(rotary=Rotary(interleaved=True)), ATTENTION, ("pairs of rotary features",)),
        Mistake("no rotary", every(rotary=None), ATTENTION, ("missing rotary positions",)),
        Mistake("not causal", whole(causal=None), ATTENTION, ("missing causal mask",)),
        Mistake("half of the features", every(rotary=Rotary(features=4)), ATTENTION, ("rotary width",)),
        Mistake("rotary of queries alone", rewired.rotary_of_queries, ATTENTION, (ROTARY_OF_ONE,)),
        Mistake("queries ahead", rewired.queries_ahead, ATTENTION, ("rotary positions off by one",)),
        Mistake("tiled heads", rewired.tiled, ATTENTION, ("order of grouped heads",)),
        Mistake("causal off by one", whole(causal=AHEAD), ATTENTION, ("causal mask off by one",)),
        Mistake("causal for keys", whole(causal=TURNED), ATTENTION, ("causal mask over the wrong axis",)),
        Mistake("scale of a head", every(attention_options={"scale": None}), ATTENTION, ("another scale",)),
        Mistake("no scale", every(attention_options={"scale": 1.0}), ATTENTION, ("missing scale",)),
        Mistake("no cap", every(attention_options={"logits_soft_cap": None}), ATTENTION, ("soft cap",)),
        Mistake("another cap", every(attention_options={"logits_soft_cap": 3.0}), ATTENTION, ("soft cap",)),
        Mistake(
            "no cap of the logits", whole(logits_soft_cap=None), r"lm_head|model", ("soft cap of the output's logits",)
        ),
        Mistake("no window", block(0, window=None), ATTENTION, ("missing window",)),
        Mistake("window of 3", block(0, window=3), ATTENTION, ("window off by one",)),
        Mistake(
            "windows of all layers", block(1, window=4), r"layers\.1\.self_attn", ("missing window", "another window")
        ),
        Mistake(
            "norms swapped",
            swapped(f"{OF_LAYER}input_layernorm", f"{OF_LAYER}pre_feedforward_layernorm"),
            r"layernorm",
            SWAPPED_NORMS,
        ),
        Mistake(
            "norms after swapped",
            swapped(f"{OF_LAYER}post_attention_layernorm", f"{OF_LAYER}post_feedforward_layernorm"),
            r"layernorm",
            SWAPPED_NORMS,
        ),
        Mistake(
            "keys as values",
            swapped(f"{OF_LAYER}self_attn.k_proj", f"{OF_LAYER}self_attn.v_proj"),
            r"[kv]_proj",
            SWAPPED_KEYS,
        ),
    ),
    implementations=("eager",),  # sdpa has no soft cap
)


class GptOssLike(torch.nn.Module):
    """gpt-oss with a dense network in the place of its experts."""

    def __init__(self, implementation: str) -> None:
        from transformers import GptOssConfig
        from transformers.models.gpt_oss import modeling_gpt_oss as modeling
        from transformers.models.llama.modeling_llama import LlamaMLP

        super().__init__()
        self.config = config = GptOssConfig(
            **SIZES,
            sliding_window=4,
            attention_bias=True,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 50.0,
                "factor": 4.0,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
            attn_implementation=implementation,
        )
        config.mlp_bias = False

        class Layer(torch.nn.Module):
            def __init__(self, i: int) -> None:
                super().__init__()
                self.input_layernorm = modeling.GptOssRMSNorm(M, eps=1e-5)
                self.self_attn = modeling.GptOssAttention(config, i)
                self.post_attention_layernorm = modeling.GptOssRMSNorm(M, eps=1e-5)
                self.mlp = LlamaMLP(config)

            def forward(self, x: torch.Tensor, mask: Any, angles: Any) -> torch.Tensor:
                attended, _ = self.self_attn(self.input_layernorm(x), attention_mask=mask, position_embeddings=angles)
                x = x + attended
                return x + self.mlp(self.post_attention_layernorm(x))

        self.embed_tokens = torch.nn.Embedding(V, M)
        self.layers = torch.nn.ModuleList([Layer(i) for i in range(2)])
        self.norm = modeling.GptOssRMSNorm(M, eps=1e-5)
        self.lm_head = torch.nn.Linear(M, V, bias=False)
        self.rotary_emb = modeling.GptOssRotaryEmbedding(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        x = self.embed_tokens(input_ids)
        positions = torch.arange(x.shape[1])[None]
        given = dict(config=self.config, inputs_embeds=x, attention_mask=None, position_ids=positions)
        named = inspect.signature(create_causal_mask).parameters
        given |= {name: None for name in ("cache", "past_key_values") if name in named}
        masks = {
            "full_attention": create_causal_mask(**given),
            "sliding_attention": create_sliding_window_causal_mask(**given),
        }
        angles = self.rotary_emb(x, positions)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = layer(x, masks[kind], angles)
        return self.lm_head(self.norm(x))


YARN = YaRNScaling(4.0, 16, beta_fast=4.0, beta_slow=1.0, truncate=False)
GPT_OSS_BLOCK: dict[str, Any] = {
    **MISTRAL_BLOCK,
    "use_bias": True,
    "rotary": Rotary(50.0, scaling=YARN),
    "attention_options": {"qkv_features": 24, "use_sinks": True},
}
GPT_OSS_NAMES = {name.removeprefix("model."): ours for name, ours in LLAMA_NAMES.items()} | {
    "layers.#.self_attn.sinks": "blocks.#.attention.sinks"
}


def without_sinks(parts: Parts) -> None:
    every(attention_options={"use_sinks": False})(parts)
    parts.names["layers.#.self_attn.sinks"] = ""


def without_biases(*projections: str) -> Change:
    def change(parts: Parts) -> None:
        every(use_bias=[name for name in ("query", "key", "value", "out") if name not in projections])(parts)
        for name in projections:
            parts.names[f"layers.#.self_attn.{name[0]}_proj.bias"] = ""

    return change


GPT_OSS = Port(
    "gpt-oss-like",
    GptOssLike,
    Decoder,
    {
        "v": V,
        "features": M,
        "layers": [dict(GPT_OSS_BLOCK), {**GPT_OSS_BLOCK, "window": None}],
        "norm": rms(),
        "tied": False,
    },
    GPT_OSS_NAMES,
    tokens(),
    ours_of(tokens()),
    (
        Mistake("no sinks", without_sinks, ATTENTION, ("attention sinks",)),
        Mistake("no scaling", every(rotary=Rotary(50.0)), ATTENTION, ("rotary scaling",)),
        Mistake(
            "linear for YaRN", every(rotary=Rotary(50.0, scaling=LinearScaling(4.0))), ATTENTION, ("rotary scaling",)
        ),
        Mistake(
            "rotary base", every(rotary=Rotary(10000.0, scaling=YARN)), ATTENTION, ("rotary base", "rotary scaling")
        ),
        Mistake(
            "interleaved",
            every(rotary=Rotary(50.0, scaling=YARN, interleaved=True)),
            ATTENTION,
            ("pairs of rotary features",),
        ),
        Mistake("no rotary", every(rotary=None), ATTENTION, ("missing rotary positions",)),
        Mistake("no biases", without_biases("query", "key", "value", "out"), r"_proj", ("missing bias",)),
        Mistake("no bias of the output", without_biases("out"), r"o_proj|self_attn", ("missing bias",)),
        Mistake("no bias of the values", without_biases("value"), r"v_proj", ("missing bias",)),
        Mistake("not causal", whole(causal=None), ATTENTION, ("missing causal mask",)),
        Mistake("a cap", every(attention_options={"logits_soft_cap": 2.5}), ATTENTION, ("soft cap",)),
        Mistake("tied head", tied, r"lm_head|model", ("tied embeddings",)),
        Mistake("tiled heads", rewired.tiled, ATTENTION, ("order of grouped heads",)),
        Mistake("queries ahead", rewired.queries_ahead, ATTENTION, ("rotary positions off by one",)),
        Mistake("no window", block(0, window=None), ATTENTION, ("missing window",)),
        Mistake("window of 5", block(0, window=5), ATTENTION, ("window off by one",)),
        Mistake(
            "window of the wrong layer",
            lambda parts: parts.settings["layers"].reverse(),
            ATTENTION,
            ("missing window", "another window"),
        ),
        Mistake("no scale", every(attention_options={"scale": 1.0}), ATTENTION, ("missing scale",)),
        Mistake("scale of the width", every(attention_options={"scale": M**-0.5}), ATTENTION, ("another scale",)),
        Mistake("epsilon", every(norm_kind=rms(1e-3)), r"layernorm", ("layer-norm epsilon",)),
        Mistake("1 + w", every(norm_kind=rms(1e-5, 1.0)), r"layernorm", ("norm times 1 + weight",)),
        Mistake("post-norm", every(norm="post"), r"layers\.0|norm", ("post-norm for pre-norm",)),
        Mistake(
            "gate and up swapped",
            swapped("layers.#.mlp.gate_proj", "layers.#.mlp.up_proj"),
            r"mlp",
            ("gate and up projection swapped",),
        ),
    ),
    implementations=("eager",),  # sdpa has no sinks
)


def bloom(implementation: str) -> torch.nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=24, n_layer=2, n_head=6, layer_norm_epsilon=1e-5))


def bloom_gelu(x: Any) -> Any:
    """The tanh GELU, its constant cut to eight digits."""
    return x * 0.5 * (1 + jnp.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


LAYER_NORM = Norm("layer", epsilon=1e-5)
BLOOM_BLOCK: dict[str, Any] = {
    "num_heads": 6,
    "feedforward_features": 96,
    "norm": "pre",
    "norm_kind": LAYER_NORM,
    "activation": bloom_gelu,
}
SLOPES = tuple(float(x) for x in biases.alibi(6).slopes)
BLOOM_NAMES = {
    "transformer.word_embeddings": "embedding",
    "transformer.word_embeddings_layernorm": "embedding_norm",
    "transformer.h.#.input_layernorm": "blocks.#.norm1",
    "transformer.h.#.self_attention.query_key_value": ("blocks.#.attention.", 6),  # query, key and value by head
    "transformer.h.#.self_attention.dense": "blocks.#.attention.out",
    "transformer.h.#.post_attention_layernorm": "blocks.#.norm2",
    "transformer.h.#.mlp.dense_h_to_4h": "blocks.#.feed_forward.linear1",
    "transformer.h.#.mlp.dense_4h_to_h": "blocks.#.feed_forward.linear2",
    "transformer.ln_f": "norm",
    "lm_head": "",
}


def packed_by_part(parts: Parts) -> None:
    parts.names["transformer.h.#.self_attention.query_key_value"] = ("blocks.#.attention.", 1)


def without_embedding_norm(parts: Parts) -> None:
    parts.settings["embedding_norm"] = None
    parts.names["transformer.word_embeddings_layernorm"] = ""


def rms_for_layer_norm(parts: Parts) -> None:
    every(norm_kind=Norm("rms", epsilon=1e-5))(parts)
    parts.names |= {f"transformer.h.#.{norm}_layernorm.bias": "" for norm in ("input", "post_attention")}


BLOOM = Port(
    "BLOOM",
    bloom,
    Decoder,
    {
        "v": V,
        "features": 24,
        "layers": [dict(BLOOM_BLOCK), dict(BLOOM_BLOCK)],
        "norm": LAYER_NORM,
        "embedding_norm": LAYER_NORM,
        "alibi": SLOPES,
    },
    BLOOM_NAMES,
    tokens("right"),
    ours_of(tokens("right")),
    (
        Mistake("no ALiBi", whole(alibi=None), ATTENTION, ("missing bias of the logits",)),
        Mistake("sign of ALiBi", whole(alibi_sign=-1.0), ATTENTION, ("sign of the bias",)),
        Mistake("slopes in order", whole(alibi=tuple(sorted(SLOPES, reverse=True))), ATTENTION, ("slopes of ALiBi",)),
        Mistake("slopes of 8 heads", whole(alibi=tuple(2.0**-i for i in range(1, 7))), ATTENTION, ("slopes of ALiBi",)),
        Mistake("slopes transposed", rewired.transposed_bias, ATTENTION, ("transposed bias", "sign of the bias")),
        Mistake("no padding", argument("attention_mask", np.ones_like), ATTENTION, ("missing mask",)),
        Mistake("padding inverted", argument("attention_mask", lambda x: 1 - x), ATTENTION, ("inverted mask",)),
        Mistake(
            "padding on the left", argument("attention_mask", np.fliplr), ATTENTION, ("padding on the other side",)
        ),
        Mistake("causal for keys", whole(causal=TURNED), ATTENTION, ("causal mask over the wrong axis",)),
        Mistake("query as key", rewired.keys_for_queries, ATTENTION, ("query and key swapped",)),
        Mistake("packed by part", packed_by_part, r"self_attention|query_key_value", ("order in a packed projection",)),
        Mistake("no norm of embeddings", without_embedding_norm, r"embed|h\.0|transformer", ("module left out",)),
        Mistake("epsilon", every(norm_kind=Norm("layer", epsilon=1e-3)), r"layernorm", ("layer-norm epsilon",)),
        Mistake("RMS norm", rms_for_layer_norm, r"layernorm", ("RMS norm or layer norm", "parameters of a norm")),
        Mistake("exact GELU", every(activation="gelu"), r"mlp", ("exact or tanh GELU",)),
        Mistake("ReLU", every(activation="relu"), r"mlp", ("another activation",)),
        Mistake("not causal", whole(causal=None), ATTENTION, ("missing causal mask",)),
        Mistake("no scale", every(attention_options={"scale": 1.0}), ATTENTION, ("missing scale",)),
        Mistake("embedding scale", whole(embedding_scale=24**0.5), r"embed", ("embedding scale", "constant factor")),
        Mistake("post-norm", every(norm="post"), r"h\.0|norm", ("post-norm for pre-norm",)),
        Mistake("parallel", every(parallel=True), r"h\.0", ("sublayers in parallel",)),
        Mistake(
            "norms swapped",
            swapped("transformer.h.#.input_layernorm", "transformer.h.#.post_attention_layernorm"),
            r"layernorm",
            SWAPPED_NORMS,
        ),
    ),
    implementations=("eager",),  # there is no other
)

DECODERS = (MISTRAL, GEMMA2, GPT_OSS, BLOOM)
