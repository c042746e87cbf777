"""The transformer's parts against torch_ref and against PyTorch's own layers."""

from collections import OrderedDict
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.func import functional_call

import torch_ref.nn
from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, call, call_for_weights, randomised

rng = np.random.default_rng(0)
x = rng.standard_normal((2, 5, 12))  # b t m
memory = rng.standard_normal((2, 7, 12))  # b s m
many_positions = rng.standard_normal((8, 512, 12))
lengths, memory_lengths = np.array([4, 0]), np.array([3, 7])
mask = rng.random((5, 5)) < 0.6
FLOAT64 = ("float64",)
SIZES = {"num_heads": 3, "features": 12, "feedforward_features": 10}


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({"activation": "gelu"}, DTYPES),
        ({"activation": "relu"}, FLOAT64),
        ({"activation": "silu", "gated": True}, FLOAT64),
        ({"activation": "gelu_tanh", "gated": True, "use_bias": False}, DTYPES),
    ],
)
def test_feed_forward(parity: Parity, options: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    modules = both(nn.FeedForward, 12, 10, **options)
    parity("FeedForward", call, call, {"x": x}, **modules, dtypes=dtypes)


def test_bias_gradients_over_many_positions(parity: Parity) -> None:
    """Sums of 4,096 terms, which must not be rounded to bfloat16 at each addition."""
    modules = both(nn.FeedForward, 12, 10, activation="gelu")
    parity("FeedForward", call, call, {"x": many_positions}, **modules, dtypes=("bfloat16",))


def test_exact_gelu_of_pytorch(parity: Parity) -> None:
    """Inputs of all sizes: the tanh form is off by 5e-4, where the normal distribution's tail begins."""
    layers = [("linear1", torch.nn.Linear(12, 10)), ("gelu", torch.nn.GELU()), ("linear2", torch.nn.Linear(10, 12))]
    parity(
        "FeedForward / nn.Linear, nn.GELU",
        lambda module, x: module(x),
        lambda module, x: module(x),
        {"x": 3 * x},
        module=blank(lambda: nn.FeedForward(12, 10, activation="gelu", rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.Sequential(OrderedDict(layers))),
        dtypes=("float64", "float32"),
    )


@pytest.mark.parametrize("spread", [1.0, 1e-3], ids=["spread", "almost constant"])
def test_layer_norm(parity: Parity, spread: float) -> None:
    """Where the variance is as small as epsilon, epsilon decides; far from zero, a fast variance fails."""
    parity(
        "LayerNorm / nn.LayerNorm",
        lambda module, x: module(x),
        lambda module, x: module(x),
        {"x": 1 + spread * x},
        module=blank(lambda: nn.LayerNorm(12, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.LayerNorm(12)),
    )


# ----------------------------------------------------------------------------------------------------------------------
# The block.

ALONE = {"x": x}
BOTH = {"x": x, "memory": memory}
DECODER = {"causal": True, "cross_attention": True}
RMS = {"norm_kind": "rms"}
SWIGLU = {"activation": "silu", "gated": True, "feedforward_bias": False}

BLOCKS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = {
    "post, gelu, lengths": ({"activation": "gelu"}, ALONE, {"valid_lens": lengths}),
    "pre": ({"norm": "pre"}, ALONE, {}),
    "pre, without the first norm": ({"norm": "pre", "first_norm": False}, ALONE, {}),
    "pre, parallel": ({"norm": "pre", "parallel": True, "causal": True}, ALONE, {}),
    "pre, parallel, one norm": ({"norm": "pre", "parallel": True, "shared_norm": True}, ALONE, {"valid_lens": lengths}),
    "sandwich, RMS, GeGLU": ({"norm": "sandwich", **RMS, "activation": "gelu_tanh", "gated": True}, ALONE, {}),
    "branch": ({"norm": "branch", **RMS}, ALONE, {"valid_lens": lengths}),
    "pre, SwiGLU, no biases": ({"norm": "pre", "use_bias": False, **SWIGLU}, ALONE, {"mask": mask}),
    "sandwich, decoder": ({**DECODER, "norm": "sandwich"}, BOTH, {"memory_valid_lens": np.array([0, 4])}),
    "pre, experts": ({"norm": "pre", "experts": {"num_experts": 4, "experts_per_token": 2}, **SWIGLU}, ALONE, {}),
    "post, scaled": ({"residual_scale": 0.3}, ALONE, {}),
    "positions, bias of the logits": (
        {"norm": "pre", "rotary_base": 50.0, "attention_options": {"logits_soft_cap": 1.5, "use_sinks": True}},
        {"x": x, "bias": rng.standard_normal((3, 5, 5))},
        {"positions": np.array([[0, 1, 2, 3, 4], [0, 0, 1, 7, 9]])},
    ),
    "causal, mask": ({"causal": True, "norm": "pre"}, ALONE, {"mask": mask}),
    "no bias, grouped": ({"use_bias": False, "num_kv_heads": 1}, ALONE, {}),
    "normalised, rotary": ({"normalize_qk": True, "rotary_base": 100.0, "norm": "pre"}, ALONE, {}),
    "decoder, pre": ({**DECODER, "norm": "pre", "activation": "gelu"}, BOTH, {"memory_valid_lens": np.array([0, 4])}),
    "decoder, masks": (DECODER, BOTH, {"valid_lens": lengths, "memory_mask": rng.random((5, 7)) < 0.6}),
    "decoder, all options": (
        {**DECODER, "use_bias": False, "num_kv_heads": 1, "normalize_qk": True, "rotary_base": 100.0},
        BOTH,
        {},
    ),
}


@pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())
def test_transformer_block(parity: Parity, case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    options, inputs, fixed = case
    modules = both(nn.TransformerBlock, **SIZES, **options)
    parity("TransformerBlock", call_for_weights, call_for_weights, inputs, fixed, **modules, dtypes=("float64",))


def test_decoder_block_in_each_dtype(parity: Parity) -> None:
    modules = both(nn.TransformerBlock, **SIZES, **DECODER)
    fixed = {"memory_valid_lens": memory_lengths}
    parity("TransformerBlock", call_for_weights, call_for_weights, BOTH, fixed, **modules)


# ----------------------------------------------------------------------------------------------------------------------
# The second witness: PyTorch's own layers.


class OfPyTorch(torch_ref.nn.TransformerBlock):
    """torch.nn.TransformerEncoderLayer on the parameters of torch_ref's block, which it packs and names otherwise."""

    layer: ClassVar[Any] = torch.nn.TransformerEncoderLayer
    attentions: ClassVar[dict[str, str]] = {"self_attn": "attention"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**SIZES, **options, cross_attention=len(self.attentions) > 1)
        witness = self.layer(
            SIZES["features"],
            SIZES["num_heads"],
            SIZES["feedforward_features"],
            dropout=0.0,
            activation=options["activation"],
            norm_first=options["norm"] == "pre",
            batch_first=True,
        )
        self.witness = [witness.eval()]  # in a list, as its own parameters are no parameters of this module

    def forward(self, *inputs: torch.Tensor, **masks: Any) -> torch.Tensor:
        ours = dict(self.named_parameters())
        theirs = {name: p for name, p in ours.items() if name.startswith("norm")}
        theirs |= {name.removeprefix("feed_forward."): p for name, p in ours.items() if name.startswith("feed_forward")}
        for their_name, our_name in self.attentions.items():
            for kind in ("weight", "bias"):
                packed = [ours[f"{our_name}.{projection}.{kind}"] for projection in ("query", "key", "value")]
                theirs[f"{their_name}.in_proj_{kind}"] = torch.cat(packed)
                theirs[f"{their_name}.out_proj.{kind}"] = ours[f"{our_name}.out.{kind}"]
        return functional_call(self.witness[0], theirs, inputs, masks)


class DecoderOfPyTorch(OfPyTorch):
    """torch.nn.TransformerDecoderLayer, likewise."""

    layer = torch.nn.TransformerDecoderLayer
    attentions: ClassVar[dict[str, str]] = {"self_attn": "attention", "multihead_attn": "cross_attention"}


@pytest.mark.parametrize(
    ("norm", "activation", "dtypes"),
    [
        ("post", "relu", DTYPES),
        ("post", "gelu", ("float64",)),
        ("pre", "relu", ("float64",)),
        ("pre", "gelu", ("float64",)),
    ],
)
def test_encoder_layer_of_pytorch(parity: Parity, norm: str, activation: str, dtypes: tuple[str, ...]) -> None:
    padding = np.arange(5) >= np.array([[3], [5]])
    parity(
        "TransformerBlock / nn.TransformerEncoderLayer",
        lambda m, x: m(x, valid_lens=jnp.array([3, 5])),
        lambda m, x: m(x, src_key_padding_mask=torch.as_tensor(padding)),
        ALONE,
        module=blank(lambda: nn.TransformerBlock(**SIZES, norm=norm, activation=activation, rngs=nnx.Rngs(0))),
        torch_module=randomised(OfPyTorch(norm=norm, activation=activation)),
        dtypes=dtypes,
    )


@pytest.mark.parametrize(("norm", "activation"), [("post", "relu"), ("pre", "gelu")])
def test_decoder_layer_of_pytorch(parity: Parity, norm: str, activation: str) -> None:
    options: dict[str, Any] = dict(norm=norm, activation=activation)
    future, padding = torch.ones(5, 5, dtype=bool).triu(1), np.arange(7) >= memory_lengths[:, None]
    parity(
        "TransformerBlock / nn.TransformerDecoderLayer",
        lambda m, x, memory: m(x, memory, memory_valid_lens=jnp.asarray(memory_lengths)),
        lambda m, x, memory: m(x, memory, tgt_mask=future, memory_key_padding_mask=torch.as_tensor(padding)),
        BOTH,
        module=blank(lambda: nn.TransformerBlock(**SIZES, **DECODER, **options, rngs=nnx.Rngs(0))),
        torch_module=randomised(DecoderOfPyTorch(**options)),
        dtypes=("float64",),
    )
