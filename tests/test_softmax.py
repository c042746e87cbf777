"""The masked softmax, and the other parts of the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jattn import dot_product_attention, masked_softmax, masks
from jattn._engine.grouped_heads import repeat_heads
from jattn.bound import bind
from tests import oracle

INF = np.inf


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
    ("row", "allowed", "expected"),
    [
        pytest.param([0, 0, 0, 0], [1, 1, 0, 0], [1 / 2, 1 / 2, 0, 0], id="equal"),
        pytest.param([0, np.log(3), 9, 0], [1, 1, 0, 0], [1 / 4, 3 / 4, 0, 0], id="one to three"),
        pytest.param([5, 1, 2, 3], [1, 0, 0, 0], [1, 0, 0, 0], id="one key"),
        pytest.param([5, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 0], id="no key"),
        pytest.param([-INF, 0, 0, -INF], [1, 1, 1, 1], [0, 1 / 2, 1 / 2, 0], id="-inf"),
        pytest.param([-INF, 0, 0, -INF], [1, 1, 0, 1], [0, 1, 0, 0], id="-inf and masked"),
        pytest.param([-INF, 0, 0, -INF], [1, 0, 0, 1], [0, 0, 0, 0], id="-inf is all there is"),
        pytest.param([-INF] * 4, [1, 1, 1, 1], [0, 0, 0, 0], id="only -inf"),
        pytest.param([1e4, 1e4, -1e4, 0], [1, 1, 1, 1], [1 / 2, 1 / 2, 0, 0], id="large"),
        pytest.param([1e4, -1e4, -1e4, 0], [0, 1, 1, 0], [0, 1 / 2, 1 / 2, 0], id="large and masked"),
        pytest.param([3e38, 0, -3e38, -3e38], [0, 0, 1, 1], [0, 0, 1 / 2, 1 / 2], id="the ends of float32"),
        pytest.param([3e38, -3e38, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], id="the whole of float32"),
    ],
)
def test_by_hand(row, allowed, expected):
    row, mask = jnp.array([row], jnp.float32), jnp.array([allowed], bool)
    for softmax in (masked_softmax, jax.jit(masked_softmax)):
        weights = softmax(row, mask)
        np.testing.assert_allclose(weights, np.array([expected], np.float32), rtol=1e-6, strict=True)
        np.testing.assert_array_equal(weights == 0, np.array([expected]) == 0)


def logits(query, key, **options):
    return bind(query, key, **options).call.logits.matrix()


def test_without_a_mask():
    np.testing.assert_allclose(masked_softmax(jnp.log(jnp.array([[1.0, 2, 5]]))), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        pytest.param((2, 5, 7), masks.lengths(jnp.array([3, 0])), id="b t s, lengths"),
        pytest.param((2, 3, 5, 7), masks.lengths(jnp.array([3, 0])), id="b h t s, lengths"),
        pytest.param((2, 5, 7), masks.lengths(jnp.array([[1, 0, 3, 7, 2], [0, 0, 2, 1, 1]])), id="b t s, per query"),
        pytest.param((5, 7), masks.causal(offset=-1), id="t s"),
        pytest.param((2, 3, 5, 7), masks.causal() & ~masks.prefix(jnp.array([1, 2])), id="combination"),
        pytest.param((2, 5, 7), jnp.tri(5, 7, -2, dtype=bool), id="array t s"),
        pytest.param((2, 5, 7), jnp.arange(70).reshape(2, 5, 7) % 3 == 0, id="array b t s"),
        pytest.param((2, 3, 5, 7), jnp.arange(14).reshape(2, 1, 1, 7) < 9, id="array b 1 1 s"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_masks(shape, mask):
    x = normal(0, *shape)
    allowed = mask.as_array(*shape[-2:]) if isinstance(mask, masks.Mask) else mask
    if isinstance(mask, masks.Mask) and len(shape) == 3:
        allowed = np.asarray(allowed)[:, 0]
    allowed = np.broadcast_to(allowed, shape)
    exponentials = np.where(allowed, np.exp(oracle.float64(x)), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = masked_softmax(x, mask)
    np.testing.assert_allclose(weights, exponentials / np.where(total > 0, total, 1), rtol=1e-13)
    np.testing.assert_allclose(weights.sum(axis=-1), allowed.any(axis=-1), rtol=1e-13)
    np.testing.assert_array_equal(weights == 0, ~allowed)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)],
)
@pytest.mark.usefixtures("x64")
def test_dtype(dtype, expected):
    x = normal(0, 5, 7).astype(dtype)
    weights = masked_softmax(x, masks.causal())
    assert weights.dtype == expected
    exponentials = np.tril(np.exp(oracle.float64(x)))
    np.testing.assert_allclose(weights, exponentials / exponentials.sum(axis=-1, keepdims=True), rtol=5e-7)


@pytest.mark.usefixtures("x64")
def test_gradients():
    x, mask = normal(0, 2, 5, 7), masks.lengths(jnp.array([3, 0])) & masks.causal(offset=-1)
    check_grads(jax.jit(lambda x: masked_softmax(x, mask)), (x,), order=2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("row", [[0.0, 1.0, 2.0], [-INF, -INF, -INF], [INF, -INF, np.nan], [3e38, -3e38, 0.0]])
def test_an_empty_row_has_zero_gradients(row):
    """Whatever the logits under the mask are."""
    x, mask = jnp.array([row, [0.0, 1.0, 2.0]]), jnp.array([[False] * 3, [True, True, False]])
    weights, gradient = jax.vjp(lambda x: masked_softmax(x, mask), x)
    np.testing.assert_array_equal(weights[0], 0)
    np.testing.assert_array_equal(gradient(jnp.array([[1.0, -2, 3], [1, -2, 3]]))[0][0], 0)
    tangent = jax.jvp(lambda x: masked_softmax(x, mask), (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_array_equal(tangent[0], 0)
    assert jnp.isfinite(tangent).all()


def test_not_a_number_is_not_hidden():
    weights = masked_softmax(jnp.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]]), jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(jnp.isnan(weights), [[True, True, True], [False, False, False]])


def test_no_keys_and_no_queries():
    assert masked_softmax(jnp.ones((2, 5, 0))).shape == (2, 5, 0)
    assert masked_softmax(jnp.ones((2, 0, 7)), masks.causal()).shape == (2, 0, 7)


def test_jit_and_vmap():
    x, valid_lens = normal(0, 4, 5, 7), jnp.array([0, 3, 7, 1])
    expected = masked_softmax(x, masks.lengths(valid_lens))
    np.testing.assert_allclose(jax.jit(masked_softmax)(x, masks.lengths(valid_lens)), expected, rtol=5e-7)
    mapped = jax.vmap(lambda x, n: masked_softmax(x, masks.lengths(n)))(x, valid_lens)
    np.testing.assert_allclose(mapped, expected, rtol=5e-7)


def test_repeat_heads():
    """Query heads 0 to g - 1 share the first key head."""
    x = jnp.arange(2 * 7 * 2 * 4).reshape(2, 7, 2, 4) * 1.0
    repeated = repeat_heads(x, 6)
    assert repeated.shape == (2, 7, 6, 4)
    for head, shared in enumerate([0, 0, 0, 1, 1, 1]):
        np.testing.assert_array_equal(repeated[..., head, :], x[..., shared, :])


@pytest.mark.usefixtures("x64")
def test_order_of_scale_bias_and_soft_cap():
    query, key, bias = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), 3 * normal(2, 3, 5, 7)
    plain = 0.7 * np.einsum("bthd,bshd->bhts", query, key)
    actual = logits(query, key, scale=0.7, bias=bias, logits_soft_cap=2.0)
    np.testing.assert_allclose(actual, 2 * np.tanh((plain + bias) / 2), rtol=1e-12)
    assert abs(actual).max() <= 2


def test_the_soft_cap_leaves_minus_infinity_out_of_reach():
    query, key = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4)
    bias = jnp.where(jnp.arange(7) < 3, 0.0, -INF)
    actual = logits(query, key, bias=bias, logits_soft_cap=2.0)
    np.testing.assert_array_equal(jnp.isneginf(actual), np.broadcast_to(np.arange(7) >= 3, (2, 3, 5, 7)))


def test_log_sum_exp_of_a_row_at_the_end_of_float32():
    """The most negative finite bias allows; minus infinity does not."""
    query, key = jnp.zeros((2, 1, 4)), jnp.ones((3, 1, 4))
    bias = jnp.array([jnp.finfo(jnp.float32).min, -INF])[:, None] * jnp.ones(3)
    output, log_sum_exp = dot_product_attention(query, key, key, bias[None, None], return_residual=True)
    np.testing.assert_array_equal(output[:, 0, 0], [1, 0])
    np.testing.assert_array_equal(log_sum_exp[:, 0], [jnp.finfo(jnp.float32).min, -INF])


@pytest.mark.usefixtures("x64")
def test_a_query_narrower_than_its_key_keeps_the_keys_digits():
    query, key = normal(0, 5, 3, 4).astype(jnp.float32), normal(1, 7, 3, 4)
    expected = 0.3 * np.einsum("thd,shd->hts", query.astype(jnp.float64), key)
    np.testing.assert_allclose(logits(query, key, scale=0.3), expected, rtol=1e-12, atol=1e-15)
