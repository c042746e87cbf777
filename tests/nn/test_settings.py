"""What layers can be told, and that each mistake in it is named when the layer is made."""

import inspect
import re
from typing import Any

import pytest
from flax import nnx

from jattn import nn
from tests.errors import raises


def test_settings_of_a_block() -> None:
    settings = nn.settings_of(nn.TransformerBlock)
    assert settings["num_heads"] is settings["feedforward_features"] is inspect.Parameter.empty
    assert not settings.keys() & {"rngs", "dtype", "param_dtype", "kernel_init", "bias_init", "self"}
    data = {"num_heads": 2, "features": 8, "feedforward_features": 12, "norm": "pre", "gated": True}
    block = nn.TransformerBlock(**{**settings, **data}, rngs=nnx.Rngs(0))
    assert block.norm_place == "pre"
    assert block.feed_forward.gate is not None


LAYERS = [x for x in map(nn.__dict__.get, nn.__all__) if isinstance(x, type) and issubclass(x, nnx.Module)]


@pytest.mark.parametrize("layer", LAYERS)
def test_settings_are_what_the_docstring_names(layer: type[nnx.Module]) -> None:
    settings = nn.settings_of(layer)
    assert not settings.keys() & {"self", "rngs", "dtype", "param_dtype", "kernel_init", "bias_init", "options"}
    if layer not in (nn.Linear, nn.LinearGeneral):  # whose docstrings are Flax's
        assert all(re.search(rf"^ {{8}}[^:]*\b{name}\b[^:]*:", layer.__doc__ or "", re.M) for name in settings), (
            settings
        )


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_layer() -> None:
    with raises("layer must be a class of layers, as jattn.nn.TransformerBlock is.", "Norm"):
        nn.settings_of(nn.Norm)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (nn.Embed, (0, 4), "num_embeddings must be an integer in [1, inf). Got 0."),
        (nn.Embed, (4, 2.0), "features must be an integer in [1, inf). Got 2.0."),
        (nn.FeedForward, (-1, 4), "features must be an integer in [1, inf). Got -1."),
        (nn.FeedForward, (4, "8"), "hidden_features must be an integer in [1, inf). Got '8'."),
        (nn.FeedForward, (4, 8, {"use_bias": None}), "use_bias must be True or False. Got None."),
        (nn.LayerNorm, (4, {"epsilon": -1e-5}), "epsilon must be a number in [0, inf). Got -1e-05."),
        (nn.LayerNorm, (4, {"epsilon": "1e-5"}), "epsilon must be a number in [0, inf). Got '1e-5'."),
        (nn.LayerNorm, (4, {"use_bias": 2}), "use_bias must be True or False. Got 2."),
        (nn.RMSNorm, (0,), "features must be an integer in [1, inf). Got 0."),
        (nn.RMSNorm, ((4, 4),), "Normalize over one axis, the last."),
        (nn.RMSNorm, (4, {"epsilon": float("nan")}), "epsilon must be a number in [0, inf). Got nan."),
        (nn.LearnedPositions, (0, 4), "max_length must be an integer in [1, inf). Got 0."),
        (nn.MultiHeadAttention, (0, 4), "num_heads must be an integer in [1, inf). Got 0."),
        (nn.MultiHeadAttention, (3, 4), "num_heads must be a positive divisor of qkv_features, 4. Got 3."),
        (nn.MultiHeadAttention, (8, 4), "num_heads, which comes first, must be at most in_features, 4. Got 8."),
        (nn.MultiHeadAttention, (2, 4, {"logits_soft_cap": -1.0}), "logits_soft_cap must be positive. Got -1.0."),
        (nn.WideMultiHeadSelfAttention, (2, "x"), "num_heads must be an integer in [1, inf). Got 'x'."),
        (nn.TransformerBlock, (4, 0, 8), "features must be an integer in [1, inf). Got 0."),
        (nn.TransformerBlock, (4, 8, 0), "feedforward_features must be an integer in [1, inf). Got 0."),
        (nn.TransformerBlock, (3, 8, 8), "num_heads must be a positive divisor of features, 8. Got 3."),
        (
            nn.TransformerBlock,
            (2, 8, 8, {"residual_dropout_rate": 2}),
            "residual_dropout_rate must be a number in [0, 1)",
        ),
        (nn.Conv, (0, 4, 3), "in_features must be an integer in [1, inf). Got 0."),
        (nn.Conv, (3, 4.0, 3), "out_features must be an integer in [1, inf). Got 4.0."),
        (nn.GRU, (0, 4), "in_features must be an integer in [1, inf). Got 0."),
        (nn.GRU, (4, "x"), "hidden_features must be an integer in [1, inf). Got 'x'."),
        (nn.AdditiveAttention, (3, 4, 0), "hidden_features must be an integer in [1, inf). Got 0."),
        (nn.MultiHeadAttention, (2, 4.0), "in_features must be an integer in [1, inf). Got 4.0."),
        (nn.MultiHeadAttention, (2, 4, {"key_features": 0}), "key_features must be an integer in [1, inf). Got 0."),
    ],
)
def test_errors_of_construction(layer: Any, arguments: tuple[Any, ...], message: str) -> None:
    options = arguments[-1] if isinstance(arguments[-1], dict) else {}
    with raises(message):
        layer(*(x for x in arguments if not isinstance(x, dict)), **options, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.MultiHeadAttention, (2, 4)),
        (nn.AdditiveAttention, (3, 4, 5)),
        (nn.FeedForward, (4, 8)),
        (nn.Embed, (4, 2)),
        (nn.Conv, (3, 4, 3)),
        (nn.GRU, (3, 4)),
        (nn.LayerNorm, (4,)),
        (nn.RMSNorm, (4,)),
    ],
)
def test_a_number_for_the_streams_of_keys(layer: Any, sizes: tuple[int, ...]) -> None:
    with raises("rngs must be a flax.nnx.Rngs. Got 7. Pass nnx.Rngs(7)."):
        layer(*sizes, rngs=7)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"features": 0}, "features must be an integer in [1, inf). Got 0."), ({"base": 0}, "base must be a number in")],
)
def test_errors_of_sinusoidal_positions(arguments: dict[str, Any], message: str) -> None:
    with raises(message):
        nn.SinusoidalPositions(**{"features": 4, **arguments})
