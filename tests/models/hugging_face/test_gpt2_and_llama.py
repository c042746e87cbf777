"""GPT-2 and Llama: no token sees a later one, and settings and weights that don't fit are refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models, nn
from jattn.models.hugging_face.rotary import rotary_of
from tests.errors import raises

V = 19
KINDS = ("gpt2", "llama")
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
LENS = jnp.array([5, 2, 1])


def made(kind: str, seed: int = 0, **options: Any) -> Any:
    """A model whose continuations differ much."""
    sizes: dict[str, Any] = {"features": 12, "num_heads": 2, "num_layers": 1, "feedforward_features": 16, **options}
    rngs = nnx.Rngs(seed)
    if kind == "gpt2":
        model: Any = models.GPT2(V, **{"max_length": 14, **sizes}, rngs=rngs)
    else:
        model = models.Llama(V, num_kv_heads=1, **sizes, rngs=rngs)
    for block in model.blocks:
        block.attention.out.kernel[...] *= 20
    model.eval()
    return model


GPT2_CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": V,
    "n_positions": 8,
    "n_embd": 12,
    "n_head": 2,
    "n_layer": 1,
}
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: str) -> None:
    model = made(kind, num_layers=2)
    logits, weights = model(PROMPT, return_weights=True)
    assert logits.shape == (3, 5, V)
    assert [w.shape for w in weights] == [(3, 2, 5, 5)] * 2
    np.testing.assert_array_equal(model(PROMPT), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_a_later_one(kind: str) -> None:
    model = made(kind)
    logits, weights = model(PROMPT, return_weights=True)
    for i in range(5):
        other = model(PROMPT.at[:, i].set((PROMPT[:, i] + 1) % V))
        np.testing.assert_array_equal(logits[:, :i], other[:, :i])
        assert bool((logits[:, i:] != other[:, i:]).any(-1).all()), "and every later one sees it"
    assert all(bool((jnp.triu(w, 1) == 0).all()) for w in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_influence(kind: str) -> None:
    """Not on real tokens, and not on the weights of padding."""
    model = made(kind)
    logits, weights = model(PROMPT, valid_lens=LENS, return_weights=True)
    for i, length in enumerate(LENS.tolist()):
        other = model(PROMPT.at[i, length:].set(0), valid_lens=LENS)
        np.testing.assert_array_equal(logits[i, :length], other[i, :length])
        whole = model(PROMPT)  # where no padding is known of, real tokens come before it
        np.testing.assert_allclose(logits[i, :length], whole[i, :length], rtol=1e-5, atol=1e-5)
        assert bool((weights[0][i, :, :, length:] == 0).all())


def test_dropout_is_where_gpt2_has_it() -> None:
    model = made("gpt2", dropout_rate=0.5, attention_dropout_rate=0.0)
    model.train()
    with raises("rng must be given"):
        model(PROMPT)
    a, b, c = (model(PROMPT, rng=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert bool((a != c).any())
    model.eval()
    np.testing.assert_array_equal(model(PROMPT), made("gpt2")(PROMPT))


def test_a_tied_llama_has_no_output_of_its_own() -> None:
    model = made("llama", tied=True)
    assert model.output is None
    np.testing.assert_array_equal(
        model(PROMPT), made("llama", tied=True)(PROMPT), "and is made the same from the same seed"
    )
    embedded = model.embedding.embedding[...]
    model.embedding.embedding[...] = embedded.at[7].set(0)
    assert bool((model(PROMPT[:1])[..., 7] == 0).all()), "a token of zeros has a logit of zero"


def test_too_many_tokens() -> None:
    with raises("tokens must have at most max_length = 14 positions", "Got 15"):
        made("gpt2")(jnp.ones((1, 15), int))


@pytest.mark.parametrize(
    ("config", "phrases"),
    [
        (
            {**GPT2_CONFIG, "scale_attn_by_inverse_layer_idx": True},
            ("scale_attn_by_inverse_layer_idx must be False. Got True",),
        ),
        ({**GPT2_CONFIG, "scale_attn_weights": False}, ("scale_attn_weights must be True. Got False",)),
        ({**GPT2_CONFIG, "activation_function": "relu"}, ("activation_function must be 'gelu_new' or", "Got 'relu'")),
        (
            {**GPT2_CONFIG, "add_cross_attention": True, "tie_word_embeddings": False},
            ("add_cross_attention must be False", "tie_word_embeddings must be True"),
        ),
        ({**GPT2_CONFIG, "model_type": "gptj"}, ("model_type must be 'gpt2'. Got 'gptj'",)),
        ({**LLAMA_CONFIG, "use_qk_norm": True}, ("others may change what the model computes", "use_qk_norm=True")),
        ({**LLAMA_CONFIG, "sliding_window": 3}, ("have no sliding_window", "cache of generate", "Got 3.")),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(config: dict[str, Any], phrases: tuple[str, ...]) -> None:
    kind = models.GPT2 if "n_embd" in config or config["model_type"].startswith("gpt") else models.Llama
    with raises("config must", *phrases):
        kind.from_hugging_face(config, {})


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("hidden_size", "12", "be an integer in [1, inf)"),
        ("num_hidden_layers", 2.0, "be an integer in [1, inf)"),
        ("num_attention_heads", 5, "be a positive divisor of hidden_size, 12"),
        ("num_key_value_heads", "x", "be an integer in [1, inf)"),
        ("rope_parameters", "x", "be a dict"),
        ("rope_theta", -1, "be a number in (0, inf)"),
        ("rms_norm_eps", "x", "be a number in [0, inf)"),
        ("attention_dropout", 1.0, "be a number in [0, 1)"),
        ("head_dim", 3, "hidden_size / num_attention_heads by default, must be even"),
    ],
)
def test_damaged_settings_of_a_llama(name: str, value: Any, must: str) -> None:
    with raises(f"config's {name}", must, f"Got {value!r}."):
        models.Llama.from_hugging_face({**LLAMA_CONFIG, name: value}, {})


def test_damaged_settings_of_a_gpt2() -> None:
    with raises("config's n_embd must be an integer in [1, inf). Got '12'."):
        models.GPT2.from_hugging_face({**GPT2_CONFIG, "n_embd": "12"}, {})


def test_a_setting_that_is_not_there() -> None:
    with raises("config must have vocab_size", "Got the settings model_type"):
        models.GPT2.from_hugging_face({"model_type": "gpt2"}, {})


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, nn.Rotary()),
        ({"rope_theta": 5e5, "rope_scaling": None}, nn.Rotary(5e5)),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, nn.Rotary(7.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, nn.Rotary(scaling=nn.LinearScaling(2.0))),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64},
            nn.Rotary(scaling=nn.DynamicNTKScaling(2.0, 64)),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "max_position_embeddings": 131072},
            nn.Rotary(5e5, scaling=nn.Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}, "max_position_embeddings": 32},
            nn.Rotary(scaling=nn.YaRNScaling(4.0, 32, truncate=False)),
        ),
        (
            {
                "rope_scaling": {"type": "longrope", **LONG},
                "max_position_embeddings": 64,
                "original_max_position_embeddings": 16,
            },
            nn.Rotary(scaling=nn.LongRoPEScaling((1.0, 2.0), (3.0, 4.0), 16, 4.0)),
        ),
    ],
)
def test_rotary_positions_of_a_configuration(settings: dict[str, Any], expected: nn.Rotary) -> None:
    assert rotary_of(settings) == expected
    assert rotary_of(settings, interleaved=True) == dataclasses.replace(expected, interleaved=True)


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        ({"rope_scaling": {"type": "spiral"}}, ("rope_scaling must have a rope_type among default", "'spiral'")),
        ({"rope_scaling": {"type": "linear"}}, ("rope_scaling must have factor for 'linear' positions",)),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            ("rope_parameters must have factor, low_freq_factor, high_freq_factor, original_max",),
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
    ],
)
def test_rotary_positions_that_are_refused(settings: dict[str, Any], phrases: tuple[str, ...]) -> None:
    with raises("config's", *phrases):
        models.Llama.from_hugging_face({**LLAMA_CONFIG, **settings}, {})


def gpt2_weights() -> dict[str, np.ndarray]:
    """As the official files have them: no prefix, and the causal masks among them."""
    m, rng = 12, np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, m), "wpe.weight": (8, m), "h.0.attn.bias": (1, 1, 8, 8)}
    for name in ("ln_f", "h.0.ln_1", "h.0.ln_2"):
        shapes |= {f"{name}.weight": (m,), f"{name}.bias": (m,)}
    for name, outer, inner in (
        ("attn.c_attn", m, 3 * m),
        ("attn.c_proj", m, m),
        ("mlp.c_fc", m, 4 * m),
        ("mlp.c_proj", 4 * m, m),
    ):
        shapes |= {f"h.0.{name}.weight": (outer, inner), f"h.0.{name}.bias": (inner,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_folder(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="reading a folder was not tested")
    weights = gpt2_weights()
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    with raises("config.json"):
        models.GPT2.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    model = models.GPT2.from_folder(tmp_path)
    block = model.blocks[0]
    np.testing.assert_array_equal(
        block.attention.key.kernel[...].reshape(12, 12), weights["h.0.attn.c_attn.weight"][:, 12:24]
    )
    np.testing.assert_array_equal(block.feed_forward.linear1.kernel[...], weights["h.0.mlp.c_fc.weight"])
    assert model(PROMPT).shape == (3, 5, V)


def test_weights_that_do_not_fit() -> None:
    weights = gpt2_weights()
    del weights["h.0.ln_1.bias"], weights["ln_f.weight"], weights["ln_f.bias"]
    with raises("missing: blocks.0.norm1.bias", "missing: norm"):
        models.GPT2.from_hugging_face(GPT2_CONFIG, weights)
    weights = {f"transformer.{name}": x for name, x in gpt2_weights().items()}
    with raises("lm_head.weight tied to transformer.wte.weight", "Got other numbers"):
        models.GPT2.from_hugging_face(GPT2_CONFIG, {**weights, "lm_head.weight": np.ones((V, 12), np.float32)})
    with raises("unknown: transformer.h.0.crossattention.weight"):
        models.GPT2.from_hugging_face(
            GPT2_CONFIG, {**weights, "transformer.h.0.crossattention.weight": np.ones(2, np.float32)}
        )
