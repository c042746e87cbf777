"""Functions and subclasses of the caller's: what is wrong with one is said in its own words, not in JAX's."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention, biases, masks, scores
from tests.errors import raises

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.every_case]

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6
QUERY, KEY, VALUE = jnp.ones((B, T, H, D)), jnp.ones((B, S, 2, D)), jnp.ones((B, S, 2, E))


class NoFormula(masks.Mask):
    """A mask that says nothing."""


class NoCall(scores.Score):
    """A score that says nothing."""


class NumPys(scores.Score):
    by_pair = True

    def __call__(self, query, key):
        return np.einsum("bthd,bshd->bhts", query, np.repeat(key, 2, axis=2))


class Two(scores.Score):
    def __call__(self, query, key):
        return query, key


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (lambda: dict(mask=masks.where(lambda q, k: np.less_equal(k, q))), ("f must be made of", "jax.numpy")),
        (lambda: dict(mask=masks.where(lambda q, k: np.eye(9, dtype=bool)[q, k])), ("f must be made of", "NumPy")),
        (lambda: dict(mask=masks.where(lambda q, k: k <= q if q > 2 else k > q)), ("f must be made of", "for an if")),
        (lambda: dict(mask=masks.where(lambda q, k: None)), ("f must return booleans", "Got NoneType")),
        (lambda: dict(mask=masks.where(lambda q, k: (q <= k, k <= q))), ("f must return booleans", "Got tuple")),
        (lambda: dict(bias=biases.where(lambda q, k: np.log1p(abs(q - k)))), ("f must be made of", "jax.numpy")),
        (lambda: dict(bias=biases.where(lambda q, k: 1.0 if q > k else 0.0)), ("f must be made of", "for an if")),
        (lambda: dict(bias=biases.where(lambda q, k: "far")), ("f must return floating-point numbers", "str: 'far'")),
        (lambda: dict(score=scores.modified(lambda x, q, k: np.tanh(x))), ("f must be made of", "jax.numpy")),
        (lambda: dict(score=scores.modified(lambda x, q, k: x if q > k else 0 * x)), ("f must be made of", "an if")),
        (lambda: dict(score=scores.modified(lambda x, q, k: None)), ("f must return floating-point logits", "None")),
        (lambda: dict(score=NumPys()), ("score must be made of", "jax.numpy")),
        (lambda: dict(score=NumPys(), implementation="streaming"), ("score must be made of", "jax.numpy")),
        (lambda: dict(score=Two()), ("score must return an array", "(2, 4, 5, 7)", "Got tuple")),
        (lambda: dict(score=lambda query, key: None), ("score must return an array", "Got NoneType")),
        (lambda: dict(mask=span(lambda first, last: None)), ("span must return a pair", "Got None")),
        (lambda: dict(mask=span(lambda first, last: first)), ("span must return a pair",)),
        (lambda: dict(mask=span(lambda first, last: ("a", last))), ("span must return two positions", "'a'")),
        (lambda: dict(mask=span(lambda first, last: (jnp.zeros(3), last))), ("span must return one position", "(3,)")),
        (lambda: dict(mask=span(lambda first, last: (np.maximum(first, 0), last))), ("span must be made of",)),
        (lambda: dict(mask=span(lambda first: first)), ("span must be a function of first, last", "(first)")),
        (lambda: dict(mask=span(3)), ("span must be a function of first, last", "Got 3")),
        (lambda: dict(mask=biases.alibi(H)), ("mask must be a mask", "a bias", "pass it as bias=")),
        (lambda: dict(mask=masks.causal() & biases.alibi(H)), ("mask must be a mask", "pass it as bias=")),
        (lambda: dict(mask=scores.DotProduct()), ("mask must be a mask", "pass it as score=")),
        (lambda: dict(bias=masks.causal()), ("bias must be a bias", "a mask", "pass it as mask=")),
        (lambda: dict(bias=biases.alibi(H) + masks.causal()), ("bias must be a bias", "pass it as mask=")),
        (lambda: dict(score=masks.causal()), ("score must be a score", "pass it as mask=")),
        (lambda: dict(score=scores.Gaussian(bandwidth=jnp.inf)), ("bandwidth must be finite", "inf")),
        (lambda: dict(return_weights="no"), ("return_weights must be True or False", "'no'")),
        (lambda: dict(mask=masks.neighbourhood((2, 3), 1.5)), ("radius must be", "1.5")),
    ],
)
def test_what_a_rule_or_score_of_ones_own_may_be(arguments, phrases):
    with raises(*phrases):
        attention(QUERY, KEY, VALUE, **arguments())


def span(of):
    return masks.where(lambda q, k: k <= q, span=of)


def test_what_a_subclass_must_define():
    with pytest.raises(NotImplementedError, match=r"NoFormula must define formula\(self, grid\)"):
        attention(QUERY, KEY, VALUE, mask=NoFormula())
    with pytest.raises(NotImplementedError, match=r"NoCall must define __call__\(self, query, key\)"):
        attention(QUERY, KEY, VALUE, score=NoCall())


@pytest.mark.parametrize("shape", [(), (S,), (T, S), (B, T, H, S), (B, H, S, T)])
def test_a_score_of_another_shape(shape):
    with raises("score must return", "(2, 4, 5, 7)", f"Got shape {shape}"):
        attention(QUERY, KEY, VALUE, score=lambda query, key: jnp.zeros(shape))
