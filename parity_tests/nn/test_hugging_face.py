"""One module, configured ten ways, is the attention of ten families of models in Hugging Face's `transformers`.

Outputs, weights and all gradients in float64, of whole sequences and of sequences that are padded on either side.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jattn import biases
from jattn.masks import all_of, causal, sliding_window
from jattn.nn import LinearScaling, Llama3Scaling, LongRoPEScaling, MultiHeadAttention, Norm, Rotary, YaRNScaling
from parity_tests.conftest import Parity
from parity_tests.nn import blank, randomised
from parity_tests.nn.hugging_face import Family, Theirs, bloom, by_head, concatenated, mpnet, renamed, rotary, t5

# Sizes of several families: b = 3, t = 7, h = 4, k = 2, m = 20, d = 6.
OPTIONS: dict[str, Any] = {"num_heads": 4, "in_features": 20, "num_kv_heads": 2, "qkv_features": 24}
SETTINGS = {"num_attention_heads": 4, "hidden_size": 20, "num_key_value_heads": 2, "head_dim": 6}
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
NORMS = {"query_ln": "q_norm", "key_ln": "k_norm"}
SHORT_NAMES = {"query": "q", "key": "k", "value": "v", "out": "o"}
BASE_50 = {"rope_type": "default", "rope_theta": 50.0}
WHOLE: dict[str, Any] = {"mask": causal(), "their_mask": "create_causal_mask"}
WINDOW: dict[str, Any] = {"mask": sliding_window(2, 0), "their_mask": "create_sliding_window_causal_mask"}
THREE_TOKENS = {"sliding_window": 3, "num_hidden_layers": 2}  # they count the token itself
BOTH_SIDES: dict[str, Any] = {"mask": None, "their_mask": "create_bidirectional_mask"}

LLAMA = Family(
    name="Llama 3.1",
    folder="llama",
    attention="LlamaAttention",
    config="LlamaConfig",
    settings={
        **SETTINGS,
        "rope_parameters": {  # of the three pairs one is short, one is on the ramp, one is long
            "rope_type": "llama3",
            "rope_theta": 50.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    prepare=rotary,
    parameters=renamed(**PROJECTIONS),
    options={**OPTIONS, "rotary": Rotary(50.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32))},
    **WHOLE,
)

QWEN3 = Family(
    name="Qwen3",
    folder="qwen3",
    attention="Qwen3Attention",
    config="Qwen3Config",
    settings={
        **SETTINGS,
        **THREE_TOKENS,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "rms_norm_eps": 1e-3,
        "rope_parameters": BASE_50,
    },
    layer=1,
    prepare=rotary,
    parameters=renamed(**PROJECTIONS, **NORMS),
    options={**OPTIONS, "normalize_qk": Norm("rms", epsilon=1e-3), "rotary": Rotary(50.0)},
    **WINDOW,
)

GEMMA2 = Family(
    name="Gemma 2",
    folder="gemma2",
    attention="Gemma2Attention",
    config="Gemma2Config",
    settings={
        **SETTINGS,
        **THREE_TOKENS,
        "query_pre_attn_scalar": 3,
        "attn_logit_softcapping": 1.5,
        "rope_parameters": BASE_50,
    },
    prepare=rotary,
    parameters=renamed(**PROJECTIONS),
    implementations=("eager",),  # sdpa has no soft cap
    options={**OPTIONS, "scale": 3**-0.5, "logits_soft_cap": 1.5, "rotary": Rotary(50.0)},
    **WINDOW,
)

GEMMA3_NORM = Norm("rms", epsilon=1e-3, scale_offset=1.0)
GEMMA3 = Family(
    name="Gemma 3",
    folder="gemma3",
    attention="Gemma3Attention",
    config="Gemma3TextConfig",
    settings={
        **SETTINGS,
        **THREE_TOKENS,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 3,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {
            "sliding_attention": BASE_50,
            "full_attention": {"rope_type": "linear", "rope_theta": 90.0, "factor": 8.0},
        },
    },
    prepare=rotary,
    parameters=renamed(**PROJECTIONS, **NORMS),
    options={**OPTIONS, "scale": 3**-0.5, "normalize_qk": GEMMA3_NORM, "rotary": Rotary(50.0)},
    **WINDOW,
)

PHI3 = Family(
    name="Phi-3",
    folder="phi3",
    attention="Phi3Attention",
    config="Phi3Config",
    settings={
        "num_attention_heads": 4,
        "hidden_size": 24,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 24,
        "original_max_position_embeddings": 6,  # 7 tokens are long, and 5 with padding are short
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 50.0,
            "factor": 4.0,
            "original_max_position_embeddings": 6,
            "short_factor": [1.1, 1.5],
            "long_factor": [2.0, 5.0],
        },
    },
    prepare=rotary,
    parameters=concatenated,
    options={
        "num_heads": 4,
        "in_features": 24,
        "num_kv_heads": 2,
        "rotary": Rotary(50.0, features=4, scaling=LongRoPEScaling((1.1, 1.5), (2.0, 5.0), 6, factor=4.0)),
    },
    **WHOLE,
)

GPT_NEOX = Family(
    name="GPT-NeoX",
    folder="gpt_neox",
    attention="GPTNeoXAttention",
    config="GPTNeoXConfig",
    settings={
        "num_attention_heads": 4,
        "hidden_size": 24,
        "rotary_pct": 0.75,
        "rope_parameters": BASE_50,
    },
    prepare=rotary,
    parameters=by_head(4),
    options={"num_heads": 4, "in_features": 24, "use_bias": True, "rotary": Rotary(50.0, features=4)},
    **WHOLE,
)

T5 = Family(
    name="T5",
    folder="t5",
    attention="T5Attention",
    config="T5Config",
    settings={
        "num_heads": 4,
        "d_model": 20,
        "d_kv": 6,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
    },
    prepare=t5,
    parameters=renamed(**SHORT_NAMES),
    options={"num_heads": 4, "in_features": 20, "qkv_features": 24, "scale": 1.0},
    tokens=11,  # so that far ones share buckets
    more={"table": (8, 4)},
    bias=lambda table: biases.relative(table, max_distance=16),
    **BOTH_SIDES,
)

MPNET = Family(
    name="MPNet",
    folder="mpnet",
    attention="MPNetSelfAttention",
    config="MPNetConfig",
    settings={"num_attention_heads": 4, "hidden_size": 24},
    prepare=mpnet,
    parameters=renamed(**SHORT_NAMES),
    implementations=("eager",),  # there is no other
    options={"num_heads": 4, "in_features": 24, "use_bias": True},
    tokens=19,  # so that far ones share buckets
    more={"table": (32, 4)},
    bias=biases.relative,
    **BOTH_SIDES,
)

BLOOM = Family(
    name="BLOOM",
    folder="bloom",
    attention="BloomAttention",
    config="BloomConfig",
    settings={"n_head": 6, "hidden_size": 24},
    prepare=bloom,
    parameters=by_head(6),
    implementations=("eager",),  # there is no other
    options={"num_heads": 6, "in_features": 24, "use_bias": True},
    bias=lambda: biases.alibi(6),  # 6 is no power of two
    **WHOLE,
)

GPT_OSS = Family(
    name="gpt-oss",
    folder="gpt_oss",
    attention="GptOssAttention",
    config="GptOssConfig",
    settings={
        **SETTINGS,
        **THREE_TOKENS,
        "max_position_embeddings": 256,
        "rope_parameters": {  # of the three pairs one stays, one is on the ramp, one is slower
            "rope_type": "yarn",
            "rope_theta": 50.0,
            "factor": 4.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
    prepare=rotary,
    parameters=renamed(**PROJECTIONS),
    implementations=("eager",),  # sdpa has no sinks
    options={
        **OPTIONS,
        "use_bias": True,
        "use_sinks": True,
        "rotary": Rotary(50.0, scaling=YaRNScaling(4.0, 64, beta_fast=4.0, beta_slow=1.0, truncate=False)),
    },
    **WINDOW,
)

FAMILIES = [LLAMA, QWEN3, GEMMA2, GEMMA3, PHI3, GPT_NEOX, T5, MPNET, BLOOM, GPT_OSS]

# Layers without a window, and a decoder's.
OTHER_LAYERS = [
    replace(QWEN3, name="Qwen3, whole", layer=0, **WHOLE),
    replace(GEMMA2, name="Gemma 2, whole", layer=1, **WHOLE),
    replace(
        GEMMA3,
        name="Gemma 3, whole",
        layer=1,
        options={**GEMMA3.options, "rotary": Rotary(90.0, scaling=LinearScaling(8.0))},
        **WHOLE,
    ),
    replace(
        T5,
        name="T5, decoder",
        settings={**T5.settings, "is_decoder": True},
        bias=lambda table: biases.relative(table, bidirectional=False, max_distance=16),
        **WHOLE,
    ),
    replace(GPT_OSS, name="gpt-oss, whole", layer=1, **WHOLE),
]


def assert_alike(parity: Parity, family: Family, implementation: str, padding: str) -> None:
    """With eager, which also gives the weights, our dense implementation is compared, with sdpa our streaming one."""
    eager = implementation == "eager"
    module = blank(lambda: MultiHeadAttention(**family.options, rngs=nnx.Rngs(0)))
    t, m = family.tokens, family.options["in_features"]
    rng = np.random.default_rng(0)
    inputs = {"query": rng.standard_normal((3, t, m))}
    inputs |= {name: rng.standard_normal(shape) for name, shape in family.more.items()}
    lens = np.array([t - 2, t // 2, 1])
    real = {
        "no padding": None,
        "right": np.arange(t) < lens[:, None],
        "left": np.arange(t) >= t - lens[:, None],
    }[padding]
    # As transformers' generation has it: padding is at 0.
    positions = None if real is None else np.where(real, real.cumsum(axis=-1) - 1, 0)

    def ours(module: Any, query: Any, real: Any, positions: Any, **more: Any) -> Any:
        rules: dict[str, Any] = {"mask": family.mask, "bias": family.bias(**more)}
        if padding == "right":
            rules["valid_lens"] = real.sum(axis=-1)
        elif padding == "left":
            rules["mask"] = all_of(family.mask, real[:, None, None, :])
        result = module(
            query,
            **rules,
            positions=positions,
            implementation="dense" if eager else "streaming",
            return_weights=eager,
        )
        return of_real(*(result if eager else (result, None)), real)

    def theirs(module: Theirs, query: Any, real: Any, positions: Any, **more: Any) -> Any:
        return of_real(*module(query, real, positions, **more), real)

    parity(
        f"{family.name}, transformers",
        ours,
        theirs,
        inputs,
        {"real": real, "positions": positions},
        module=module,
        torch_module=randomised(Theirs(family, implementation, module)),
        dtypes=("float64",),
    )


def of_real(output: Any, weights: Any, real: Any) -> Any:
    """Zeros for queries that are padding: what transformers has there is an average of any keys."""
    if real is not None:
        output = output * real[:, :, None]
        weights = None if weights is None else weights * real[:, None, :, None]
    return output if weights is None else (output, weights)


@pytest.mark.every_case
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_family(parity: Parity, family: Family) -> None:
    assert_alike(parity, family, "eager", "no padding")


REST = [
    (family, implementation, padding)
    for family in FAMILIES + OTHER_LAYERS
    for implementation in family.implementations
    for padding in ("no padding", "right", "left")
    if (implementation, padding) != ("eager", "no padding") or family in OTHER_LAYERS
]


@pytest.mark.whole
@pytest.mark.parametrize(("family", "implementation", "padding"), REST, ids=str)
def test_each_way(parity: Parity, family: Family, implementation: str, padding: str) -> None:
    assert_alike(parity, family, implementation, padding)
