"""Compiled code at size against float64 NumPy.

Compilers choose other code for long axes than for short ones, and have been wrong there: jaxlib's for the CPU has
miscompiled a mapped matrix-vector product followed by a reduction of more than 32,768 rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention, masks, nadaraya_watson

T = S = 600
H, D, E = 2, 16, 8
KEYS = 100_000


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


QUERY, KEY, VALUE, COTANGENT = normal(0, T, H, D), normal(1, S, H, D), normal(2, S, H, E), normal(3, T, H, E)


def reference(allowed: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The output, and the gradients of its product with COTANGENT for query, key and value, in float64."""
    query, key, value, cotangent = (x.astype(np.float64) for x in (QUERY, KEY, VALUE, COTANGENT))
    logits = np.einsum("thd,shd->hts", query, key) / np.sqrt(D)
    exponentials = np.where(allowed, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / np.where(total > 0, total, 1)
    to_weights = np.einsum("the,she->hts", cotangent, value)
    to_logits = weights * (to_weights - (weights * to_weights).sum(axis=-1, keepdims=True)) / np.sqrt(D)
    gradients = (
        np.einsum("hts,shd->thd", to_logits, key),
        np.einsum("hts,thd->shd", to_logits, query),
        np.einsum("hts,the->she", weights, cotangent),
    )
    return np.einsum("hts,she->the", weights, value), gradients


distance = np.arange(S) - np.arange(T)[:, None]


@pytest.mark.parametrize(
    ("mask", "allowed"),
    [
        pytest.param(None, np.ones((T, S), bool), id="full"),
        pytest.param(masks.causal(offset=-3), distance <= -3, id="causal, with empty rows"),
        pytest.param(
            masks.sliding_window(40, 10) & masks.lengths(jnp.array(500)),
            (distance >= -40) & (distance <= 10) & (np.arange(S) < 500),
            id="window and lengths, with empty rows",
        ),
    ],
)
def test_attention(mask, allowed):
    @jax.jit
    def run(query, key, value):
        output, pull = jax.vjp(lambda *given: attention(*given, mask=mask), query, key, value)
        return output, pull(COTANGENT)

    output, gradients = reference(allowed)
    actual = run(QUERY, KEY, VALUE)
    # Sums of up to 600 numbers of magnitude up to 4, in float32.
    np.testing.assert_allclose(actual[0], output, rtol=0, atol=2e-6)
    for ours, expected in zip(actual[1], gradients, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kernel", ["gaussian", "boxcar", "epanechnikov", "constant"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("width", [0.1, 0.5])  # the Gaussian's differences, and its products
def test_nadaraya_watson(kernel, mapped, width):
    key, bandwidth = normal(0, KEYS), jnp.float32(width)
    value, query = np.sin(3 * key) + 1, np.linspace(-2, 2, 4, dtype=np.float32)

    def run(query, key, value, bandwidth):
        return nadaraya_watson(query, key, value, kernel=kernel, bandwidth=bandwidth)

    if mapped:
        one_by_one = jax.vmap(lambda x, *rest: run(x[None], *rest)[0], in_axes=(0, None, None, None))
    output = jax.jit(one_by_one if mapped else run)(query, key, value, bandwidth)
    u = (query[:, None].astype(np.float64) - key) / np.float64(bandwidth)
    weights = {
        "gaussian": np.exp(-(u**2) / 2),
        "boxcar": abs(u) <= 1,
        "epanechnikov": np.maximum(0, 1 - u**2),
        "constant": np.ones_like(u),
    }[kernel]
    # Sums of up to 100,000 positive numbers, in float32; one key more or less at a boxcar's edge is one in 1,000.
    rtol = 3e-3 if kernel == "boxcar" else 2e-5
    np.testing.assert_allclose(output, weights @ value.astype(np.float64) / weights.sum(axis=-1), rtol=rtol)


def test_gradient_of_nadaraya_watson_for_its_bandwidth():
    key, bandwidth = normal(0, KEYS), 0.1
    value, query = np.sin(3 * key) + 1, np.float32([0.5])

    @jax.jit
    @jax.grad
    def gradient(bandwidth, query, key, value):
        return nadaraya_watson(query, key, value, bandwidth=bandwidth)[0]

    squared = (query.astype(np.float64) - key) ** 2
    weights = np.exp(-squared / np.float32(bandwidth).astype(np.float64) ** 2 / 2)
    weights /= weights.sum()
    to_logits = weights * (value - weights @ value)
    actual = gradient(bandwidth, query, key, value)
    np.testing.assert_allclose(actual, to_logits @ squared / bandwidth**3, rtol=1e-4)  # a difference of close sums
