"""Settings that change what a model computes, one at a time, and arguments that are no folder and no dtype."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from jattn import models
from jattn.models.hugging_face.family import FAMILIES
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import LinearScaling, Rotary, YaRNScaling
from tests.errors import raises

GPT2: dict[str, Any] = {"vocab_size": 19, "n_positions": 8, "n_embd": 12, "n_head": 2, "n_layer": 1}
LLAMA: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def arguments(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Of the model of these settings."""
    return FAMILIES[kind].hugging_face.arguments({"model_type": kind, **config})


def test_gpt2_has_a_rate_for_the_embeddings_and_one_for_the_blocks() -> None:
    options = arguments("gpt2", {**GPT2, "embd_pdrop": 0.2, "resid_pdrop": 0.3, "attn_pdrop": 0.4})
    model = models.GPT2(**options, rngs=nnx.Rngs(0))
    block = model.blocks[0]
    rates = [x.rate for x in (model.dropout, block.attended_dropout, block.residual_dropout, block.attention.dropout)]
    assert rates == [0.2, 0.3, 0.3, 0.4]


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Rotary(150000.0, scaling=YaRNScaling(32.0, 4096, truncate=False))),
        ({"rope_theta": 50.0}, Rotary(50.0, scaling=YaRNScaling(32.0, 4096, truncate=False))),
        ({"rope_parameters": {}}, Rotary(150000.0)),
        ({"rope_parameters": {"rope_type": "default"}}, Rotary(150000.0)),
    ],
)
def test_gpt_oss_has_scaled_positions_where_its_settings_name_none(more: dict[str, Any], expected: Rotary) -> None:
    options = arguments("gpt_oss", {**LLAMA, **more})
    assert options["layers"][0]["rotary"] == expected


def test_where_both_names_of_the_positions_are_given_the_older_one_counts() -> None:
    older, newer = {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 3.0, "rope_theta": 77.0}
    options = arguments("llama", {**LLAMA, "rope_theta": 50.0, "rope_scaling": older, "rope_parameters": newer})
    assert options["rotary"] == Rotary(50.0, scaling=LinearScaling(2.0))
    nested = {"full_attention": {"factor": 3.0, "rope_theta": 77.0}, "sliding_attention": {"rope_theta": 7.0}}
    config = {**LLAMA, "max_position_embeddings": 24, "rope_scaling": older, "rope_parameters": nested}
    rotary = [layer["rotary"] for layer in arguments("modernbert", {**config, "num_hidden_layers": 2})["layers"]]
    assert rotary == [Rotary(base, scaling=LinearScaling(2.0)) for base in (77.0, 7.0)]


@pytest.mark.parametrize(
    ("kind", "more", "phrase"),
    [
        ("gpt_neox", {"rope_theta": 50.0}, "config's rope_theta must be rotary_emb_base, 10000.0"),
        ("gpt_neox", {"rotary_emb_base": 40, "rope_theta": 50}, "config's rope_theta must be rotary_emb_base, 40"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "config's rope_parameters must have full_attention or sliding_attention",
        ),
    ],
)
@pytest.mark.every_case
def test_positions_that_transformers_would_not_read_are_refused(kind: str, more: dict[str, Any], phrase: str) -> None:
    with raises(phrase):
        arguments(kind, {**LLAMA, "head_dim": 8, "max_position_embeddings": 24, **more})


@pytest.mark.every_case
@pytest.mark.parametrize("kind", ["yarn", "longrope"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_length_of_positions_that_is_none(kind: str, inside: bool) -> None:
    zero = {"original_max_position_embeddings": 0}
    config: dict[str, Any] = {"max_position_embeddings": 32, "rope_parameters": {"rope_type": kind}}
    if inside:
        config["rope_parameters"] |= zero
    else:
        config |= zero
    with raises("config's original_max_position_embeddings must be a number in [1, inf). Got 0."):
        rotary_of(config)


@pytest.mark.every_case
@pytest.mark.parametrize("load", [models.load, models.Llama.from_folder, models.SentenceEncoder.from_folder])
@pytest.mark.usefixtures("unchecked")
def test_a_path_that_is_none(load: Any) -> None:
    with raises("path must be a model's folder, a str or a Path. Got None."):
        load(None)


@pytest.mark.every_case
@pytest.mark.parametrize("given", ["float99", jnp.int8, "bool", 3.5])
def test_parameters_of_no_floating_dtype(given: Any) -> None:
    with raises("param_dtype must be a floating-point dtype, such as jnp.bfloat16. Got"):
        models.GPT2.from_hugging_face({"model_type": "gpt2", **GPT2}, {}, param_dtype=given)
