"""The layers that torch.nn has itself: linear ones, norms and embeddings."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, randomised

B, T, M = 2, 5, 12
FLOAT64 = ("float64",)
# Of another seed than the cotangent: a norm's gradient along its own input is zero, and all of it rounding.
x = np.random.default_rng(1).standard_normal((B, T, M))
tokens = np.array([[3, 0, 7, 3, 1], [0, 0, 5, 7, 2]])


def apply(module: Any, x: Any) -> Any:
    return module(x)


def without_parameters(ours: nnx.Module, theirs: torch.nn.Module) -> tuple[Any, Any]:
    """The two as functions, for there is nothing to load."""
    return lambda x: ours(x), lambda x: theirs(x)  # type: ignore[operator]


@pytest.mark.parametrize("bias", [True, False])
def test_linear(parity: Parity, bias: bool) -> None:
    parity(
        "Linear / nn.Linear",
        apply,
        apply,
        {"x": x},
        module=blank(lambda: nn.Linear(M, 8, use_bias=bias, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.Linear(M, 8, bias=bias)),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_layer_norm(parity: Parity, bias: bool, epsilon: float) -> None:
    parity(
        "LayerNorm / nn.LayerNorm",
        apply,
        apply,
        {"x": 1 + x},
        module=blank(lambda: nn.LayerNorm(M, epsilon=epsilon, use_bias=bias, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.LayerNorm(M, epsilon, bias=bias)),
        dtypes=DTYPES if epsilon < 0.1 else FLOAT64,
    )


def test_layer_norm_without_parameters(parity: Parity) -> None:
    ours = nn.LayerNorm(M, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    theirs = torch.nn.LayerNorm(M, elementwise_affine=False)
    parity("LayerNorm / nn.LayerNorm", *without_parameters(ours, theirs), {"x": 1 + x})


@pytest.mark.parametrize(
    ("epsilon", "spread"),
    [
        (None, 1.0),
        (0.3, 1.0),
        (None, 1e-8),
    ],
    ids=["plain", "epsilon", "as small as epsilon"],
)
def test_rms_norm(parity: Parity, epsilon: float | None, spread: float) -> None:
    """Where the mean square is as small as the default epsilon of float64, that decides."""
    parity(
        "RMSNorm / nn.RMSNorm",
        apply,
        apply,
        {"x": spread * x},
        module=blank(lambda: nn.RMSNorm(M, epsilon=epsilon, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.RMSNorm(M, epsilon)),
        dtypes=FLOAT64 if spread < 1 else DTYPES,
    )


def test_rms_norm_without_parameters(parity: Parity) -> None:
    ours, theirs = nn.RMSNorm(M, use_scale=False, rngs=nnx.Rngs(0)), torch.nn.RMSNorm(M, elementwise_affine=False)
    parity("RMSNorm / nn.RMSNorm", *without_parameters(ours, theirs), {"x": x})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_default_epsilon_of_rms_norm(dtype: str) -> None:
    """It is float32's, also for narrower types; with each type's own the outputs would differ by a factor of 50."""
    small = np.full((1, M), 3e-4, np.float32)
    expected = torch.nn.RMSNorm(M, dtype=getattr(torch, dtype))(torch.tensor(small).to(getattr(torch, dtype)))
    ours = nn.RMSNorm(M, param_dtype=dtype, rngs=nnx.Rngs(0))(jnp.asarray(small, dtype))
    np.testing.assert_allclose(np.float32(ours), expected.detach().float(), rtol=1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -3])
def test_embedding(parity: Parity, padding_idx: int | None) -> None:
    """The row for padding is looked up as it is, and has no gradient."""
    parity(
        "embedding / nn.Embedding",
        lambda module, tokens: module(tokens),
        lambda module, tokens: module(tokens),
        {},
        {"tokens": tokens},
        module=blank(lambda: nn.embedding(8, M, padding_idx=padding_idx, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch.nn.Embedding(8, M, padding_idx)),
        dtypes=DTYPES if padding_idx == 0 else FLOAT64,
    )


@pytest.mark.parametrize("padding_idx", [0, -2])
def test_the_row_for_padding_begins_as_zero(padding_idx: int) -> None:
    ours = np.asarray(nn.embedding(8, M, padding_idx=padding_idx, rngs=nnx.Rngs(0)).embedding[...])
    theirs = torch.nn.Embedding(8, M, padding_idx).weight.detach().numpy()
    np.testing.assert_array_equal((ours == 0).all(axis=1), (theirs == 0).all(axis=1))
