"""Outside of `jax.jit` too, a call with arguments of the same shapes compiles nothing that it has compiled before."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jattn
from jattn import masks, models, scores

SEQUENCE, WIDE = jnp.ones((1, 400, 2, 8)), jnp.ones((1, 20, 32))
LENS = jnp.array([300])


def decoded() -> jax.Array:
    model = models.Seq2Seq(5, 5, rngs=nnx.Rngs(0))
    model.eval()
    return models.greedy(model, jnp.ones((1, 3), int), bos=1, eos=2, max_length=4).tokens


def attend(x: jax.Array, **options: Any) -> jax.Array:
    return jattn.attention(x, x, x, mask=masks.causal(), implementation="streaming", **options)


def gradient(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.grad(lambda x: f(x).sum())(x)


CALLS = {
    "dense": lambda: jattn.attention(SEQUENCE[:, :50], SEQUENCE[:, :50], SEQUENCE[:, :50], mask=masks.causal()),
    "streaming": lambda: jattn.attention(SEQUENCE, SEQUENCE, SEQUENCE, mask=masks.causal() & masks.lengths(LENS)),
    "weights": lambda: jattn.attention_weights(SEQUENCE, SEQUENCE, score=scores.Gaussian(), queries=3),
    "statistics": lambda: jattn.attention_statistics(SEQUENCE, SEQUENCE, mask=masks.causal()),
    "additive": lambda: jattn.additive_attention(WIDE, WIDE, WIDE, jnp.eye(32), jnp.eye(32), jnp.ones(32)),
    "kernel of many features": lambda: jattn.nadaraya_watson(WIDE[0], WIDE[0], WIDE[0]),
    "greedy": decoded,
    "gradient, streaming": lambda: gradient(attend, SEQUENCE),
    "gradient, Gaussian": lambda: gradient(functools.partial(attend, score=scores.Gaussian()), SEQUENCE),
    "gradient, statistics": lambda: gradient(lambda x: jattn.attention_statistics(x, x).entropy, SEQUENCE),
    "gradient, additive": lambda: gradient(
        lambda x: jattn.additive_attention(x, x, x, jnp.eye(32), jnp.eye(32), jnp.ones(32)), WIDE
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_once(call, caplog):
    call()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        call()
    compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert not compiled
    with jax.log_compiles(), caplog.at_level(logging.WARNING):  # the test sees what is compiled
        jax.jit(lambda x: x + 1)(1.0)
    assert any("Compiling" in record.getMessage() for record in caplog.records)
