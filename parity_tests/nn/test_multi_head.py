"""The multi-head attention modules against torch_ref, torch.nn.MultiheadAttention and flax.nnx.MultiHeadAttention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.func import functional_call

import torch_ref.nn
from jattn import nn
from jattn.masks import causal
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, call_for_weights, randomised

rng = np.random.default_rng(0)
queries = rng.standard_normal((2, 5, 12))  # b t m
keys = rng.standard_normal((2, 7, 12))  # b s m
values = rng.standard_normal((2, 7, 12))
narrow_keys = rng.standard_normal((2, 7, 10))
narrow_values = rng.standard_normal((2, 7, 9))
valid_lens = np.array([3, 0])
valid_lens_per_query = np.array([[1, 7, 0, 3, 2], [4, 0, 6, 7, 1]])
mask = rng.random((5, 7)) < 0.6
batch_mask = rng.random((2, 5, 7)) < 0.6
head_mask = rng.random((2, 3, 5, 7)) < 0.6
mask[3] = batch_mask[1, 2] = head_mask[0, 1, 4] = False  # queries with nothing to attend to
gates = rng.standard_normal((2, 3))  # b h
many_queries = rng.standard_normal((40, 15, 12))

ALONE = {"query": queries}
CROSS = {"query": queries, "key": keys}
THREE = {"query": queries, "key": narrow_keys, "value": narrow_values}
WIDTHS = {"key_features": 10, "value_features": 9}
OVER = {"qk_norm_over": "width", "qk_norm_epsilon": 1e-5}

MULTI_HEAD: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = {
    "self": ({}, ALONE, {}),
    "self, bias": ({"use_bias": True}, ALONE, {}),
    "cross, wide values": ({"use_bias": True, "value_head_features": 6}, CROSS, {}),
    "value apart": ({}, {"query": queries, "key": keys, "value": values}, {}),
    "own widths": ({"use_bias": True, **WIDTHS}, THREE, {}),
    "wide heads, output width": ({"use_bias": True, "qkv_features": 24, "out_features": 8}, CROSS, {}),
    "one kv head": ({"use_bias": True, "num_kv_heads": 1}, CROSS, {}),
    "two kv heads": ({"num_heads": 6, "num_kv_heads": 2}, CROSS, {}),
    "normalised": ({"normalize_qk": True}, CROSS, {}),
    "normalised, PyTorch's epsilon": ({"normalize_qk": True, "qk_norm_epsilon": 1e-5}, ALONE, {}),
    "RMS normalised": ({"normalize_qk": "rms", "qk_norm_epsilon": 1e-6}, CROSS, {}),
    "RMS normalised, its own epsilon": ({"normalize_qk": "rms"}, CROSS, {}),
    "layer normalised, its own epsilon": ({"normalize_qk": "layer"}, CROSS, {}),
    "layer normalised, with bias": ({"normalize_qk": "layer", "qk_norm_epsilon": 1e-3}, CROSS, {}),
    "normalised over the width": ({"num_heads": 6, "num_kv_heads": 2, "normalize_qk": "rms", **OVER}, CROSS, {}),
    "normalised, each head by its own": (
        {"num_heads": 6, "num_kv_heads": 2, "normalize_qk": "layer", "qk_norm_shared": False},
        CROSS,
        {},
    ),
    "some biases": ({"use_bias": ("query", "key", "value")}, CROSS, {}),
    "bias of the output": ({"use_bias": ("out",)}, ALONE, {}),
    "scale, soft cap": ({"scale": 0.7, "logits_soft_cap": 1.5}, CROSS, {"mask": mask}),
    "sinks": ({"use_sinks": True}, CROSS, {"valid_lens": valid_lens}),
    "a bias of the logits": ({}, {**CROSS, "bias": rng.standard_normal((3, 5, 7))}, {"mask": mask}),
    "rotary": ({"rotary_base": 10000.0}, CROSS, {"positions": np.arange(5), "key_positions": np.arange(7)}),
    "rotary, positions": ({"rotary_base": 50.0}, ALONE, {"positions": np.array([[0, 1, 2, 3, 4], [0, 0, 1, 7, 9]])}),
    "rotary, last queries": ({"rotary_base": 50.0}, CROSS, {"positions": np.arange(2, 7)}),
    "rotary, another base": ({"rotary_base": 50.0, "num_kv_heads": 1}, ALONE, {}),
    "gate per head": ({}, {**CROSS, "head_gates": np.array([0.3, -1.2, 0.0])}, {}),
    "gate per example": ({}, {**ALONE, "head_gates": gates}, {}),
    "lengths per query": ({}, CROSS, {"valid_lens": valid_lens_per_query}),
    "mask": ({}, CROSS, {"mask": mask}),
    "head mask": ({}, CROSS, {"mask": head_mask}),
    "lengths and mask": ({}, CROSS, {"valid_lens": valid_lens, "mask": batch_mask[:, None]}),
    "no batch": ({"use_bias": True}, {"query": queries[0], "key": keys[0]}, {"mask": mask}),
    "two batch axes": ({"use_bias": True}, {"query": rng.standard_normal((2, 3, 5, 12))}, {}),
}


@pytest.mark.parametrize("case", MULTI_HEAD.values(), ids=MULTI_HEAD.keys())
def test_multi_head_attention(parity: Parity, case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    options, inputs, fixed = case
    modules = both(nn.MultiHeadAttention, **{"num_heads": 3, "in_features": 12, **options})
    parity("MultiHeadAttention", call_for_weights, call_for_weights, inputs, fixed, **modules, dtypes=("float64",))


def test_multi_head_attention_in_each_dtype(parity: Parity) -> None:
    modules = both(nn.MultiHeadAttention, 3, 12, use_bias=True)
    parity("MultiHeadAttention", call_for_weights, call_for_weights, CROSS, {"valid_lens": valid_lens}, **modules)


def test_multi_head_attention_with_everything_in_each_dtype(parity: Parity) -> None:
    modules = both(
        nn.MultiHeadAttention,
        num_heads=3,
        in_features=12,
        num_kv_heads=1,
        qkv_features=24,
        value_head_features=6,
        out_features=8,
        use_bias=True,
        normalize_qk=True,
        rotary_base=100.0,
        **WIDTHS,
    )
    inputs = {**THREE, "head_gates": gates}
    fixed = {"valid_lens": valid_lens_per_query, "mask": head_mask, "positions": np.arange(2, 7)}
    parity("MultiHeadAttention", call_for_weights, call_for_weights, inputs, fixed, **modules)


def test_bias_gradients_over_many_positions(parity: Parity) -> None:
    """Sums of 600 terms, which must not be rounded to bfloat16 at each addition."""
    modules = both(nn.MultiHeadAttention, 3, 12, use_bias=True)
    inputs = {"query": many_queries}
    parity("MultiHeadAttention", call_for_weights, call_for_weights, inputs, **modules, dtypes=("bfloat16",))


def test_a_value_of_masks_is_the_boolean_mask(parity: Parity) -> None:
    parity(
        "MultiHeadAttention",
        lambda module, query: module(query, mask=causal(), return_weights=True),
        lambda module, query: module(query, mask=torch.ones(5, 5, dtype=bool).tril(), return_weights=True),
        ALONE,
        **both(nn.MultiHeadAttention, 3, 12),
        dtypes=("float64",),
    )


# ----------------------------------------------------------------------------------------------------------------------
# The second witness: PyTorch's own module.


class OfPyTorch(torch_ref.nn.MultiHeadAttention):
    """torch.nn.MultiheadAttention on the parameters of torch_ref's, which it packs."""

    def __init__(self, num_heads: int, in_features: int, **options: Any) -> None:
        super().__init__(num_heads, in_features, use_bias=True, **options)
        witness = torch.nn.MultiheadAttention(
            in_features,
            num_heads,
            batch_first=True,
            kdim=options.get("key_features"),
            vdim=options.get("value_features"),
        )
        self.witness = [witness]  # in a list: its own parameters are no parameters of this module

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **masks: Any) -> Any:
        projections = (self.query, self.key, self.value)
        parameters = {
            "in_proj_bias": torch.cat([p.bias for p in projections]),
            "out_proj.weight": self.out.weight,
            "out_proj.bias": self.out.bias,
        }
        if self.witness[0].in_proj_weight is None:
            parameters |= {f"{x}_proj_weight": p.weight for x, p in zip("qkv", projections, strict=True)}
        else:
            parameters["in_proj_weight"] = torch.cat([p.weight for p in projections])
        masks |= {"need_weights": True, "average_attn_weights": False}
        output, weights = functional_call(self.witness[0], parameters, (query, key, value), masks)
        return output, weights.to(torch.promote_types(weights.dtype, torch.float32))  # ours are never narrower


def against_pytorch(parity: Parity, inputs: dict[str, np.ndarray], ours: Any, theirs: Any, **options: Any) -> None:
    dtypes = options.pop("dtypes", DTYPES)
    module = blank(lambda: nn.MultiHeadAttention(3, 12, use_bias=True, **options, rngs=nnx.Rngs(0)))
    torch_module = randomised(OfPyTorch(3, 12, **options))
    pair = "MultiHeadAttention / nn.MultiheadAttention"
    parity(pair, ours, theirs, inputs, module=module, torch_module=torch_module, dtypes=dtypes)


def test_self_attention_of_pytorch(parity: Parity) -> None:
    """Causal: where jattn's mask allows, PyTorch's forbids."""
    against_pytorch(
        parity,
        {"query": queries},
        lambda m, query: m(query, mask=causal(), return_weights=True),
        lambda m, query: m(query, query, query, attn_mask=torch.ones(5, 5, dtype=bool).triu(1)),
    )


def test_cross_attention_of_pytorch(parity: Parity) -> None:
    padding = np.arange(7) >= np.array([[3], [6]])
    against_pytorch(
        parity,
        {"query": queries, "key": keys, "value": values},
        lambda m, **inputs: m(**inputs, valid_lens=jnp.array([3, 6]), return_weights=True),
        lambda m, **inputs: m(**inputs, key_padding_mask=torch.as_tensor(padding)),
    )


def test_own_widths_of_pytorch(parity: Parity) -> None:
    against_pytorch(parity, THREE, call_for_weights, lambda m, **inputs: m(**inputs), **WIDTHS, dtypes=("float64",))


# ----------------------------------------------------------------------------------------------------------------------
# Flax: the same parameters, name for name.


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"use_bias": False},
        {"use_bias": True, "qkv_features": 24, "out_features": 8, "normalize_qk": True},
    ],
    ids=["bias", "no bias", "all options"],
)
def test_takes_the_parameters_of_flax(options: dict[str, Any]) -> None:
    flax = nnx.MultiHeadAttention(
        3, 12, **options, deterministic=True, decode=False, bias_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(1)
    )
    ours = blank(lambda: nn.MultiHeadAttention(3, 12, **options, rngs=nnx.Rngs(0)))
    given, wanted = nnx.state(flax, nnx.Param), nnx.state(ours, nnx.Param)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(given)) == jax.tree.map(jnp.shape, nnx.to_pure_dict(wanted))

    nnx.update(ours, given)
    x, y = jnp.asarray(queries, jnp.float32), jnp.asarray(keys, jnp.float32)
    allowed = jnp.asarray(mask).at[:, 0].set(True)  # where no key is allowed, Flax averages all
    np.testing.assert_allclose(ours(x, y, mask=allowed), flax(x, y, mask=allowed), rtol=1e-5, atol=1e-5)
