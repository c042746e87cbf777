"""Dropout of weights: which are dropped, how the others are scaled, and that it can be repeated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jattn import attention, masks
from jattn._engine.dropout import dropout_keep, threefry2x32

pytestmark = pytest.mark.core

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6
RATE = 0.3
RNG = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def query_key_value() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, T, H, D), normal(1, B, S, 2, D), normal(2, B, S, 2, E)


dropped_out = functools.partial(attention, dropout_rate=RATE, dropout_rng=RNG)


def test_drops_and_rescales():
    """With the identity for values, the output is the weights after dropout."""
    query, key, _ = query_key_value()
    value = jnp.broadcast_to(jnp.eye(S)[:, None], (B, S, 2, S))
    output, weights = dropped_out(query, key, value, mask=masks.causal(offset=1), return_weights=True)
    keep = dropout_keep(RNG, RATE, (B, H, T, S))
    np.testing.assert_allclose(jnp.swapaxes(output, 1, 2), jnp.where(keep, weights / (1 - RATE), 0), rtol=5e-7)
    before = attention(query, key, value, mask=masks.causal(offset=1), return_weights=True)[1]
    np.testing.assert_array_equal(weights, before)  # returned from before dropout


def test_share():
    keep = dropout_keep(RNG, RATE, (4, 4, 64, 64))
    deviation = np.sqrt(RATE * (1 - RATE) / keep.size)
    np.testing.assert_allclose(keep.mean(), 1 - RATE, rtol=0, atol=4 * deviation)
    # Nor does any axis have a pattern: along each, the shares are as spread as independent draws are.
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        shares = keep.mean(axis=axes)
        deviation = np.sqrt(RATE * (1 - RATE) * shares.size / keep.size)
        np.testing.assert_allclose(shares, 1 - RATE, rtol=0, atol=5 * deviation)


def test_rows_are_independent():
    """No two rows of weights, of whatever example, head and query, share their bits."""
    rows = np.asarray(dropout_keep(RNG, 0.5, (2, 3, 5, 64))).reshape(-1, 64)
    assert len(np.unique(rows, axis=0)) == len(rows)
    agreement = (rows[:, None] == rows).mean(axis=-1)[~np.eye(len(rows), dtype=bool)]
    np.testing.assert_allclose(agreement, 0.5, rtol=0, atol=5 * np.sqrt(0.25 / 64))


@pytest.mark.parametrize("t", [1, 5, 9])
def test_bits_belong_to_the_row(t):
    """A block of rows draws what the whole matrix draws there, so that no implementation changes the result."""
    whole = dropout_keep(RNG, RATE, (2, 3, 9, S))
    np.testing.assert_array_equal(dropout_keep(RNG, RATE, (2, 3, t, S)), whole[:, :, :t], strict=True)
    np.testing.assert_array_equal(dropout_keep(RNG, RATE, (3, 9, S)), whole[0])


def test_the_same_rng_drops_the_same_weights():
    given = query_key_value()
    first = dropped_out(*given)
    np.testing.assert_array_equal(dropped_out(*given), first)
    # Compiled, the sums run in another order.
    np.testing.assert_allclose(jax.jit(dropped_out)(*given), first, rtol=2e-6, atol=5e-7)
    other = attention(*given, dropout_rate=RATE, dropout_rng=jax.random.key(1))
    assert (jnp.abs(other - first) > 1e-3).mean() > 0.9


def test_a_rate_of_zero_drops_nothing():
    given = query_key_value()
    np.testing.assert_array_equal(attention(*given, dropout_rate=0.0, dropout_rng=RNG), attention(*given))


def test_the_expectation_is_the_output_without_dropout():
    given = query_key_value()
    draws = 4000
    outputs = jax.jit(jax.vmap(lambda rng: attention(*given, dropout_rate=RATE, dropout_rng=rng)))(
        jax.random.split(RNG, draws)
    )
    deviation = outputs.std(axis=0) / np.sqrt(draws)
    assert (jnp.abs(outputs.mean(axis=0) - attention(*given)) < 5 * deviation).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.needs_jit
def test_gradients():
    """The same weights are dropped in each evaluation, so that finite differences are possible."""
    mask, bias = masks.causal(offset=-1), normal(3, H, T, S)
    f = jax.jit(lambda *given: dropped_out(*given[:3], bias=given[3], mask=mask))
    check_grads(f, (*query_key_value(), bias), order=1, rtol=1e-6, atol=1e-7)


def test_empty_rows_stay_empty():
    given = query_key_value()
    output, pull = jax.vjp(lambda *given: dropped_out(*given, mask=masks.lengths(jnp.array([0, 3]))), *given)
    np.testing.assert_array_equal(output[0], 0)
    gradients = pull(jnp.ones_like(output))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[0], 0)
        assert jnp.isfinite(gradient).all()


def test_bfloat16():
    query, key, value = (x.astype(jnp.bfloat16) for x in query_key_value())
    output = dropped_out(query, key, value)
    assert output.dtype == jnp.bfloat16
    wide = dropped_out(*(x.astype(jnp.float32) for x in (query, key, value)))
    # The weights and the output are rounded to bfloat16, relative to values of up to 4.
    np.testing.assert_allclose(output.astype(jnp.float32), wide, rtol=0, atol=8 * float(jnp.finfo(jnp.bfloat16).eps))


def test_the_same_bits_with_and_without_float64():
    keep = dropout_keep(jax.random.key(0), 0.3, (B, H, T, S))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(dropout_keep(jax.random.key(0), 0.3, (B, H, T, S)), keep)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((0, 0, 0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 4, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry(words, expected):
    """The known answers that its authors publish, in Random123's kat_vectors: key, counter, result."""
    key0, key1, x, y = (jnp.uint32(word) for word in words)
    assert tuple(map(int, threefry2x32((key0, key1), x, y))) == expected
    assert tuple(map(int, threefry2x32((key0, key1), x, y, rolled=True))) == expected


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_any_kind_of_key(impl):
    keeps = [dropout_keep(jax.random.key(seed, impl=impl), 0.5, (64, 64)) for seed in (0, 1)]
    assert 0.4 < float(jnp.mean(keeps[0] == keeps[1])) < 0.6


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5, 6)])
def test_any_shape(shape):
    assert dropout_keep(RNG, RATE, shape).shape == shape
