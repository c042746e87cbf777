"""The layers that torch.nn has itself, linear ones and norms, and Gemma's norm."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.nn
from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, randomised

B, T, M = 2, 5, 12
FLOAT64 = ("float64",)
# Of another seed than the cotangent: a norm's gradient along its own input is zero, and all of it rounding.
x = np.random.default_rng(1).standard_normal((B, T, M))


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


@pytest.mark.parametrize("offset", [1.0, 0.3])
def test_rms_norm_with_an_offset(parity: Parity, offset: float) -> None:
    parity(
        "RMSNorm, offset",
        apply,
        apply,
        {"x": x},
        module=blank(lambda: nn.RMSNorm(M, epsilon=1e-6, scale_offset=offset, rngs=nnx.Rngs(0))),
        torch_module=randomised(torch_ref.nn.RMSNorm(M, scale_offset=offset)),
        dtypes=DTYPES if offset == 1 else FLOAT64,
    )


def test_rms_norm_with_an_offset_begins_alike() -> None:
    for offset in (0.0, 1.0):
        ours = nn.RMSNorm(M, scale_offset=offset, rngs=nnx.Rngs(0)).scale[...]
        np.testing.assert_array_equal(ours, torch_ref.nn.RMSNorm(M, scale_offset=offset).weight.detach())


def test_rms_norm_of_gemma(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's takes the norm in float32 whatever its dtype; here in float64 where x is that."""
    reason = "no transformers: the norm was not compared with Gemma's"
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma", reason=reason)
    narrow = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x))
    parity(
        "RMSNorm, offset / GemmaRMSNorm",
        apply,
        apply,
        {"x": x},
        module=blank(lambda: nn.RMSNorm(M, epsilon=1e-3, scale_offset=1.0, rngs=nnx.Rngs(0))),
        torch_module=randomised(gemma.GemmaRMSNorm(M, eps=1e-3)),
    )
