"""Convolutions: a loop in NumPy, Flax's own, the bias's gradient, and every error."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from jattn import nn

rngs = nnx.Rngs(0)
normal = np.random.default_rng(0).standard_normal


def test_the_definition() -> None:
    x = normal((2, 8, 3))
    layer = nn.Conv(3, 4, 3, strides=2, padding=1, bias_init=nnx.initializers.normal(), rngs=rngs)
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    expected = [bias + sum(padded[:, 2 * t + i] @ kernel[i] for i in range(3)) for t in range(4)]
    np.testing.assert_allclose(layer(jnp.asarray(x)), np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", 2, [1], [(0, 2)]])
def test_flax_s_paddings(padding: Any) -> None:
    options: dict[str, Any] = dict(strides=2, padding=padding, bias_init=nnx.initializers.ones)
    x = jnp.asarray(normal((2, 8, 3)))
    ours, flax = (kind(3, 4, 3, **options, rngs=nnx.Rngs(0)) for kind in (nn.Conv, nnx.Conv))
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
def test_batch_axes(batch: tuple[int, ...]) -> None:
    x = jnp.asarray(normal((*batch, 6, 8, 3)))
    layer = nn.Conv(3, 4, (2, 4), strides=(2, 4), rngs=rngs)
    assert layer(x).shape == (*batch, 3, 2, 4)


def test_gradient_of_the_bias_is_not_rounded_at_each_addition() -> None:
    layer = nn.Conv(1, 1, 1, param_dtype=jnp.bfloat16, rngs=rngs)
    graph, parameters = nnx.split(layer)
    x = jnp.ones((1, 16384, 1), jnp.bfloat16)
    gradient = jax.grad(lambda p: nnx.merge(graph, p)(x).astype(jnp.float32).sum())(parameters)
    assert float(gradient["bias"][0]) == 16384


def test_dtype() -> None:
    x = jnp.ones((1, 4, 3), jnp.bfloat16)
    assert nn.Conv(3, 4, 3, rngs=rngs)(x).dtype == jnp.float32
    assert nn.Conv(3, 4, 3, dtype=jnp.bfloat16, rngs=rngs)(x).dtype == jnp.bfloat16


def test_out_sharding() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer, x = nn.Conv(3, 4, 3, rngs=nnx.Rngs(0)), jnp.asarray(normal((1, 5, 3)))
    expected, spec = layer(x), PartitionSpec("data", None, None)
    with jax.set_mesh(mesh):
        y = layer(x, out_sharding=spec)
        assert jax.typeof(y).sharding.spec == spec
        np.testing.assert_array_equal(y, expected)


ERRORS = [
    (lambda: nn.Conv(3, 4, 0, rngs=rngs), "kernel_size must be one positive integer or two. Got 0."),
    (lambda: nn.Conv(3, 4, (3, 3, 3), rngs=rngs), "kernel_size must be one positive integer or two. Got (3, 3, 3)."),
    (
        lambda: nn.Conv(3, 4, 3, strides=(2, 2), rngs=rngs),
        "strides must be a positive integer, or one for each of the 1 axes of kernel_size. Got (2, 2).",
    ),
    (
        lambda: nn.Conv(3, 4, (3, 3), padding=(1, 1, 1), rngs=rngs),
        "padding must be a non-negative integer, or one or a pair for each of the 2 axes of kernel_size. "
        "Got (1, 1, 1).",
    ),
    (lambda: nn.Conv(3, 4, 3, padding="same", rngs=rngs), "padding must be one of 'SAME', 'VALID', 'CIRCULAR', "),
    (
        lambda: nn.Conv(3, 4, 3, feature_group_count=2, rngs=rngs),
        "feature_group_count must be a positive divisor of in_features, 3. Got 2.",
    ),
    (
        lambda: nn.Conv(3, 4, 3, rngs=rngs)(jnp.ones(3)),
        "inputs must have the axes *b t m. Got shape (3,).",
    ),
    (
        lambda: nn.Conv(3, 4, (3, 3), rngs=rngs)(jnp.ones((3, 8, 8))),
        "inputs must have 3 features on its last axis. Got shape (3, 8, 8).",
    ),
    (
        lambda: nn.Conv(3, 4, (3, 3), rngs=rngs)(jnp.ones((8, 8, 3), jnp.uint8)),
        "inputs must be floating point. Got uint8. Convert it with .astype(jnp.float32).",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
