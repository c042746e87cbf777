"""Vectors looked up by number: padding, scale, dtypes, sharding, and every error."""

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


def test_all_but_padding_has_gradients() -> None:
    tokens = jnp.array([[0, 1, 1]])
    for padding_idx, expected in ((None, [1, 2, 0]), (1, [1, 0, 0]), (-3, [0, 2, 0])):
        layer = nn.Embed(3, 2, padding_idx=padding_idx, rngs=rngs)
        graph, parameters = nnx.split(layer)
        gradient = jax.grad(lambda p, g=graph: nnx.merge(g, p)(tokens).sum())(parameters)
        np.testing.assert_array_equal(gradient["embedding"][...][:, 0], expected)


def test_begins_as_flax_s_does() -> None:
    ours, flax = nn.Embed(3, 2, rngs=nnx.Rngs(1)), nnx.Embed(3, 2, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(ours.embedding[...], flax.embedding[...])


def test_dtype_is_that_of_the_present_parameters() -> None:
    layer = nn.Embed(3, 2, scale=2.0, rngs=rngs)
    layer.embedding.set_value(jnp.ones((3, 2), jnp.bfloat16))
    assert layer(jnp.array([1])).dtype == jnp.bfloat16
    assert nn.Embed(3, 2, dtype=jnp.float16, scale=2.0, rngs=rngs)(jnp.array([1])).dtype == jnp.float16


@pytest.mark.parametrize(("dtype", "rounded"), [(jnp.float32, 1.4142135), (jnp.bfloat16, 1.4140625)])
def test_scale(dtype: Any, rounded: float) -> None:
    """Rounded to the vectors' dtype; products with all vectors are without it."""
    layer = nn.Embed(3, 2, scale=2**0.5, param_dtype=dtype, embedding_init=nnx.initializers.ones, rngs=rngs)
    np.testing.assert_array_equal(layer(jnp.array([0, 2])), np.full((2, 2), rounded, dtype))
    np.testing.assert_array_equal(layer.attend(jnp.ones((1, 2), dtype)), np.full((1, 3), 2, dtype))


def test_the_name_of_0_1() -> None:
    assert isinstance(nn.embedding(3, 2, padding_idx=0, rngs=rngs), nn.Embed)


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_out_sharding(padding_idx: int | None) -> None:
    """The sharding asked for is the one that comes back, whatever the inputs' is."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = nn.Embed(3, 2, padding_idx=padding_idx, scale=2.0, rngs=nnx.Rngs(0))
    expected = layer(jnp.array([[0, 1]]))
    with jax.set_mesh(mesh):
        tokens = jax.device_put(jnp.array([[0, 1]]), PartitionSpec("data", None))
        for spec in (PartitionSpec("data", None, None), PartitionSpec(None, None, "data")):
            x = layer(tokens, out_sharding=spec)
            assert jax.typeof(x).sharding.spec == spec
            np.testing.assert_array_equal(x, expected)


ERRORS = [
    (
        lambda: nn.Embed(4, 2, padding_idx=4, rngs=rngs),
        "padding_idx must lie between -4 and 3. Got 4.",
    ),
    (
        lambda: nn.Embed(4, 2, scale=float("inf"), rngs=rngs),
        "scale must be a number in (-inf, inf). Got inf.",
    ),
    (
        lambda: nn.Embed(4, 2, scale=True, rngs=rngs),
        "scale must be a number in (-inf, inf). Got True.",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
