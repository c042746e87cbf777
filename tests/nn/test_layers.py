"""The layers of Flax with PyTorch's defaults: norms, and every error."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jattn import nn

rngs = nnx.Rngs(0)
normal = np.random.default_rng(0).standard_normal


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"use_scale": False}])
def test_layer_norm_is_flax_s_and_so_are_its_derivatives(options: dict[str, bool], x64: None) -> None:
    """Its derivative is a rule of its own: forward, backward, and again."""
    x = 3 + jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)))
    given: dict[str, Any] = dict(options, epsilon=1e-3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    ours, flax = nn.LayerNorm(6, **given), nnx.LayerNorm(6, use_fast_variance=False, **given)
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-12, atol=1e-12)
    gradients = [jax.jit(jax.grad(lambda x, norm=norm: jnp.sum(norm(x) ** 3)))(x) for norm in (ours, flax)]
    np.testing.assert_allclose(*gradients, rtol=1e-12, atol=1e-11)
    check_grads(jax.jit(ours), (x,), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def test_rms_norm() -> None:
    x = jnp.array([[1.0, 7.0], [0.0, 0.0]])
    np.testing.assert_allclose(nn.RMSNorm(2, rngs=rngs)(x), [[0.2, 1.4], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(nn.RMSNorm(2, epsilon=75.0, rngs=rngs)(x), [[0.1, 0.7], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_own_derivative_of_rms_norm(x64: None, epsilon: float | None) -> None:
    """Of first and second order, forwards and backwards, against differences."""
    layer = nn.RMSNorm(6, epsilon=epsilon, param_dtype=jnp.float64, rngs=rngs)
    check_grads(lambda x: layer(jnp.asarray(x)), (jnp.asarray(normal((3, 6))),), order=2)


def test_offset_of_rms_norm() -> None:
    """It is there at first, and what is learned is added to it, in float32 also where the scale is narrower."""
    x = jnp.array([[1.0, 7.0]])
    for offset in (1.0, 0.5):
        layer = nn.RMSNorm(2, scale_offset=offset, rngs=rngs)
        np.testing.assert_array_equal(layer.scale[...], [1 - offset] * 2)
        np.testing.assert_allclose(layer(x), [[0.2, 1.4]], rtol=1e-6)
    narrow = nn.RMSNorm(2, scale_offset=1.0, param_dtype=jnp.bfloat16, rngs=rngs)
    narrow.scale[...] = jnp.full(2, 2**-8, jnp.bfloat16)
    # bfloat16 would round 1 + 2^-8 to 1, and 1.4 to 1 + 51 / 128.
    assert float(narrow(x.astype(jnp.bfloat16))[0, 1]) == 1 + 52 / 128


ERRORS = [
    (
        lambda: nn.LayerNorm((5, 8), rngs=rngs),
        "features must be an integer in [1, inf). Got (5, 8). Normalize over one axis, the last.",
    ),
    (
        lambda: nn.RMSNorm(2, scale_offset="1", rngs=rngs),
        "scale_offset must be a number in (-inf, inf). Got '1'.",
    ),
    (
        lambda: nn.RMSNorm(2, scale_offset=1.0, use_scale=False, rngs=rngs),
        "scale_offset must be 0 where use_scale is False. Got 1.0.",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
