"""Mistakes that are easily made get jattn's own error, rather than one from JAX's inside or a wrong result."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import (
    additive_attention,
    attention,
    attention_weights,
    dot_product_attention,
    masks,
    nadaraya_watson,
    scores,
)

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.every_case]

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6
QUERY, KEY, VALUE = jnp.ones((B, T, H, D)), jnp.ones((B, S, 2, D)), jnp.ones((B, S, 2, E))


def raises(*phrases: str):
    """A ValueError with these phrases, in this order."""
    return pytest.raises(ValueError, match=r"[\s\S]*".join(map(re.escape, phrases)))


@pytest.mark.parametrize("name", ["query_seq_lengths", "key_value_seq_lengths"])
@pytest.mark.parametrize(("lengths", "dtype"), [(jnp.array([3.5, 2.0]), "float32"), (jnp.array([True, False]), "bool")])
def test_lengths_that_are_not_integers(name, lengths, dtype):
    with raises(f"{name} must be integers", f"Got {dtype}"):
        dot_product_attention(QUERY, KEY, VALUE, **{name: lengths})


@pytest.mark.parametrize("window", [-1, (1, -1), (1, 2, 3), (1,), 1.0, True])
def test_local_window_size(window):
    with raises("local_window_size must be", "Got", str(window)):
        dot_product_attention(QUERY, KEY, VALUE, local_window_size=window)


@pytest.mark.parametrize("name", ["scale", "logits_soft_cap"])
def test_one_number_for_all_heads(name):
    """An array of it would be spread along the keys."""
    with raises(f"{name} must be one number", "Got shape (7,)"):
        attention(QUERY, KEY, VALUE, **{name: jnp.ones(S)})


def test_a_score_that_was_not_made():
    with raises("score must be", "Gaussian"):
        attention(QUERY, KEY, VALUE, score=scores.Gaussian)
    with raises("score must be", "'gaussian'"):
        attention(QUERY, KEY, VALUE, score="gaussian")


@pytest.mark.parametrize("shape", [(), (S,), (T, S), (B, T, H, S), (B, H, S, T)])
def test_a_score_of_another_shape(shape):
    with raises("score must return", "(2, 4, 5, 7)", f"Got shape {shape}"):
        attention(QUERY, KEY, VALUE, score=lambda query, key: jnp.zeros(shape))


def test_a_seed_for_an_rng():
    with raises("dropout_rng must be a jax.random.key", "Got 0"):
        attention(QUERY, KEY, VALUE, dropout_rate=0.1, dropout_rng=0)


@pytest.mark.parametrize("attend", ["additive_attention", "nadaraya_watson"])
def test_errors_show_the_shapes_that_were_given(attend):
    """Without the head axis that these functions add and take away again."""

    def call(query=QUERY[:, :, 0], key=KEY[:, :, 0], value=VALUE[:, :, 0], mask=None):
        if attend == "nadaraya_watson":
            return nadaraya_watson(query, key, value, mask=mask)
        return additive_attention(query, key, value, jnp.ones((D, 8)), jnp.ones((D, 8)), jnp.ones(8), mask=mask)

    with raises("value must have one entry for each key", "(2, 6, 6)", "(2, 7, 3)"):
        call(value=VALUE[:, 1:, 0])
    with raises("key must have query's batch axes (2,)", "Got shape (1, 7, 3)"):
        call(key=KEY[:1, :, 0])
    with raises("mask must broadcast to (2, 5, 7)", "Got shape (2, 5, 6)"):
        call(mask=jnp.ones((B, T, 6), bool))


def test_numbers_are_not_looked_at_while_tracing():
    """What is wrong is found out of jit; inside, the same call runs, whatever it computes."""
    jitted = jax.jit(lambda lengths: attention(QUERY, KEY, VALUE, mask=masks.lengths(lengths)))
    assert jitted(jnp.array([-1, 8])).shape == (B, T, H, E)
    jitted = jax.jit(lambda cap: attention(QUERY, KEY, VALUE, logits_soft_cap=cap))
    assert jitted(0.0).shape == (B, T, H, E)
    jitted = jax.jit(lambda h: attention(QUERY, KEY, VALUE, score=scores.Gaussian(bandwidth=h)))
    assert jitted(-1.0).shape == (B, T, H, E)


@pytest.mark.parametrize(
    ("name", "arguments", "right", "wrong"),
    [
        ("valid_lens", lambda x: {"mask": masks.lengths(x)}, jnp.array([3, 0]), jnp.array([-1, 7])),
        ("logits_soft_cap", lambda x: {"logits_soft_cap": x}, 2.0, 0.0),
        ("logits_soft_cap", lambda x: {"logits_soft_cap": x}, jnp.array(2.0), jnp.array(-1.0)),
        ("bandwidth", lambda x: {"score": scores.Gaussian(bandwidth=x)}, 2.0, -1.0),
        ("bandwidth", lambda x: {"score": scores.Gaussian(bandwidth=x)}, jnp.ones(D), jnp.zeros(D)),
    ],
)
def test_numbers_that_are_known_are_looked_at_inside_jit(name, arguments, right, wrong):
    def attend(query, known):
        return attention(query, KEY, VALUE, **arguments(known))

    assert jax.jit(lambda query: attend(query, right))(QUERY).shape == (B, T, H, E)
    with raises(f"{name} must"):
        jax.jit(lambda query: attend(query, wrong))(QUERY)


@pytest.mark.parametrize(
    ("call", "phrases"),
    [
        (lambda: attention(None, KEY, VALUE), ("query must be an array", "Got NoneType")),
        (lambda: attention(QUERY, KEY, VALUE, mask=masks.causal), ("mask must be", "call it")),
        (lambda: attention(QUERY, KEY, VALUE, mask="causal"), ("mask must be an array", "'causal'")),
        (lambda: masks.lengths(None), ("valid_lens must be an array", "Got NoneType")),
        (lambda: masks.causal() & None, ("mask must be an array", "Got NoneType")),
        (lambda: masks.causal() and masks.prefix(2), ("no truth value", "&, | and ~")),
        (lambda: attention(QUERY, KEY, VALUE, head_gates=1j * jnp.ones(H)), ("head_gates must be real", "complex64")),
        (lambda: attention(QUERY, KEY, VALUE, logits_soft_cap=jnp.inf), ("logits_soft_cap must be finite", "inf")),
        (lambda: attention(QUERY, KEY, VALUE, score=scores.DotProduct(jnp.ones(S))), ("scale must be one", "(7,)")),
        (lambda: attention(QUERY[..., :0], KEY[..., :0], VALUE), ("query must have at least one feature", "width 0")),
        (lambda: attention(QUERY, KEY, VALUE, dropout_rate="0.1"), ("dropout_rate must lie in", "'0.1'")),
        (
            lambda: attention(QUERY, KEY, VALUE, dropout_rate=0.1, dropout_rng=jax.random.split(jax.random.key(0))),
            ("dropout_rng must be a jax.random.key",),
        ),
        (
            lambda: nadaraya_watson(*(x[:, :, 0] for x in (QUERY, KEY, VALUE)), mask=jnp.ones(S, bool)),
            ("mask must have the axes t s", "(7,)"),
        ),
    ],
)
def test_one_clear_error(call, phrases):
    with raises(*phrases):
        call()


def test_weights_of_a_score_that_knows_positions():
    """A function of the caller's sees all heads and queries, whichever are asked for."""

    def distance(query, key):
        apart = jnp.abs(jnp.arange(T)[:, None] - jnp.arange(S)) * jnp.arange(1.0, H + 1)[:, None, None]
        return -jnp.broadcast_to(apart, (B, H, T, S))

    weights = attention(QUERY, KEY, VALUE, score=distance, return_weights=True)[1]
    chosen = attention_weights(QUERY, KEY, score=distance, heads=[1, 3], queries=[4, 0])
    np.testing.assert_array_equal(chosen, weights[:, [1, 3]][:, :, [4, 0]])
