"""The public functions: what they compute, and what they must not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import additive_attention, attention, masks, scores
from tests import oracle

pytestmark = pytest.mark.core

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6
CAUSAL = np.tri(T, S, 1, dtype=bool)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def query_key_value(batch: tuple[int, ...] = (B,), t: int = T, s: int = S, kv_heads: int = H, dtype=None):
    arrays = normal(0, *batch, t, H, D), normal(1, *batch, s, kv_heads, D), normal(2, *batch, s, kv_heads, E)
    return tuple(x if dtype is None else x.astype(dtype) for x in arrays)


def assert_matches(actual, expected: oracle.Attended, rtol: float = 1e-12) -> None:
    output, weights = actual
    # atol: sums of a few numbers of magnitude 1 that cancel.
    np.testing.assert_allclose(output, expected.output, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(weights, expected.weights, rtol=rtol, atol=0)


with_weights = functools.partial(attention, return_weights=True)
NAMES = ["plain", "scale", "mask", "bias", "soft cap", "mask and bias", "all"]


def arguments(name: str) -> dict:
    bias = 3 * normal(3, H, T, S)
    return {
        "plain": {},
        "scale": {"scale": 2.0},
        "mask": {"mask": masks.causal(offset=1)},
        "bias": {"bias": bias},
        "soft cap": {"logits_soft_cap": 0.5},
        "mask and bias": {"mask": masks.lengths(jnp.array([3, 6])), "bias": bias},
        "all": {"mask": masks.causal(offset=-1), "bias": bias, "scale": 2.0, "logits_soft_cap": 1.5},
    }[name]


def for_oracle(*, mask=None, scale=D**-0.5, bias=0.0, logits_soft_cap=None) -> dict:
    allowed = True if mask is None else mask.as_array(T, S)
    return {"mask": allowed, "score": oracle.dot_product(scale), "bias": bias, "soft_cap": logits_soft_cap}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", NAMES)
def test_definition(name, kv_heads):
    query, key, value = query_key_value(kv_heads=kv_heads)
    actual = with_weights(query, key, value, **arguments(name))
    assert_matches(actual, oracle.attend(query, key, value, **for_oracle(**arguments(name))))
    np.testing.assert_array_equal(attention(query, key, value, **arguments(name)), actual[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("score", "reference"),
    [
        (scores.Gaussian(bandwidth=0.5), oracle.kernel("gaussian", 0.5)),
        (scores.Boxcar(bandwidth=2.0), oracle.kernel("boxcar", 2.0)),
        (scores.Epanechnikov(factor=0.5), oracle.kernel("epanechnikov", 2.0)),
        (scores.Constant(), oracle.constant),
        (lambda query, key: jnp.einsum("bthd,bshd->bhts", query**2, key), lambda query, key: key @ query**2),
    ],
    ids=["gaussian", "boxcar", "epanechnikov", "constant", "a function"],
)
def test_scores(score, reference):
    query, key, value = query_key_value(kv_heads=2)
    bias = normal(3, H, T, S)
    actual = with_weights(query, key, value, score=score, bias=bias, mask=masks.causal(offset=1), logits_soft_cap=2.0)
    expected = oracle.attend(query, key, value, score=reference, bias=bias, mask=CAUSAL, soft_cap=2.0)
    assert_matches(actual, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(T, S), (H, 1, S), (B, 1, T, 1), (1, H, T, S), (B, H, T, S), (), (S,)])
def test_bias_broadcasts(shape):
    query, key, value = query_key_value()
    bias = normal(3, *shape)
    assert_matches(with_weights(query, key, value, bias=bias), oracle.attend(query, key, value, bias=bias))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(T, S), (1, S), (H, T, S), (B, 1, 1, S), (B, H, T, S)])
def test_boolean_arrays_as_mask(shape):
    query, key, value = query_key_value()
    mask = normal(3, *shape) > 0
    assert_matches(with_weights(query, key, value, mask=mask), oracle.attend(query, key, value, mask=mask))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("batch", "t", "s"), [((B,), 1, S), ((B,), T, 1), ((B,), 1, 1), ((), T, S), ((2, 3), T, S)])
def test_shapes(batch, t, s):
    query, key, value = query_key_value(batch, t, s, kv_heads=2)
    actual = with_weights(query, key, value, mask=masks.causal())
    expected = oracle.attend(query, key, value, mask=np.tri(t, s, dtype=bool))
    assert actual[0].shape == (*batch, t, H, E)
    assert_matches(actual, expected)


def test_masks_with_data_and_two_batch_axes():
    query, key, value = query_key_value((2, 3))
    valid_lens = jnp.array([[1, 7, 0], [3, 2, 5]])
    output = attention(query, key, value, mask=masks.lengths(valid_lens, per_query=False))
    for example in np.ndindex(2, 3):
        alone = attention(*(x[example] for x in (query, key, value)), mask=masks.lengths(int(valid_lens[example])))
        np.testing.assert_allclose(output[example], alone, rtol=2e-6, atol=2e-7)  # atol: sums that cancel


def test_no_queries_and_no_keys():
    assert attention(*query_key_value(t=0)).shape == (B, 0, H, E)
    np.testing.assert_array_equal(attention(*query_key_value(s=0)), jnp.zeros((B, T, H, E)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_sum_to_one_or_zero(name):
    weights = with_weights(*query_key_value(), **arguments(name))[1]
    allowed = np.broadcast_to(for_oracle(**arguments(name))["mask"], weights.shape)
    np.testing.assert_allclose(weights.sum(axis=-1), allowed.any(axis=-1), rtol=5e-7)
    np.testing.assert_array_equal(weights == 0, ~allowed)
    assert weights.min() >= 0


def test_masked_keys_have_no_influence():
    query, key, value = query_key_value()
    mask = masks.lengths(jnp.array([3, 0]))
    padding = (np.arange(S) >= np.array([[3], [0]]))[..., None, None]
    other = with_weights(query, jnp.where(padding, 1e4, key), jnp.where(padding, -1e4, value), mask=mask)
    for actual, expected in zip(other, with_weights(query, key, value, mask=mask), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.usefixtures("x64")
def test_permuting_keys_changes_nothing():
    query, key, value = query_key_value(kv_heads=2)
    bias, mask = normal(3, H, T, S), normal(4, B, 1, T, S) > 0
    order = np.random.default_rng(5).permutation(S)
    output, weights = with_weights(query, key, value, bias=bias, mask=mask)
    permuted = with_weights(query, key[:, order], value[:, order], bias=bias[..., order], mask=mask[..., order])
    np.testing.assert_allclose(permuted[0], output, rtol=1e-12, atol=1e-14)  # the sums run in another order
    np.testing.assert_allclose(permuted[1], weights[..., order], rtol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_share_consecutive_heads(kv_heads):
    query, key, value = query_key_value(kv_heads=kv_heads)
    shared = [0, 0, 0, 0] if kv_heads == 1 else [0, 0, 1, 1]
    bias, mask = normal(3, H, T, S), masks.causal(offset=1)
    grouped = with_weights(query, key, value, bias=bias, mask=mask)
    repeated = with_weights(query, key[:, :, shared], value[:, :, shared], bias=bias, mask=mask)
    for actual, expected in zip(grouped, repeated, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)  # products of other shapes sum otherwise


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(size):
    query, key, value = query_key_value()
    bias = size * normal(3, H, T, S)
    actual = jax.vjp(lambda *x: attention(*x[:3], bias=x[3]), query, key, value, bias)
    expected = oracle.attend(query, key, value, bias=bias)
    # The logits have 24 bits; at 3e4 the last of them is worth 2e-3. Most rows are one key's alone.
    np.testing.assert_allclose(actual[0], expected.output, rtol=5e-3, atol=5e-3)
    assert all(jnp.isfinite(gradient).all() for gradient in actual[1](jnp.ones_like(actual[0])))


@pytest.mark.parametrize("shape", [(H,), (B, H), (1, H)])
def test_head_gates_multiply_each_heads_output(shape):
    query, key, value = query_key_value(kv_heads=2)
    gates = normal(3, *shape)
    output, weights = with_weights(query, key, value)
    gated = with_weights(query, key, value, head_gates=gates)
    factors = np.broadcast_to(gates, (B, H))[:, None, :, None]
    np.testing.assert_allclose(gated[0], output * factors, rtol=5e-7)
    np.testing.assert_array_equal(gated[1], weights)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("value_dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes(dtype, value_dtype):
    """The output in value's; the weights in query's and key's, or float32 where those are narrower."""
    query, key, value = query_key_value()
    query, key, value = query.astype(dtype), key.astype(dtype), value.astype(value_dtype)
    output, weights = with_weights(query, key, value, mask=masks.causal(offset=1), head_gates=jnp.ones(H))
    assert output.dtype == value_dtype
    assert weights.dtype == np.promote_types(dtype, jnp.float32)
    expected = oracle.attend(query, key, value, mask=CAUSAL)
    np.testing.assert_allclose(weights, expected.weights, rtol=20 * float(jnp.finfo(weights.dtype).eps))
    # The output is rounded to value's dtype, relative to values of up to 4.
    eps = max(float(jnp.finfo(value_dtype).eps), float(jnp.finfo(weights.dtype).eps))
    np.testing.assert_allclose(oracle.float64(output), expected.output, rtol=0, atol=8 * eps)


def test_the_output_is_rounded_once():
    """The sum over keys and the gates are computed wide, also where value is narrow."""
    query, key, value = query_key_value(dtype=jnp.bfloat16)
    gates = normal(3, H)
    output, weights = with_weights(query, key, value, head_gates=gates)
    exact = np.einsum("bhts,bshe->bthe", oracle.float64(weights), oracle.float64(value))
    exact = exact * oracle.float64(gates)[:, None]
    half_a_unit = float(jnp.finfo(jnp.bfloat16).eps) / 2
    # atol: what float32 leaves of sums that cancel.
    np.testing.assert_allclose(oracle.float64(output), exact, rtol=1.01 * half_a_unit, atol=1e-6)


def test_jit_and_vmap():
    query, key, value = query_key_value(kv_heads=2)
    mask, bias, gates = masks.causal() & masks.lengths(jnp.array([3, 6])), normal(3, B, H, T, S), normal(4, B, H)

    def run(query, key, value, mask, bias, gates):
        return with_weights(query, key, value, mask=mask, bias=bias, head_gates=gates)

    eager = run(query, key, value, mask, bias, gates)
    for transformed in (jax.jit(run), jax.vmap(run), jax.jit(jax.vmap(run))):
        actual = transformed(query, key, value, mask, bias, gates)
        for ours, expected in zip(actual, eager, strict=True):
            # Fusion and batching reorder the sums, some of which cancel.
            np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=2e-6, atol=5e-7)


@pytest.mark.usefixtures("x64")
def test_additive_attention():
    query, key, value = normal(0, B, T, D), normal(1, B, S, 9), normal(2, B, S, E)
    parameters = {"w_query": normal(3, D, 8), "w_key": normal(4, 9, 8), "w_value": normal(5, 8)}
    mask = normal(6, B, T, S) > 0
    expected = oracle.attend(
        *(x[:, :, None] for x in (query, key, value)), score=oracle.additive(**parameters), mask=mask[:, None]
    )
    output, weights = additive_attention(query, key, value, **parameters, mask=mask, return_weights=True)
    np.testing.assert_allclose(output, expected.output[:, :, 0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(weights, expected.weights[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(additive_attention(query, key, value, **parameters, mask=mask), output)
    alone = additive_attention(query[0], key[0], value[0], **parameters, mask=mask[0])
    np.testing.assert_allclose(alone, output[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mask", [masks.lengths(jnp.array([3, 0])), masks.causal(), jnp.tri(T, S, dtype=bool)])
def test_additive_attention_masks(mask):
    query, key, value = normal(0, B, T, D), normal(1, B, S, 9), normal(2, B, S, E)
    parameters = {"w_query": normal(3, D, 8), "w_key": normal(4, 9, 8), "w_value": normal(5, 8)}
    weights = additive_attention(query, key, value, **parameters, mask=mask, return_weights=True)[1]
    allowed = mask.as_array(T, S) if isinstance(mask, masks.Mask) else mask
    allowed = np.broadcast_to(allowed, (B, 1, T, S))[:, 0]
    np.testing.assert_array_equal(weights > 0, allowed)
