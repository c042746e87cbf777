"""Nadaraya-Watson regression against the textbook's sum, written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks, nadaraya_watson

B, T, S, D, E = 2, 5, 7, 3, 6


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def kernel(name: str, u: float) -> float:
    return {
        "gaussian": np.exp(-(u**2) / 2),
        "boxcar": float(abs(u) <= 1),
        "epanechnikov": max(0.0, 1 - u**2),
        "constant": 1.0,
    }[name]


def estimate(name: str, query, key, value, bandwidth=1.0, allowed=None) -> tuple[np.ndarray, np.ndarray]:
    """For features ``t d`` and ``s d`` and values ``s e``: the estimates and the weights."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output, weights = np.zeros((len(query), value.shape[-1])), np.zeros((len(query), len(key)))
    for i, x in enumerate(query):
        for j, y in enumerate(key):
            if allowed is None or allowed[i][j]:
                weights[i, j] = kernel(name, np.sqrt((((x - y) / np.asarray(bandwidth, np.float64)) ** 2).sum()))
        if weights[i].sum() > 0:
            weights[i] /= weights[i].sum()
        for j in range(len(key)):
            output[i] += weights[i, j] * value[j]
    return output, weights


def assert_close(actual, expected) -> None:
    # atol: weighted sums of a few numbers of magnitude 1 that cancel.
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


kernels = pytest.mark.parametrize("name", ["gaussian", "boxcar", "epanechnikov", "constant"])


@kernels
@pytest.mark.usefixtures("x64")
def test_scalars(name):
    query, key, value = normal(0, T), normal(1, S), normal(2, S)
    output, weights = nadaraya_watson(query, key, value, bandwidth=0.7, kernel=name, return_weights=True)
    expected = estimate(name, query[:, None], key[:, None], value[:, None], 0.7)
    assert (output.shape, weights.shape) == ((T,), (T, S))
    assert_close(output, expected[0][:, 0])
    assert_close(weights, expected[1])
    assert_close(nadaraya_watson(query, key, value, bandwidth=0.7, kernel=name), output)


@pytest.mark.usefixtures("x64")
def test_scalars_with_several_values_each():
    query, key, value = normal(0, T), normal(1, S), normal(2, S, E)
    output = nadaraya_watson(query, key, value)
    assert output.shape == (T, E)
    assert_close(output, estimate("gaussian", query[:, None], key[:, None], value)[0])


@kernels
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bandwidth", [1.5, jnp.array(1.5), jnp.array([0.5, 2.0, 8.0])], ids=["float", "array", "each"])
def test_features(name, bandwidth):
    query, key, value = normal(0, T, D), normal(1, S, D), normal(2, S, E)
    output, weights = nadaraya_watson(query, key, value, bandwidth=bandwidth, kernel=name, return_weights=True)
    expected = estimate(name, query, key, value, bandwidth)
    assert (output.shape, weights.shape) == ((T, E), (T, S))
    assert_close(output, expected[0])
    assert_close(weights, expected[1])


@kernels
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scalar", [False, True])
def test_batches(name, scalar):
    query, key, value = normal(0, B, T, D), normal(1, B, S, D), normal(2, B, S, E)
    given = value[..., 0] if scalar else value
    output, weights = nadaraya_watson(query, key, given, bandwidth=2.0, kernel=name, return_weights=True)
    assert (output.shape, weights.shape) == ((B, T) if scalar else (B, T, E), (B, T, S))
    for example in range(B):
        expected = estimate(name, query[example], key[example], value[example], 2.0)
        assert_close(output[example], expected[0][:, 0] if scalar else expected[0])
        assert_close(weights[example], expected[1])


@kernels
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["lengths", "array", "array for each"])
def test_masks(name, kind):
    query, key, value = normal(0, B, T, D), normal(1, B, S, D), normal(2, B, S, E)
    mask, allowed = {
        "lengths": (masks.lengths(jnp.array([3, 0])), np.arange(S) < np.array([3, 0])[:, None, None]),
        "array": (jnp.tri(T, S, dtype=bool), np.tri(T, S, dtype=bool)),
        "array for each": (normal(3, B, T, S) > 0, np.asarray(normal(3, B, T, S)) > 0),
    }[kind]
    allowed = np.broadcast_to(allowed, (B, T, S))
    output = nadaraya_watson(query, key, value, bandwidth=2.0, kernel=name, mask=mask)
    for example in range(B):
        assert_close(
            output[example], estimate(name, query[example], key[example], value[example], 2.0, allowed[example])[0]
        )


@kernels
@pytest.mark.usefixtures("x64")
def test_leave_one_out(name):
    """Each point estimated from all the others; alone, from nothing."""
    x, y = normal(1, S), normal(2, S)
    output, weights = nadaraya_watson(
        x, x, y, bandwidth=0.7, kernel=name, mask=~masks.sliding_window(0, 0), return_weights=True
    )
    np.testing.assert_array_equal(jnp.diagonal(weights), 0)
    for i in range(S):
        others = np.arange(S) != i
        expected = estimate(name, x[i : i + 1, None], x[others][:, None], y[others][:, None], 0.7)[0]
        assert_close(output[i], expected[0, 0])
    alone = nadaraya_watson(x[:1], x[:1], y[:1], kernel=name, mask=~masks.sliding_window(0, 0))
    np.testing.assert_array_equal(alone, [0.0])


@kernels
def test_constant_values_are_estimated_exactly(name):
    query, key = normal(0, T), normal(1, S)
    output = nadaraya_watson(query, key, jnp.full(S, 3.0), bandwidth=5.0, kernel=name)
    np.testing.assert_allclose(output, 3.0, rtol=5e-7)


def test_average_pooling():
    query, key, value = normal(0, T), normal(1, S), normal(2, S)
    output = nadaraya_watson(query, key, value, kernel="constant")
    np.testing.assert_allclose(output, jnp.full(T, value.mean()), rtol=2e-6)


@pytest.mark.parametrize("name", ["boxcar", "epanechnikov"])
def test_out_of_reach(name):
    key, value = jnp.array([0.0, 1.0]), jnp.array([5.0, 7.0])
    output, weights = nadaraya_watson(
        jnp.array([-9.0, 0.0]), key, value, bandwidth=0.5, kernel=name, return_weights=True
    )
    np.testing.assert_array_equal(output, [0.0, 5.0])
    np.testing.assert_array_equal(weights, [[0.0, 0.0], [1.0, 0.0]])


def test_a_gaussian_reaches_everywhere():
    """Where exp(-u^2 / 2) itself would be 0, the nearest key still wins."""
    output = nadaraya_watson(jnp.array([-1000.0]), jnp.array([0.0, 1.0]), jnp.array([5.0, 7.0]))
    np.testing.assert_array_equal(output, [5.0])


@kernels
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_shifting_everything_changes_nothing(name, far):
    steps = jnp.arange(-8, 9) / 8  # exact also when 10,000 is added
    value = jnp.sin(steps)
    output = nadaraya_watson(steps + far, steps + far, value, bandwidth=0.3, kernel=name)
    expected = estimate(name, steps[:, None], steps[:, None], value[:, None], 0.3)[0][:, 0]
    np.testing.assert_allclose(output, expected, rtol=2e-6, atol=2e-7)  # atol: sin is odd, and the sums cancel


@kernels
@pytest.mark.parametrize("given", ["default", "closed over", "argument"])
def test_jit(name, given):
    query, key, value, bandwidth = normal(0, T), normal(1, S), normal(2, S), jnp.array(2.0)
    if given == "default":
        compiled = jax.jit(lambda *given: nadaraya_watson(*given, kernel=name))(query, key, value)
        eager = nadaraya_watson(query, key, value, kernel=name)
    else:
        eager = nadaraya_watson(query, key, value, kernel=name, bandwidth=bandwidth)
        if given == "closed over":
            compiled = jax.jit(lambda *given: nadaraya_watson(*given, kernel=name, bandwidth=bandwidth))(
                query, key, value
            )
        else:
            compiled = jax.jit(lambda *given, bandwidth: nadaraya_watson(*given, kernel=name, bandwidth=bandwidth))(
                query, key, value, bandwidth=bandwidth
            )
    np.testing.assert_allclose(compiled, eager, rtol=2e-6, atol=2e-7)  # atol: sums that cancel


def test_vmap_over_bandwidths():
    """As in choosing one by leave-one-out error."""
    x, y, bandwidths = normal(1, S), normal(2, S), jnp.array([0.1, 1.0, 10.0])

    def leave_one_out(bandwidth):
        return nadaraya_watson(x, x, y, bandwidth=bandwidth, mask=~masks.sliding_window(0, 0))

    mapped = jax.jit(jax.vmap(leave_one_out))(bandwidths)
    for bandwidth, actual in zip(bandwidths, mapped, strict=True):
        np.testing.assert_allclose(
            actual, leave_one_out(float(bandwidth)), rtol=2e-6, atol=2e-7
        )  # atol: sums that cancel


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    given = (x.astype(dtype) for x in (normal(0, T), normal(1, S), normal(2, S)))
    output, weights = nadaraya_watson(*given, return_weights=True)
    assert (output.dtype, weights.dtype) == (dtype, jnp.float32)


@pytest.mark.parametrize(("t", "s"), [(3, 4), (300, 500)])
def test_products_are_of_full_precision(t, s):
    """A GPU's default left an error of 3e-4."""
    program = jax.make_jaxpr(nadaraya_watson)(jnp.ones((t, 2)), jnp.ones((s, 2)), jnp.ones((s, 3)))
    products = str(program).count(" = dot_general[")
    assert str(program).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products > 0
