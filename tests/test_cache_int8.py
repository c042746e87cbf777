"""Caches that keep keys and values as int8, beside NumPy's rounding of the same numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import Cache, biases, masks, models
from jattn.nn import MultiHeadAttention, Rotary, new_cache
from tests.test_cache import MODELS, drawn, in_chunks

T = 9
RULES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "a ring": ({"mask": masks.causal() & masks.sliding_window(2, 2)}, 4, True),
    "all": ({"mask": masks.causal(), "bias": biases.alibi(4)}, T, False),
}


@pytest.fixture(autouse=True)
def _in_float64() -> Any:
    with jax.enable_x64(True):
        yield


def scales_of(x: Any) -> np.ndarray:
    return (np.abs(np.asarray(x, np.float64)).max(-1) / 127).astype(np.float32)


def rounded(x: Any) -> jax.Array:
    """To the multiples of each vector's scale."""
    scale = scales_of(x)[..., None].astype(np.float64)
    return jnp.asarray(np.round(np.asarray(x, np.float64) / scale) * scale)


def int8_cache(
    batch: tuple[int, ...] = (2,), room: int = T, *, heads: int = 2, features: int = 6, **more: Any
) -> Cache:
    return Cache.empty(batch, room=room, num_heads=heads, features=features, dtype=jnp.int8, **more)


@pytest.mark.core
def test_codes_and_scales() -> None:
    """Half to even; a vector of zeros has the scale 0, and is zeros again."""
    keys = jnp.array([[[[127, 0.5, 1.5, -2.5], [0, 0, 0, 0]], [[-254, 1.0, 2.9, -127], [0.5, -0.25, 0, 63.5]]]])
    values = jnp.array([[[[0.0], [-3.0]], [[12.7], [0]]]])
    now = int8_cache((1,), 3, features=4, value_features=1).append(keys, values)
    codes = [[[127, 0, 2, -2], [0, 0, 0, 0]], [[-127, 0, 1, -64], [1, 0, 0, 127]]]
    np.testing.assert_array_equal(now.cache.keys[0].swapaxes(0, 1), [*codes, np.zeros((2, 4))])
    np.testing.assert_array_equal(now.cache.key_scales[0].T, [[1, 0], [2, 0.5], [0, 0]])
    np.testing.assert_array_equal(now.cache.values[0, :, :, 0].T, [[0, -127], [127, 0], [0, 0]])
    scales = np.float32([[0, 3 / 127], [0.1, 0], [0, 0]])
    np.testing.assert_array_equal(now.cache.value_scales[0].T, scales)
    assert (now.cache.keys.dtype, now.cache.key_scales.dtype) == (jnp.int8, jnp.float32)
    np.testing.assert_array_equal(now.keys[0, :2], codes * np.array([[1, 0], [2, 0.5]])[..., None])
    np.testing.assert_array_equal(now.values[0, :, :, 0], [[0, -127], [127, 0], [0, 0]] * scales.astype(np.float64))


# Beside half a scale, the rounding of a quotient of up to 127 and of the product.
@pytest.mark.parametrize(("dtype", "eps"), [(jnp.float64, 2e-16), (jnp.float32, 1e-7), (jnp.bfloat16, 2**-9)], ids=str)
def test_off_by_half_a_scale(dtype: Any, eps: float) -> None:
    """Whatever the magnitude; so by max|x| / 254 at most. The bound is reached, and read in the new keys' dtype."""
    x = (drawn(1, 40, 2, 64) * 10.0 ** jnp.linspace(-30, 30, 40)[:, None, None]).astype(dtype)
    now = jax.jit(lambda cache, x: cache.append(x, -x))(int8_cache((1,), 40, features=64), x)
    exact, largest = np.asarray(x, np.float64), np.abs(np.asarray(x, np.float64)).max(-1, keepdims=True)
    for back, sign in ((now.keys, 1), (now.values, -1)):
        assert back.dtype == dtype
        error = np.abs(sign * np.asarray(back, np.float64) - exact) / largest
        bound = 1 / 254 + 2 * eps
        assert 0.9 / 254 < error.max() <= bound
    np.testing.assert_array_less(np.abs(np.asarray(now.cache.keys, int)), 128)


def test_what_that_makes_of_attention() -> None:
    """A logit is off by ``e = scale |q|_1 max|k| / 254``, the sum of all weights by ``2 tanh(e / 2) <= e``, and so an
    output by ``max|v| (e + 1 / 254)``; in fact less than 2 % here, as errors of many features cancel.
    """
    query, key, value = drawn(2, 7, 4, 16), drawn(2, T, 2, 16), drawn(2, T, 2, 6)
    now = int8_cache(features=16, value_features=6).append(key, value)
    output, exact = (jattn.attention(query, k, v) for k, v in ((now.keys, now.values), (key, value)))
    logit = 16**-0.5 * float(jnp.abs(query).sum(-1).max()) * float(jnp.abs(key).max()) / 254
    error, largest = float(jnp.abs(output - exact).max()), float(jnp.abs(value).max())
    assert error <= largest * (logit + 1 / 254)
    assert largest * (logit + 1 / 254) < 0.2 * float(jnp.abs(exact).max())
    assert 1e-4 < error / float(jnp.abs(exact).max()) < 0.02


@pytest.mark.core
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_equal_to_rounded_keys_and_values(rule: tuple[dict[str, Any], int, bool]) -> None:
    """In whatever chunks; grown, reordered, and taken back on the way."""
    options, room, ring = rule
    query, key, value = drawn(2, T, 4, 6), drawn(2, T, 2, 6), drawn(2, T, 2, 5)
    wrong = drawn(2, 1, 2, 5)

    def run(query: Any, key: Any, value: Any) -> Any:
        first, cache = in_chunks(
            int8_cache((2,), room if ring else 6, value_features=5, ring=ring), [3, 1], query, key, value, **options
        )
        cache = cache.append(key[:, :1], wrong).cache.cropped(4).reordered(jnp.array([1, 0]))
        cache = cache if ring else cache.grown(room)
        swapped = (x[::-1, 4:] for x in (query, key, value))
        second, cache = in_chunks(cache, [1, 4], *swapped, **options)
        return jnp.concatenate([first, second[::-1]], axis=1), cache

    output, cache = jax.jit(run)(query, key, value)
    expected = jattn.attention(query, rounded(key), rounded(value), **options)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert cache.key_scales.shape == cache.value_scales.shape == (2, 2, room)


def test_scanned_and_mapped() -> None:
    """Of bfloat16, whose codes and scales are made in float32."""
    key = drawn(3, T, 2, 4).astype(jnp.bfloat16)

    def of_one(keys: Any) -> Any:
        def step(cache: Cache, x: Any) -> Any:
            now = cache.append(x[None], x[None])
            return now.cache, now.keys

        return jax.lax.scan(step, int8_cache((), features=4), keys)

    cache, seen = jax.jit(jax.vmap(of_one))(key)
    np.testing.assert_allclose(cache.key_scales.swapaxes(1, 2), scales_of(key), rtol=1e-6)
    np.testing.assert_array_equal(
        cache.keys.swapaxes(1, 2), np.round(np.asarray(key, float) / scales_of(key)[..., None])
    )
    assert seen.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(seen[:, -1], float), rounded(key), rtol=2**-8)


def test_no_gradient_of_what_is_kept() -> None:
    query, key, value = (drawn(1, 3, 2, 6) for _ in range(3))

    def loss(query: Any, key: Any, value: Any) -> Any:
        now = int8_cache((1,), 3).append(key, value)
        return (jattn.attention(query, now.keys, now.values) ** 2).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    exact = jax.grad(lambda q: (jattn.attention(q, rounded(key), rounded(value)) ** 2).sum())(query)
    np.testing.assert_allclose(gradients[0], exact, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(gradients[1:], np.zeros((2, 1, 3, 2, 6)))


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
def test_not_finite_is_nan_in_its_own_vector(hostile: float) -> None:
    x = drawn(1, 3, 2, 6).at[0, 1, 1, 2].set(hostile)
    now = int8_cache((1,), 3).append(x, x)
    np.testing.assert_array_equal(np.isnan(now.keys[0, :, :, 0]), [[False, False], [False, True], [False, False]])
    np.testing.assert_array_equal(now.keys[0, 0], rounded(x[0, 0]))


def test_unused_slots_are_harmless() -> None:
    x, empty = drawn(1, 2, 2, 6), int8_cache((1,), 4)
    hostile = [jnp.full_like(x, jnp.nan) for x in (empty.key_scales, empty.value_scales)]
    codes = [jnp.ones_like(x) for x in (empty.keys, empty.values)]
    full = Cache(*codes, empty.positions, empty.length, False, *hostile)
    outputs = [in_chunks(cache, [1, 1], x, x, x, mask=masks.causal())[0] for cache in (full, empty)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.core
@pytest.mark.parametrize("window", [3, None])
def test_a_layer_reads_what_was_kept(window: int | None) -> None:
    """The same in one chunk, where it attends among the new tokens, as token by token, from the cache; within 2 % of
    what it gives without one.
    """
    mask = masks.causal() if window is None else masks.causal() & masks.sliding_window(window - 1, 0)
    layer = MultiHeadAttention(4, 8, num_kv_heads=2, rotary=Rotary(50.0), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = drawn(2, 4, 8)

    @jax.jit
    def run(x: Any) -> Any:
        cache = new_cache(layer, (2,), 4, window=window, dtype=jnp.int8)
        once, outputs = layer(x, cache=cache, mask=mask), []
        for i in range(4):
            out = layer(x[:, i : i + 1], cache=cache, mask=mask)
            cache = out.cache
            outputs.append(out.output)
        return once, jnp.concatenate(outputs, axis=1), cache

    once, in_steps, cache = run(x)
    assert cache.ring == (window is not None)
    np.testing.assert_allclose(in_steps, once.output, rtol=1e-12, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), cache, once.cache)
    exact = layer(x, mask=mask)
    assert 1e-4 < float(jnp.abs(in_steps - exact).max() / jnp.abs(exact).max()) < 0.02


@pytest.mark.whole
def test_a_model_token_by_token() -> None:
    """Prompts with padding, then a token, beside both at once."""
    layers = MODELS["rotary, a window"]["layers"][:1]
    model = models.TextDecoder(23, features=8, layers=layers, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.eval()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 23, (2, 6)))
    real = jnp.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    run = jax.jit(lambda tokens, real: model(tokens, attention_mask=real, cache=model.new_cache(2, 6, dtype=jnp.int8)))
    begun = run(tokens[:, :5], real[:, :5])
    assert (begun.cache[0].keys.dtype, begun.cache[0].ring) == (jnp.int8, True)
    output, whole = model(tokens[:, 5:], cache=begun.cache).output[:, 0], run(tokens, real).output[:, 5]
    np.testing.assert_allclose(output, whole, rtol=1e-11, atol=1e-12)
