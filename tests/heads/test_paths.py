"""Attention rollout against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import heads
from tests.errors import raises

WEIGHTS = jax.nn.softmax(jax.random.normal(jax.random.key(0), (3, 2, 4, 5, 5)), axis=-1)  # of 3 layers, 2 examples


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.2])
def test_against_a_loop(residual: float) -> None:
    expected = np.zeros((2, 5, 5))
    for b in range(2):
        shares = np.eye(5)
        for layer in np.asarray(WEIGHTS, np.float64)[:, b]:
            new = np.zeros((5, 5))
            for query in range(5):
                new[query] = residual * shares[query]
                for key in range(5):
                    new[query] += (1 - residual) * layer[:, query, key].mean() * shares[key]
            shares = new
        expected[b] = shares
    found = heads.attention_rollout(list(WEIGHTS), residual=residual)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    with raises("weights must have at least one layer. Got none."):
        heads.attention_rollout([])
    with raises("weights must be of self-attention", "Got shape (2, 4, 5, 6) of layer 0"):
        heads.attention_rollout([jnp.ones((2, 4, 5, 6))])
    with raises("weights must be of self-attention", "Got shape (1, 4, 5, 5) of layer 1"):
        heads.attention_rollout([WEIGHTS[0], WEIGHTS[0][:1]])
    with raises("residual must", "Got 2"):
        heads.attention_rollout(list(WEIGHTS), residual=2)
