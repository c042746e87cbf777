"""What families read of config.json: settings that are refused, taken without effect, or left out, and saving them."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads, models
from jattn.models.hugging_face.family import FAMILIES
from jattn.weights import Table

V = 23
MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": V,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "sliding_window": 4,
}


def test_an_unknown_setting_is_refused() -> None:
    arguments = models.Mistral.hugging_face.arguments
    assert arguments({**MISTRAL, "eos_token_id": 2, "new_setting": None})["layers"][0]["window"] == 4
    with pytest.raises(ValueError, match="new_setting=3") as raised:
        arguments({**MISTRAL, "new_setting": 3})
    assert "config must have settings that are known here" in str(raised.value)
    assert "In a family of your own, read them in options" in str(raised.value)


def test_options_of_ones_own_ask_for_settings_as_of_a_dictionary() -> None:
    family = models.Family(
        table=lambda model: Table([]),
        implemented={},
        options=lambda config: {"layers": config["depth"], "features": config.get("width", 8), "slopes": {}["slopes"]},
    )
    with pytest.raises(ValueError, match=r"config must have depth\. Got the settings model_type, width\."):
        family.arguments({"model_type": "own", "width": 4})
    with pytest.raises(KeyError, match="slopes"):  # a mistake of theirs is theirs
        family.arguments({"depth": 2})


SIZES = {name: x for name, x in MISTRAL.items() if name not in ("model_type", "sliding_window")}
OLDER_SIZES = {"vocab_size": V, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
BLOOM = {"vocab_size": V, "n_embed": 8, "n_layer": 1, "num_attention_heads": 2}
# What the files of much used checkpoints have, and no code reads.
OFFICIAL: dict[str, dict[str, Any]] = {
    "gpt2": {**OLDER_SIZES, "n_special": 0, "predict_special_tokens": True, "_num_labels": 1, "output_past": True},
    "gpt_neox": {**SIZES, "hidden_size": 16, "attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    "llama": {
        **SIZES,
        **{"is_llama_config": True, "max_sequence_length": 8, "rope_interleaved": False, "pruned_heads": {}},
        "transformers.js_config": {"kv_cache_dtype": "float16"},
    },
    "qwen2": {**SIZES, "use_mrope": False},
    "gemma2": {**SIZES, "sliding_window": 4, "sliding_window_size": 4},
    "phi3": {
        **SIZES,
        **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias", "is_decoder", "add_cross_attention"), False),
        **{"full_attn_mod": 1, "interpolate_factor": 1},
    },
    "gpt_oss": {**SIZES, "experts_per_token": 4, "num_experts_per_tok": 4},
    "bloom": {
        **BLOOM,
        **dict.fromkeys(("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"), True),
        **{"skip_bias_add_qkv": False, "n_inner": None, "unk_token_id": 0},
    },
    "opt": {**SIZES, "ffn_dim": 12, "max_position_embeddings": 8, "activation_dropout": 0.0},
    "bert": {
        **{**SIZES, "max_position_embeddings": 8, "type_vocab_size": 2},
        "sentence_transformers": {"version": "4.0.1"},
    },
}
OFFICIAL["opt"].pop("intermediate_size")


@pytest.mark.every_case
@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_files_are_taken(kind: str) -> None:
    assert FAMILIES[kind].hugging_face.arguments({"model_type": kind, **OFFICIAL[kind]})["vocab_size"] == V


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("qwen2", "use_mrope", True), ("phi3", "attention_bias", True), ("llama", "pruned_heads", {"0": [1]})],
)
def test_other_values_of_theirs_are_refused(kind: str, name: str, value: Any) -> None:
    config = {"model_type": kind, **OFFICIAL[kind], name: value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        FAMILIES[kind].hugging_face.arguments(config)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("kind", "more", "name", "default"),
    [
        ("mistral", {}, "sliding_window", 4096),
        ("gemma2", {}, "sliding_window", 4096),
        ("gemma2", {}, "attn_logit_softcapping", 50.0),
        ("gemma2", {}, "final_logit_softcapping", 30.0),
        ("gemma3_text", {}, "sliding_window", 4096),
        ("gpt_oss", {}, "sliding_window", 128),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "sliding_window", 4096),
        ("gemma", {}, "pad_token_id", 0),
        ("olmo2", {}, "pad_token_id", 1),
    ],
)
def test_what_a_file_leaves_out_is_as_transformers_has_it(kind: str, more: Any, name: str, default: Any) -> None:
    arguments, config = FAMILIES[kind].hugging_face.arguments, {"model_type": kind, **SIZES, **more}
    assert arguments(config) == arguments({**config, name: default})
    assert arguments(config) != arguments({**config, name: None})


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral", "granite", "olmo2", "phi3", "qwen2", "qwen3"])
def test_the_activation_is_that_of_the_settings(kind: str) -> None:
    arguments, config = FAMILIES[kind].hugging_face.arguments, {"model_type": kind, **SIZES}
    assert arguments(config) == arguments({**config, "hidden_act": "swish"})
    given = arguments({**config, "hidden_act": "gelu_new"})
    assert given.get("activation", given.get("layers", [{}])[0].get("activation")) == "gelu_tanh"
    with pytest.raises(ValueError, match="config's hidden_act must be one of"):
        arguments({**config, "hidden_act": "xielu"})


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_layers_with_a_window_where_the_settings_say_that_there_is_none(kind: str) -> None:
    """`transformers` makes no mask for them."""
    arguments, config = FAMILIES[kind].hugging_face.arguments, {"model_type": kind, **SIZES, "sliding_window": 4}
    assert arguments({**config, "layer_types": ["full_attention"]}) == arguments(config)
    with pytest.raises(ValueError, match="config's layer_types must have full_attention for each of 1 layers"):
        arguments({**config, "layer_types": ["sliding_attention"]})
    given = arguments({**config, "layer_types": ["sliding_attention"], "use_sliding_window": True})
    assert given["layers"][0]["window"] == 4


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("opt", "gpt_neox") for name in ("num_key_value_heads", "head_dim")]
    + [("vit", "num_key_value_heads")],
)
def test_heads_as_no_model_of_the_family_has_them(kind: str, name: str) -> None:
    sizes = {**SIZES, "hidden_size": 16, "ffn_dim": 12, "max_position_embeddings": 8}
    del sizes["intermediate_size" if kind == "opt" else "ffn_dim"]
    for of_texts in ("vocab_size", "max_position_embeddings") if kind == "vit" else ():
        del sizes[of_texts]
    config = {"model_type": kind, **sizes}
    arguments = FAMILIES[kind].hugging_face.arguments
    assert arguments(config)["features"] == 16
    with pytest.raises(ValueError, match=f"{name}=2"):
        arguments({**config, name: 2})


def test_rotary_positions_of_each_kind_of_layer_in_older_files() -> None:
    """Of Gemma 3, those without a window are scaled."""
    arguments, config = models.Gemma3.hugging_face.arguments, {"model_type": "gemma3_text", **SIZES}
    scaled = {"rope_type": "linear", "factor": 8.0}
    kinds = {"sliding_attention": {"rope_theta": 50.0}, "full_attention": {"rope_theta": 500.0, **scaled}}
    for layer in kinds:
        config["layer_types"] = [layer]
        older = {**config, "rope_theta": 500.0, "rope_local_base_freq": 50.0, "rope_scaling": scaled}
        assert arguments(older) == arguments({**config, "rope_parameters": kinds})
        assert arguments(older) != arguments(config)


@pytest.mark.parametrize("older", ["su", "yarn"])
def test_longrope_by_its_older_names(older: str) -> None:
    factors = {"short_factor": [1.0, 1.1], "long_factor": [1.5, 2.0], "original_max_position_embeddings": 8}
    config = {"model_type": "phi3", **SIZES, "max_position_embeddings": 16}
    arguments = models.Phi3.hugging_face.arguments
    assert arguments({**config, "rope_scaling": {"type": older, **factors}}) == arguments(
        {**config, "rope_scaling": {"rope_type": "longrope", **factors}}
    )


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("pad_token_id", "0", "config's pad_token_id must be an integer"),
        ("pad_token_id", [0], "config's pad_token_id must be an integer"),
        ("mlp_bias", "yes", "config's mlp_bias must be True or False"),
        ("tie_word_embeddings", None, "config's tie_word_embeddings must be True or False"),
    ],
)
def test_settings_of_another_type(name: str, value: Any, must: str) -> None:
    with pytest.raises(ValueError, match=must):
        models.Llama.hugging_face.arguments({"model_type": "llama", **SIZES, name: value})
    windows = {"use_sliding_window": True, "max_window_layers": None}
    with pytest.raises(ValueError, match="config's max_window_layers must be an integer"):
        models.Qwen2.hugging_face.arguments({"model_type": "qwen2", **SIZES, **windows})


@pytest.mark.every_case
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_refuses_what_it_does_not_know(kind: str) -> None:
    given = {
        **{name: 16 for name in ("vocab_size", "hidden_size", "n_embd", "n_positions", "ffn_dim", "intermediate_size")},
        **{"dim": 16, "hidden_dim": 16, "n_heads": 2, "n_layers": 2},
        "head_dim": 8,
        **{name: 2 for name in ("num_hidden_layers", "num_attention_heads", "n_layer", "n_head", "type_vocab_size")},
        "max_position_embeddings": 8,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        **{name: 16 for name in ("d_model", "d_ff", "max_source_positions", "max_target_positions", "num_mel_bins")},
        **{name: 2 for name in ("num_layers", "num_heads", "d_kv")},
        **{f"{side}_{of}": 2 for side in ("encoder", "decoder") for of in ("layers", "ffn_dim", "attention_heads")},
        "model_type": kind,
    }
    family, read = FAMILIES[kind].hugging_face, set[str]()

    class Asked(dict):
        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

    family.options(Asked(given))
    known = {name: x for name, x in given.items() if name in read or name in family.implemented}
    family.arguments(known)
    with pytest.raises(ValueError, match=r"stream_multiplier=2\.0"):
        family.arguments({**known, "stream_multiplier": 2.0})


def test_a_family_that_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match=r"model_type among bart, bert, .*mistral") as raised:
        models.load(tmp_path)
    assert "Got 'mamba'" in str(raised.value)


def test_saving_needs_the_settings(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="no safetensors: no folder was saved")
    model = models.TextDecoder(**models.Mistral.hugging_face.arguments(MISTRAL), rngs=nnx.Rngs(0))
    mistral = models.Mistral(**models.Mistral.hugging_face.arguments(MISTRAL), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="config must be given"):
        mistral.save(tmp_path)
    with pytest.raises(ValueError, match="config must be of this model") as raised:
        mistral.save(tmp_path, config={**MISTRAL, "intermediate_size": 16})
    assert "feed_forward" in str(raised.value)
    assert not list(tmp_path.iterdir())
    mistral.save(tmp_path, config=MISTRAL)
    again = models.load(tmp_path)
    assert isinstance(again, models.Mistral)
    tokens = jnp.arange(6)[None]
    np.testing.assert_array_equal(again(tokens), mistral(tokens))
    assert model(tokens).shape == (1, 6, V)


def test_heads_that_have_slopes_of_their_own_are_not_saved_without_the_others(tmp_path: Path) -> None:
    config = {"model_type": "bloom", "vocab_size": V, "hidden_size": 8, "n_layer": 1, "n_head": 4}
    model = models.Bloom(**models.Bloom.hugging_face.arguments(config), rngs=nnx.Rngs(0))
    pruned = heads.prune(model, {"blocks.0.attention": [0, 1]})
    for save in (pruned.to_hugging_face, lambda: pruned.save(tmp_path, config=config)):
        with pytest.raises(ValueError, match="model must have all of its heads"):
            save()
