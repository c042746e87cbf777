"""JAX's strict settings, which careful people turn on: the core works under each, outside and inside of jit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import biases, masks, scores
from tests.settings import SETTINGS

B, T, S, H, K, D, E = 2, 10, 12, 4, 2, 8, 6


def numbers(seed: int, *shape: int, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def integers(*numbers: Any) -> jax.Array:
    return jnp.asarray(np.array(numbers, np.int32))


QUERY, KEY, VALUE = numbers(0, B, T, H, D), numbers(1, B, S, K, D), numbers(2, B, S, K, E)
QUERY_IDS, KEY_IDS = integers([0] * 4 + [1] * 6, [0] * 10), integers([0] * 5 + [1] * 7, [0] * 6 + [2] * 6)
LENS = integers(0, 7)  # the first example has empty rows
TABLE, SLOPES, SINKS = numbers(3, 8, H), numbers(4, H) ** 2, numbers(5, H)
DENSE = jnp.asarray(np.random.default_rng(6).integers(0, 2, (B, 1, T, S)).astype(bool))
OPTIONS: dict[str, dict[str, Any]] = {
    "causal and lengths": dict(mask=masks.causal() & masks.lengths(LENS)),
    "offsets and sinks": dict(mask=masks.causal(offset=LENS), sinks=SINKS),
    "prefix, window, not": dict(mask=masks.prefix(2) | ~masks.sliding_window(1, 0)),
    "segments": dict(mask=masks.segments(QUERY_IDS, KEY_IDS), bias=biases.relative(TABLE, max_distance=10)),
    "dense": dict(mask=DENSE, bias=numbers(7, T, S), logits_soft_cap=3.0),
    "dilated": dict(mask=masks.dilated_window(2, 0, 2), head_gates=SLOPES),
    "where": dict(
        mask=masks.where(lambda q, k: q >= k),
        bias=biases.where(lambda q, k, slopes: -slopes * abs(q - k).astype(slopes.dtype), slopes=("h", SLOPES)),
    ),
    "positions": dict(mask=masks.causal(), bias=biases.alibi(H), query_positions=QUERY_IDS, key_positions=KEY_IDS),
    "dropout": dict(dropout_rate=0.3, dropout_rng=jax.random.key(0)),
    "Gaussian": dict(score=scores.Gaussian(bandwidth=2.0), mask=masks.causal()),
    "Epanechnikov": dict(score=scores.Epanechnikov(factor=0.3)),
    "additive": dict(score=scores.Additive(numbers(8, D, 17), numbers(9, D, 17), numbers(10, 17))),
    "modified": dict(score=scores.modified(lambda x, q, k: jax.nn.silu(x)), mask=masks.neighbourhood((3, 4), 1)),
}
OTHERS = {
    "weights": lambda: jattn.attention_weights(QUERY, KEY, mask=masks.causal(), heads=[1, 2], queries=[0, -1]),
    "statistics": lambda: jattn.attention_statistics(QUERY, KEY, mask=masks.causal(), sinks=SINKS),
    "drop-in": lambda: jattn.dot_product_attention(
        QUERY, KEY, VALUE, is_causal=True, key_value_seq_lengths=LENS, query_seq_lengths=LENS
    ),
    "softmax": lambda: jattn.masked_softmax(numbers(11, B, T, S), masks.lengths(LENS)),
    "kernel regression": lambda: jattn.nadaraya_watson(QUERY[:, :, 0], KEY[:, :, 0], VALUE[:, :, 0]),
    "single head": lambda: jattn.additive_attention(
        QUERY[:, :, 0], KEY[:, :, 0], VALUE[:, :, 0], numbers(8, D, 17), numbers(9, D, 17), numbers(10, 17)
    ),
    "three dtypes": lambda: jattn.attention(QUERY.astype(jnp.bfloat16), KEY, VALUE.astype(jnp.float16)),
}


def with_gradients(implementation: str, options: dict[str, Any], query, key, value):
    output, pull = jax.vjp(lambda *x: jattn.attention(*x, **options, implementation=implementation), query, key, value)
    return output, *pull(jnp.ones_like(output))


# Compiling again or not at all takes long, so these see a few.
FEW = ("causal and lengths", "segments", "dense", "Gaussian")
SLOW = dict.fromkeys(("enable_checks", "check_tracer_leaks", "disable_jit"), FEW)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(name, setting, id=f"{name}, {called}")
        for called, setting in SETTINGS.items()
        for name in SLOW.get(called, OPTIONS)
    ],
)
def test_attention(name, setting):
    for implementation in ("dense", "streaming"):
        with setting():
            results = with_gradients(implementation, OPTIONS[name], QUERY, KEY, VALUE)
        expected = with_gradients("dense", OPTIONS[name], QUERY, KEY, VALUE)
        for x, y in zip(results, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_functions(name, setting):
    with setting():
        results = jax.tree.leaves(OTHERS[name]())
    for x, y in zip(results, jax.tree.leaves(OTHERS[name]()), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_the_dtype_of_three():
    """The widest of query and key, float32 at least, is computed in; the output has value's."""
    query, key, value = QUERY.astype(jnp.bfloat16), KEY, VALUE.astype(jnp.float16)
    output, weights = jattn.attention(query, key, value, return_weights=True)
    assert (output.dtype, weights.dtype) == (jnp.float16, jnp.float32)
    expected = jattn.attention(query.astype(jnp.float32), key, value.astype(jnp.float32))
    np.testing.assert_allclose(output, expected, atol=1e-3)
