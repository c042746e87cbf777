"""Llama against torch_ref, and against Hugging Face's `transformers` on the same weights."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.models
from jattn import models
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.models.hugging_face.comparison import assert_loads_and_dumps, logits_and_weights
from parity_tests.models.hugging_face.generation import LENS, TOKENS, V, assert_continues_alike
from parity_tests.nn import blank, both, call_for_weights, randomised
from parity_tests.nn.test_rotary_positions import in_float64

SIZES: dict[str, Any] = {"features": 12, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "feedforward_features": 20}
MORE: dict[str, Any] = {"head_features": 6, "rotary_base": 50.0, "norm_epsilon": 1e-3}
THEIRS: dict[str, Any] = {
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "head_dim": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "rms_norm_eps": 1e-3,
}
PADDED: dict[str, Any] = {"tokens": TOKENS, "valid_lens": LENS}


wide_llama = functools.partial(in_float64, "models.llama.modeling_llama")


def made(**options: Any) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="no transformers: Llama was not compared with Hugging Face's"
    )
    config = transformers.LlamaConfig(
        **{**THEIRS, **options}, vocab_size=V, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    return randomised(transformers.LlamaForCausalLM(config))


def under_their_names(twin: torch_ref.models.Llama) -> dict[str, torch.Tensor]:
    """The parameters as Hugging Face names them."""
    named = {"model.embed_tokens": twin.embedding, "model.norm": twin.norm, "lm_head": twin.output or twin.embedding}
    for i, block in enumerate(twin.blocks):
        layer, attend, feed = f"model.layers.{i}.", block.attention, block.feed_forward
        named |= {f"{layer}input_layernorm": block.norm1, f"{layer}post_attention_layernorm": block.norm2}
        named |= {
            f"{layer}self_attn.{name}_proj": getattr(attend, part)
            for name, part in zip("qkvo", ("query", "key", "value", "out"), strict=True)
        }
        parts = {"gate": feed.gate, "up": feed.linear1, "down": feed.linear2}
        named |= {f"{layer}mlp.{name}_proj": part for name, part in parts.items()}
    return {f"{name}.weight": module.weight for name, module in named.items()}


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [(MORE, DTYPES), ({"tied": True, "num_heads": 2, "num_kv_heads": 1}, ("float64",))],
    ids=["untied", "tied"],
)
def test_llama(parity: Parity, options: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    modules = both(models.Llama, V, **{**SIZES, **options})
    parity("Llama", call_for_weights, call_for_weights, {}, PADDED, **modules, dtypes=dtypes)


@pytest.mark.parametrize(
    ("tied", "inputs", "dtypes"),
    [(False, PADDED, DTYPES[:2]), (False, {**PADDED, "valid_lens": None}, ("float64",)), (True, PADDED, ("float64",))],
    ids=["padded", "whole", "tied"],
)
def test_hugging_face(parity: Parity, tied: bool, inputs: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    narrow = made(tie_word_embeddings=tied)
    with wide_llama():
        wide = made(tie_word_embeddings=tied)  # its frequencies are made with it

    def theirs(twin: torch_ref.models.Llama, **inputs: Any) -> Any:
        double = twin.embedding.weight.dtype == torch.float64
        with wide_llama() if double else contextlib.nullcontext():
            return logits_and_weights(wide if double else narrow, under_their_names(twin), **inputs)

    module = blank(lambda: models.Llama(V, **SIZES, **MORE, tied=tied, rngs=nnx.Rngs(0)))
    twin = randomised(torch_ref.models.Llama(V, **SIZES, **MORE, tied=tied))
    parity("Llama, transformers", call_for_weights, theirs, {}, inputs, module=module, torch_module=twin, dtypes=dtypes)


SCALED: dict[str, dict[str, Any]] = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 5,
    },
}


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_positions(kind: str) -> None:
    """Of Llama 3.1 and others: the logits of their model, from its settings and weights, with dynamic ones in reach."""
    rope = {"rope_type": kind, "rope_theta": 50.0, **SCALED[kind]}
    with wide_llama(), torch.no_grad():
        hf = made(rope_parameters=rope, max_position_embeddings=5 if kind == "dynamic" else 64).double()
        expected = hf(torch.from_numpy(TOKENS)).logits.numpy()
        with jax.enable_x64(True):
            ours = models.Llama.from_hugging_face(hf.config.to_dict(), hf.state_dict())
            assert ours.blocks[0].attention.rotary.scaling is not None
            np.testing.assert_allclose(ours(jnp.asarray(TOKENS)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_from_and_to_hugging_face(tmp_path: Path, tied: bool) -> None:
    assert_loads_and_dumps(models.Llama, made(tie_word_embeddings=tied), tmp_path)


@pytest.mark.whole
def test_greedy_continuation() -> None:
    with wide_llama():
        assert_continues_alike(models.Llama, made())
