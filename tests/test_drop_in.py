"""`dot_product_attention` in the place of ``jax.nn.dot_product_attention``, and where it is documented to differ."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jattn import dot_product_attention, masks
from jattn._engine.platform import ACCELERATOR
from jattn.bound import Bound
from jattn.implementations.cudnn import Cudnn
from tests import oracle

B, T, S, H, D = 2, 5, 7, 4, 3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def query_key_value(kv_heads: int = H, batch: tuple[int, ...] = (B,)) -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, *batch, T, H, D), normal(1, *batch, S, kv_heads, D), normal(2, *batch, S, kv_heads, D)


def assert_same(ours: jax.Array, theirs: jax.Array) -> None:
    """Two float32 computations, whose sums run in different orders and sometimes cancel."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


MASK = np.random.default_rng(5).random((B, H, T, S)) < 0.5
MASK[..., 0] = True  # every query has a key, also under the causal mask
MOST = np.random.default_rng(5).random((B, 1, T, S)) < 0.9  # so that each of the other rules leaves something out
MOST[..., 0] = True
OPTIONS = {
    "all": {
        "bias": normal(3, B, H, T, S),
        "mask": jnp.asarray(MOST),
        "scale": 0.3,
        "is_causal": True,
        "query_seq_lengths": jnp.array([4, 2], jnp.int32),
        "key_value_seq_lengths": jnp.array([3, 7], jnp.int32),
        "local_window_size": (5, 9),
    },
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"bias": normal(3, B, H, T, S)},
    "bias for all heads": {"bias": normal(3, 1, 1, T, S)},
    "mask": {"mask": jnp.asarray(MASK)},
    "mask for all heads": {"mask": jnp.asarray(MASK[:, :1, :1])},
    "is_causal": {"is_causal": True},
    "key lengths": {"key_value_seq_lengths": jnp.array([3, 7], jnp.int32)},
    "query lengths": {"query_seq_lengths": jnp.array([5, 2], jnp.int32)},
    "both lengths": {
        "query_seq_lengths": jnp.array([0, 2], jnp.int32),
        "key_value_seq_lengths": jnp.array([3, 1], jnp.int32),
    },
    "window": {"local_window_size": 1},
    "window of two sides": {"local_window_size": (2, 0)},
    "window of oneself": {"local_window_size": (0, 0)},
    "wide window": {"local_window_size": (1, 9)},
}


@pytest.mark.parametrize(
    ("name", "kv_heads"), [*itertools.product(OPTIONS, [4]), *itertools.product(["bias", "mask", "all"], [1, 2])]
)
def test_same_output_as_jax(name, kv_heads):
    given = query_key_value(kv_heads)
    assert_same(dot_product_attention(*given, **OPTIONS[name]), jax.nn.dot_product_attention(*given, **OPTIONS[name]))


@pytest.mark.parametrize("name", ["plain", "both lengths", "all"])
def test_same_gradients_as_jax(name):
    """For a random cotangent."""
    given = query_key_value(kv_heads=2)
    cotangent = normal(9, *given[0].shape)
    gradients = [
        jax.jit(lambda *given, f=function: jax.vjp(lambda *x: f(*x, **OPTIONS[name]), *given)[1](cotangent))(*given)
        for function in (dot_product_attention, jax.nn.dot_product_attention)
    ]
    jax.tree.map(assert_same, *gradients)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"is_causal": True, "local_window_size": 2}, id="causal window"),
        pytest.param({"bias": normal(3, H, T, S), "mask": jnp.asarray(MASK[0])}, id="bias and mask with 3 axes"),
        pytest.param({"bias": normal(3, 1, H, T, S), "mask": jnp.asarray(MASK[:1])}, id="bias and mask with 4 axes"),
        pytest.param({"key_value_seq_lengths": jnp.array([3], jnp.int32)}, id="key lengths"),
        pytest.param({"query_seq_lengths": jnp.array([3], jnp.int32)}, id="query lengths"),
    ],
)
def test_same_as_jax_without_a_batch(arguments):
    given = query_key_value(kv_heads=2, batch=())
    assert_same(dot_product_attention(*given, **arguments), jax.nn.dot_product_attention(*given, **arguments))


def test_positional_arguments():
    """Bias comes before mask."""
    given = (*query_key_value(), normal(3, B, H, T, S), jnp.asarray(MASK))
    assert_same(dot_product_attention(*given), jax.nn.dot_product_attention(*given))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "arguments", [{}, {"bias": True}, {"is_causal": True, "scale": 3.0}, {"key_value_seq_lengths": jnp.array([3, 0])}]
)
def test_residual(arguments):
    """The logarithm of the sum of the exponentials, minus infinity where the sum is empty."""
    query, key, value = query_key_value(kv_heads=2)
    mask, bias = True, 0.0
    if "bias" in arguments:
        bias = 300 * normal(3, H, T, S)
        arguments = {"bias": bias}
    if "is_causal" in arguments:
        mask = np.tri(T, S, dtype=bool)
    if "key_value_seq_lengths" in arguments:
        mask = np.arange(S) < np.array([3, 0])[:, None, None, None]
    score = oracle.dot_product(arguments.get("scale", D**-0.5))
    expected = oracle.attend(query, key, value, score=score, mask=mask, bias=bias)
    output, residual = dot_product_attention(query, key, value, **arguments, return_residual=True)
    np.testing.assert_allclose(output, expected.output, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(residual, expected.log_sum_exp, rtol=1e-12, strict=True)


@pytest.mark.usefixtures("x64")
def test_gradient_of_the_residual():
    """Finite, and zero for the rows that are empty."""
    lengths = jnp.array([3, 0])

    @jax.jit
    def residual(query, key):
        lse = dot_product_attention(query, key, key, key_value_seq_lengths=lengths, return_residual=True)[1]
        return jnp.where(jnp.isneginf(lse), 0, lse)

    query, key, _ = query_key_value()
    check_grads(residual, (query, key), order=1, rtol=1e-6, atol=1e-8)
    gradients = jax.grad(lambda *given: residual(*given).sum(), argnums=(0, 1))(query, key)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[1], 0)
    np.testing.assert_array_equal(gradients[1][:, 3:], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(dtype):
    output, residual = dot_product_attention(*(x.astype(dtype) for x in query_key_value()), return_residual=True)
    assert (output.dtype, residual.dtype) == (dtype, jnp.float32)
    assert residual.shape == (B, T, H)


def test_a_residual_that_is_not_a_number_is_not_hidden():
    query, key, value = query_key_value()
    output, residual = dot_product_attention(query.at[0, 1].set(jnp.nan), key, value, return_residual=True)
    expected = np.zeros((B, T, H), bool)
    expected[0, 1] = True
    np.testing.assert_array_equal(jnp.isnan(output).all(axis=-1), expected)
    np.testing.assert_array_equal(jnp.isnan(residual), expected)


def test_differs_where_a_query_may_attend_to_nothing():
    query, key, value = query_key_value()
    lengths = jnp.array([0, 7], jnp.int32)
    ours = dot_product_attention(query, key, value, key_value_seq_lengths=lengths)
    theirs = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths)
    np.testing.assert_array_equal(ours[0], 0)
    np.testing.assert_allclose(theirs[0, 0], value[0].mean(axis=0), rtol=1e-5)
    assert_same(ours[1], theirs[1])


def test_takes_masks_and_values_of_another_width():
    query, key, _ = query_key_value()
    value = normal(2, B, S, H, 6)
    expected = oracle.attend(query, key, value, mask=np.tri(T, S, 1, dtype=bool)).output
    output = dot_product_attention(query, key, value, mask=masks.causal(offset=1))
    assert_same(output, expected)


@pytest.mark.usefixtures("unchecked")  # the annotations name Python's integers; NumPy's work as well
@pytest.mark.parametrize("window", [np.int64(1), (np.int32(1), np.int64(1)), [1, 1]])
def test_windows_of_numpy_integers(window):
    given = query_key_value()
    expected = dot_product_attention(*given, local_window_size=1)
    np.testing.assert_array_equal(dot_product_attention(*given, local_window_size=window), expected)


@pytest.mark.parametrize("implementation", ["xla", None])
def test_xla_is_not_cudnn(monkeypatch, implementation):
    """On a GPU that cuDNN's kernel would take the call on, ``"xla"`` keeps it from it."""
    calls, hopper = [], dataclasses.replace(ACCELERATOR, name="cuda", capability=9.0)
    own = Bound.result

    def noted(bound, *arguments, **options):
        calls.append(bound.call)
        return own(bound, *arguments, **options)

    monkeypatch.setattr(Bound, "result", noted)
    x = jnp.ones((2, 6, 4, 8), jnp.bfloat16)
    dot_product_attention(x, x, x, implementation=implementation)
    assert Cudnn().refusal(calls[0], hopper) == (None if implementation is None else "XLA was asked for")
