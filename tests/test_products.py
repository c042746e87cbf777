"""The Gaussian as a dot product: its logits where that keeps their digits, and the direct form where it doesn't."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import nadaraya_watson
from jattn._kernels import Products
from jattn.scores import Gaussian

T, S, D, E = 300, 500, 3, 2  # more pairs than the dense implementation takes
REACH = 16  # bandwidths


def points(farthest: float, centre: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of which the farthest from the keys' mean is so many bandwidths of 1 away."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(T, D)), rng.normal(size=(S, D))
    query, key = query - key.mean(axis=0), key - key.mean(axis=0)
    query[0] *= farthest / np.linalg.norm(query[0])
    key[0] *= farthest / np.linalg.norm(key[0])
    key -= key.mean(axis=0)  # which moves the farthest by a few hundredths
    return (query + centre).astype(np.float32), (key + centre).astype(np.float32)


def squared_distances(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return ((query[:, None].astype(np.float64) - key) ** 2).sum(axis=-1)


def estimate(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """In float64, with the nearest key's distance taken off the logits, as a far query's weights are tiny."""
    squared = squared_distances(query, key)
    weights = np.exp(-(squared - squared.min(axis=-1, keepdims=True)) / 2)
    return weights @ value / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("farthest", "exact"), [(4.0, True), (15.5, True), (16.5, False), (100.0, False)])
def test_the_edge(farthest, exact):
    """Within it no logit is off by more than 2^-24 times twice the square of its reach."""
    query, key = points(farthest, centre=3.0)
    q, k, said = Gaussian().as_products(jnp.asarray(query)[:, None], jnp.asarray(key)[:, None])
    assert bool(said) is exact
    error = np.abs(Products().pairs(q[:, 0], k[:, 0]) + squared_distances(query, key) / 2).max()
    assert not exact or error <= 2 * REACH**2 / 2**24


@pytest.mark.parametrize("parameter", [{}, {"bandwidth": 0.5}, {"factor": 2.0}, {"factor": jnp.float32([0.5, 1, 2])}])
def test_parameters(parameter):
    query, key = (jnp.asarray(x)[:, None] for x in points(4.0))
    score = Gaussian(**parameter)
    q, k, exact = score.as_products(query, key)
    assert exact
    np.testing.assert_allclose(Products().pairs(q[:, 0], k[:, 0]), score(query, key)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("farthest", [4.0, 15.5, 16.5, 100.0])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_estimates_on_either_side_of_the_edge(farthest, centre):
    """Far from zero, too: the points' mean is taken off first."""
    query, key = points(farthest, centre)
    value = np.random.default_rng(1).normal(size=(S, E)).astype(np.float32)
    actual = nadaraya_watson(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value))
    np.testing.assert_allclose(actual, estimate(query, key, value), rtol=0, atol=3e-5)


@pytest.mark.whole
def test_gradients():
    """For everything, against the direct form, to which a key far away leads."""
    query, key = (jnp.asarray(x) for x in points(4.0))
    value = jnp.asarray(np.random.default_rng(1).normal(size=(S, E)).astype(np.float32))

    def gradients(key, value):
        def total(query, key, value, bandwidth):
            return (nadaraya_watson(query, key, value, bandwidth=bandwidth) * jnp.cos(jnp.arange(E))).sum()

        return jax.grad(total, argnums=(0, 1, 2, 3))(query, key, value, jnp.float32(1.0))

    far = jnp.concatenate([key, jnp.full((1, D), 1e3)]), jnp.concatenate([value, jnp.zeros((1, E))])
    names = ["query", "key", "value", "bandwidth"]
    for name, ours, direct in zip(names, gradients(key, value), gradients(*far), strict=True):
        direct = direct[:S] if name in ("key", "value") else direct
        np.testing.assert_allclose(ours, direct, rtol=0, atol=2e-5 * np.abs(direct).max(), err_msg=name)


@pytest.mark.parametrize("of_queries", [True, False])
def test_either_side_may_be_far(of_queries):
    """A single point beyond the edge is enough, a query's or a key's."""
    query, key = (jnp.asarray(x)[:, None] for x in points(4.0))
    far_query, far_key = (jnp.asarray(x)[:, None] for x in points(100.0))
    assert bool(Gaussian().as_products(query, key)[2])
    assert not bool(Gaussian().as_products(*((far_query, key) if of_queries else (query, far_key)))[2])
