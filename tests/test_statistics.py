"""Statistics of weights that are never there, against those of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention_statistics, attention_weights, masks, scores

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("x64")]

B, T, S, H, K, D = 2, 300, 500, 4, 2, 8


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def cosine(query, key):
    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return scores.DotProduct(1.0)(unit(query), unit(key))


@pytest.mark.parametrize(
    "given",  # made in the test, when integers are as wide as positions
    [
        lambda: {},
        lambda: dict(mask=masks.causal(offset=-5), scale=0.7),
        lambda: dict(mask=masks.lengths(jnp.array([400, 0])), logits_soft_cap=2.0),
        lambda: dict(mask=masks.segments(jnp.arange(T) // 100, jnp.arange(S) // 100)),
        lambda: dict(score=scores.Gaussian(bandwidth=2.0)),
        lambda: dict(score=cosine),
    ],
    ids=["full", "causal with empty rows", "lengths, one 0", "segments with keys for nobody", "kernel", "own score"],
)
def test_those_of_the_weights(given):
    arguments = given()
    query, key = normal(0, B, T, H, D), normal(1, B, S, K, D)
    statistics = attention_statistics(query, key, **arguments)
    weights = np.asarray(attention_weights(query, key, **arguments))
    logarithms = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    expected = {
        "entropy": -(weights * logarithms).sum(-1),
        "largest": weights.max(-1),
        "norm": np.linalg.norm(weights, axis=-1),
        "received": weights.sum(-2),
    }
    for name, x in statistics._asdict().items():
        assert x.shape == expected[name].shape
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.needs_jit
@pytest.mark.whole
def test_linear_memory():
    def scratch(t: int) -> int:
        x = jax.ShapeDtypeStruct((t, 1, 16), jnp.float32)
        compiled = jax.jit(lambda q, k: attention_statistics(q, k, mask=masks.causal())).lower(x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(32768) < 8 * scratch(8192)  # 4 times where linear, 16 where quadratic


def test_no_keys():
    statistics = attention_statistics(normal(0, 3, 1, 2), normal(1, 0, 1, 2))
    assert not any(np.any(x) for x in statistics)
    assert statistics.received.shape == (1, 0)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input():
    with pytest.raises(ValueError, match="key must have the query's width"):
        attention_statistics(normal(0, 3, 1, 2), normal(1, 4, 1, 3))


@pytest.mark.parametrize("score", [cosine, scores.DotProduct()], ids=["own score", "streams"])
def test_beside_sinks(score):
    query, key, sinks = normal(0, B, 30, H, D), normal(1, B, 50, K, D), 3 + normal(2, H)
    weights = np.asarray(attention_weights(query, key, score=score, sinks=sinks))
    statistics = attention_statistics(query, key, score=score, sinks=sinks)
    np.testing.assert_allclose(statistics.largest, weights.max(-1), rtol=0, atol=1e-11)
    np.testing.assert_allclose(statistics.received, weights.sum(-2), rtol=0, atol=1e-11)
    assert (weights.sum(-1) < 0.995).all()
