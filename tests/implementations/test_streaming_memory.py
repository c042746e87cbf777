"""Scratch memory of blocks of queries, by the compiler: linear in the sequence, a hundredth of the dense form's."""

import jax
import jax.numpy as jnp
import pytest

from jattn import attention, biases, masks
from jattn.masks import Mask


@pytest.mark.parametrize(
    ("mask", "dropout_rate"),
    [
        (None, 0.0),
        (masks.causal(), 0.1),
        (masks.sliding_window(256, 0), 0.0),
        (masks.lengths(jnp.array([900])), 0.0),
        (lambda t: masks.segments(jnp.arange(t) // 512), 0.0),
    ],
    ids=["full", "causal with dropout", "window", "lengths", "segments"],
)
def test_scratch_memory_is_linear(mask, dropout_rate):
    arguments = dict(dropout_rate=dropout_rate, dropout_rng=jax.random.key(0)) if dropout_rate else {}

    def scratch(t: int) -> int:
        given = [jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)] * 3
        here = mask(t) if callable(mask) and not isinstance(mask, Mask) else mask

        def f(query, key, value):
            return attention(query, key, value, mask=here, implementation="streaming", **arguments)

        def with_gradients(query, key, value):
            return jax.vjp(f, query, key, value)[1](query)

        return jax.jit(with_gradients).lower(*given).compile().memory_analysis().temp_size_in_bytes

    small, large = scratch(4096), scratch(16384)
    assert large < 8 * small  # 4 times where linear, 16 where quadratic
    assert large < 16384**2  # a boolean for each pair takes as much


@pytest.mark.parametrize("name", ["relative", "alibi"])
def test_scratch_memory_of_a_bias_by_position_is_linear(name):
    """Over 4,096 tokens and 8 heads at most 60 MiB forward and 150 with gradients, those of table or slopes among them.

    As an array the bias alone takes 512 MiB.
    """
    make, shape = {"relative": (biases.relative, (32, 8)), "alibi": (biases.alibi, (8,))}[name]

    def f(query, key, value, parameter):
        return attention(query, key, value, bias=make(parameter))

    def with_gradients(query, key, value, parameter):
        return jax.vjp(f, query, key, value, parameter)[1](query)

    for run, most in ((f, 60), (with_gradients, 150)):
        scratch = []
        for t in (2048, 4096):
            x, parameter = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, t, 8, 64), shape))
            compiled = jax.jit(run).lower(x, x, x, parameter).compile()
            scratch.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
        assert scratch[1] <= most
        assert scratch[1] < 2.5 * scratch[0]


def test_scratch_memory_is_a_hundredth_of_the_dense_forms():
    given = [jax.ShapeDtypeStruct((1, 8192, 8, 64), jnp.float32)] * 3

    def f(query, key, value):
        return attention(query, key, value, mask=masks.causal())

    def with_gradients(query, key, value):
        return jax.vjp(f, query, key, value)[1](query)

    matrix = 8 * 8192 * 8192 * 4
    for run, matrices in ((f, 2), (with_gradients, 4)):  # logits and weights; also their gradients
        scratch = jax.jit(run).lower(*given).compile().memory_analysis().temp_size_in_bytes
        assert scratch < matrices * matrix / 100
