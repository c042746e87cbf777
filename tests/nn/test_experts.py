"""A mixture of experts, without PyTorch: by its definition, its two ways, where it is lowered, errors."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn

SIZES: dict[str, Any] = {"num_experts": 4, "experts_per_token": 2, "activation": "silu", "gated": True}


def made(**options: Any) -> nn.MixtureOfExperts:
    return nn.MixtureOfExperts(6, 10, **{**SIZES, **options}, rngs=nnx.Rngs(0))


def one_of(network: nn.MixtureOfExperts, i: int) -> nn.FeedForward:
    """The network of one expert."""
    alone = nn.FeedForward(6, 10, activation="silu", gated=True, rngs=nnx.Rngs(0))
    for name in ("linear1", "gate", "linear2"):
        for kind in ("kernel", "bias"):
            getattr(getattr(alone, name), kind)[...] = getattr(getattr(network, name), kind)[i]
    return alone


@pytest.mark.parametrize("implementation", ["dense", "ragged"])
def test_the_sum_of_those_chosen(implementation: Any) -> None:
    network = made(implementation=implementation)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6))
    experts, shares, logits = network.route(x)
    assert logits.shape == (2, 5, 4)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    apart = np.stack([one_of(network, i)(x) for i in range(4)])
    output = np.zeros((2, 5, 6))
    for b, t, k in np.ndindex(2, 5, 2):
        output[b, t] += float(shares[b, t, k]) * apart[int(experts[b, t, k]), b, t]
    np.testing.assert_allclose(network(x), output, rtol=1e-5, atol=1e-6)


def test_no_token_is_dropped_where_all_choose_the_same() -> None:
    x = jnp.ones((3, 7, 6))
    ways = [made(implementation=way) for way in ("dense", "ragged")]
    for network in ways:
        assert len(np.unique(network.route(x).experts)) == 2
    np.testing.assert_allclose(*(network(x) for network in ways), rtol=1e-5, atol=1e-6)


def test_the_way_is_that_of_the_platform_it_is_lowered_for() -> None:
    graph, state = nnx.split(made())
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    arguments = (jax.eval_shape(lambda: state), jax.ShapeDtypeStruct((3, 6), jnp.float32))
    texts = {name: jax.export.export(run, platforms=[name])(*arguments).mlir_module() for name in ("cpu", "tpu")}
    assert "ragged_dot" in texts["tpu"]
    assert "ragged_dot" not in texts["cpu"]


@pytest.mark.whole
def test_dropout_in_training() -> None:
    network, x = made(dropout_rate=0.5), jnp.ones((2, 3, 6))
    with pytest.raises(ValueError, match="rng must be given"):
        network(x)
    one, same, other = (network(x, rng=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_per_token": 5}, "experts_per_token must be an integer in [1, 4]. Got 5."),
        ({"shares": "all"}, "shares must be one of 'of_chosen', 'of_all'. Got 'all'."),
        ({"implementation": "fast"}, "implementation must be one of None, 'dense', 'ragged'. Got 'fast'."),
        ({"num_experts": 0}, "num_experts must be"),
        ({"gated": 1}, "gated must be"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        made(**options)


@pytest.mark.usefixtures("unchecked")
def test_errors_of_the_block() -> None:
    with pytest.raises(ValueError, match="experts must hold what the block has no argument for") as raised:
        nn.TransformerBlock(2, 6, 10, experts={"gated": True, "num_experts": 2}, rngs=nnx.Rngs(0))
    assert "Got {'gated': True" in str(raised.value)
    assert "attention" not in str(raised.value)
