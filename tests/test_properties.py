"""Attention with anything in it, against the oracle: random shapes, masks, scores and dtypes."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jattn import attention, attention_weights, masked_softmax, masks, nadaraya_watson, scores
from tests import oracle, strategies

B, H = 2, 4
settings = hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tolerance(dtype, value: jax.Array) -> float:
    """What rounding the weights and the output to dtype may cost, and float32's own errors, relative to the values."""
    roundings = 1 if dtype == jnp.bfloat16 else 10
    return roundings * float(jnp.finfo(dtype).eps) * float(jnp.abs(value).max(initial=1))


# t, s, key heads, key width and value width: few, because each is compiled.
sizes = st.sampled_from(
    [(5, 7, 4, 3, 6), (5, 7, 2, 3, 6), (5, 7, 1, 1, 1), (1, 7, 2, 3, 6), (5, 1, 4, 3, 6), (1, 1, 1, 1, 1)]
)


def drawn_score(data) -> tuple[scores.Score, oracle.Score | None]:
    bandwidth = data.draw(st.sampled_from([0.5, 2.0]))
    return data.draw(
        st.sampled_from(
            [
                (scores.DotProduct(), None),
                (scores.DotProduct(bandwidth), oracle.dot_product(bandwidth)),
                (scores.Gaussian(bandwidth), oracle.kernel("gaussian", bandwidth)),
                (scores.Constant(), oracle.constant),
            ]
        )
    )


@dtypes
@settings
@hypothesis.given(data=st.data())
def test_attention(dtype, data):
    t, s, kv_heads, d, e = data.draw(sizes)
    mask, allowed = data.draw(strategies.combined(B, t, s))
    score, reference = drawn_score(data)
    seed = data.draw(st.integers(0, 99))
    shapes = (
        (B, t, H, d),
        (B, s, kv_heads, d),
        (B, s, kv_heads, e),
        data.draw(st.sampled_from([(t, s), (B, H, 1, s)])),
    )
    query, key, value, bias = (jnp.asarray(normal(seed + i, *shape), dtype) for i, shape in enumerate(shapes))
    soft_cap = data.draw(st.sampled_from([None, 1.5]))
    output, weights = attention(
        query, key, value, score=score, mask=mask, bias=bias, logits_soft_cap=soft_cap, return_weights=True
    )
    expected = oracle.attend(query, key, value, score=reference, mask=allowed, bias=bias, soft_cap=soft_cap)
    assert (output.dtype, weights.dtype) == (dtype, jnp.float32)
    # Weights are computed in float32 whatever the dtype; their relative error is the logits' absolute one.
    np.testing.assert_allclose(weights, expected.weights, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(weights == 0, expected.weights == 0)
    np.testing.assert_allclose(oracle.float64(output), expected.output, rtol=0, atol=tolerance(dtype, value))


@jax.jit
def gradients(query, key, value, bias, mask, cotangent):
    attend = lambda query, key, value, bias: attention(query, key, value, bias=bias, mask=mask)  # noqa: E731
    return jax.vjp(attend, query, key, value, bias)[1](cotangent)


@settings
@hypothesis.given(data=st.data())
def test_gradients_are_finite_and_zero_where_they_must_be(data):
    t, s, kv_heads, d, e = data.draw(sizes)
    allowed = np.broadcast_to(data.draw(strategies.combined(B, t, s)).allowed, (B, H, t, s))
    seed = data.draw(st.integers(0, 99))
    shapes = (B, t, H, d), (B, s, kv_heads, d), (B, s, kv_heads, e), (B, H, t, s), (B, t, H, e)
    *given, cotangent = (normal(seed + i, *shape).astype(np.float32) for i, shape in enumerate(shapes))
    for_query, for_key, for_value, for_bias = map(np.asarray, gradients(*given, allowed, cotangent))
    assert all(np.isfinite(gradient).all() for gradient in (for_query, for_key, for_value, for_bias))
    np.testing.assert_array_equal(for_bias[~allowed], 0)
    np.testing.assert_array_equal(for_query[~allowed.any(axis=-1).swapaxes(1, 2)], 0)
    used = allowed.any(axis=2).reshape(B, kv_heads, -1, s).any(axis=2).swapaxes(1, 2)  # by the head's group
    np.testing.assert_array_equal(for_key[~used], 0)
    np.testing.assert_array_equal(for_value[~used], 0)
    assert (np.abs(for_value[used]).max(axis=-1) > 0).all()


@settings
@hypothesis.given(data=st.data())
@pytest.mark.whole
def test_what_is_masked_has_no_influence(data):
    """Whatever stands at the keys that no query may attend to, the result is the same to the last bit."""
    t, s, kv_heads, d, e = data.draw(sizes)
    mask, allowed = data.draw(strategies.combined(B, t, s))
    unseen = ~np.broadcast_to(allowed, (B, 1, t, s)).any(axis=(1, 2))[..., None, None]
    query, key, value = normal(0, B, t, H, d), normal(1, B, s, kv_heads, d), normal(2, B, s, kv_heads, e)
    other = data.draw(st.sampled_from([0.0, -1e4, 1e30]))
    changed = np.where(unseen, other, key), np.where(unseen, -other, value)
    results = [
        attention(*map(jnp.float32, given), mask=mask, return_weights=True)
        for given in ((query, key, value), (query, *changed))
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


@settings
@hypothesis.given(data=st.data())
@pytest.mark.whole
def test_chosen_weights(data):
    t, s, kv_heads, d, e = data.draw(sizes)
    mask, _ = data.draw(strategies.combined(B, t, s))
    query, key = jnp.asarray(normal(0, B, t, H, d)), jnp.asarray(normal(1, B, s, kv_heads, d))
    heads = data.draw(st.lists(st.integers(-H, H - 1), min_size=2, max_size=2))
    queries = data.draw(st.lists(st.integers(-t, t - 1), min_size=3, max_size=3))
    dense = attention(query, key, jnp.ones((B, s, kv_heads, e)), mask=mask, return_weights=True)[1]
    chosen = attention_weights(query, key, mask=mask, heads=heads, queries=queries)
    # The products may be summed in another order where there are fewer of them.
    np.testing.assert_allclose(chosen, np.asarray(dense)[:, heads][:, :, queries], rtol=2e-6, atol=0)


@dtypes
@settings
@hypothesis.given(
    data=st.data(),
    row=st.lists(st.sampled_from([-np.inf, -3e38, -1e4, -1.0, 0.0, 0.5, 1e4, 3e38]), min_size=5, max_size=5),
    allowed=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_softmax_of_anything(dtype, data, row, allowed):
    x = np.asarray(jnp.asarray(row, dtype)).astype(np.float64)
    weights = masked_softmax(jnp.asarray(row, dtype)[None], masks.dense(jnp.array([allowed])))[0]
    reachable = np.array(allowed) & (x > -np.inf)
    expected = np.zeros(5)
    if reachable.any():
        exponentials = np.exp(x[reachable] - x[reachable].max())
        expected[reachable] = exponentials / exponentials.sum()
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-37)  # atol: what float32 cannot hold


@settings
@hypothesis.given(
    data=st.data(),
    name=st.sampled_from(["gaussian", "boxcar", "epanechnikov", "constant"]),
    bandwidth=st.sampled_from([0.25, 1.0, 4.0]),
)
@pytest.mark.whole
def test_nadaraya_watson(data, name, bandwidth):
    t, s, _, d, e = data.draw(sizes)
    mask, allowed = data.draw(strategies.combined(B, t, s))
    # On a grid, so that whether a key is in reach does not hang on a rounding.
    query, key = (np.round(4 * normal(i, B, n, d)) / 4 + 1 / 16 * i for i, n in enumerate((t, s)))
    value = normal(2, B, s, e)
    output = nadaraya_watson(
        *(jnp.asarray(x, jnp.float32) for x in (query, key, value)), bandwidth=bandwidth, kernel=name, mask=mask
    )
    given = (x[:, :, None] for x in (query, key, value.astype(np.float32)))
    expected = oracle.attend(*given, score=oracle.kernel(name, bandwidth), mask=allowed).output[:, :, 0]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=2e-6)  # atol: sums that cancel
