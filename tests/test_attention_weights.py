"""The weights of chosen heads and queries are the dense weights' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention, attention_weights, masks, scores

pytestmark = pytest.mark.core

B, T, S, H, D, E = 2, 5, 7, 4, 3, 6


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


QUERY, KEY, VALUE = normal(0, B, T, H, D), normal(1, B, S, 2, D), normal(2, B, S, 2, E)
ARGUMENTS = {
    "plain": {},
    "static mask": {"mask": masks.causal(offset=-1)},
    "mask and bias": {"mask": masks.causal() & masks.lengths(jnp.array([3, 6])), "bias": normal(3, H, T, S)},
    "lengths per query": {"mask": masks.lengths(jnp.array([[1, 0, 3, 7, 2], [4, 4, 0, 1, 6]])), "scale": 2.0},
    "mask and bias per head": {"mask": normal(4, B, H, T, S) > 0, "bias": normal(5, B, H, 1, S)},
    "mask and bias per query": {"mask": normal(4, T, 1) > 0, "bias": normal(5, T, S), "logits_soft_cap": 1.5},
    "mask and bias per key": {"mask": normal(4, B, 1, 1, S) > 0, "bias": normal(5, S)},
    "kernel": {
        "score": scores.Epanechnikov(bandwidth=2.0),
        "mask": masks.segments(jnp.arange(5)[None], jnp.arange(7)[None] // 2),
    },
}
SELECTIONS = [
    (None, None),
    (0, 0),
    (3, -1),
    (-2, slice(1, 4)),
    (slice(None, None, 2), [4, 0, 0]),
    ([2, 1], slice(None, None, -1)),
    ((1,), range(2)),
    (np.array([3, -4]), np.int64(2)),
    (slice(2, 2), 1),
]


def chosen(selection, n: int) -> list[int]:
    """What NumPy would pick, with the axis always kept."""
    if selection is None:
        return list(range(n))
    return np.atleast_1d(np.arange(n)[selection if isinstance(selection, slice) else np.array(selection)]).tolist()


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.usefixtures("unchecked")  # the annotations name Python's types; NumPy's indices work as well
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_slices_of_the_dense_weights(arguments):
    dense = np.asarray(attention(QUERY, KEY, VALUE, **arguments, return_weights=True)[1])
    for heads, queries in SELECTIONS:
        actual = attention_weights(QUERY, KEY, **arguments, heads=heads, queries=queries)
        expected = dense[:, chosen(heads, H)][:, :, chosen(queries, T)]
        np.testing.assert_array_equal(actual, expected, strict=True, err_msg=f"heads={heads}, queries={queries}")


def test_one_query_of_a_sequence_of_one():
    dense = attention(QUERY[:, :1], KEY, VALUE, mask=masks.causal(), return_weights=True)[1]
    np.testing.assert_array_equal(attention_weights(QUERY[:, :1], KEY, mask=masks.causal(), queries=-1), dense)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_batch_axes(lead):
    query, key, value = normal(0, *lead, T, H, D), normal(1, *lead, S, 2, D), normal(2, *lead, S, 2, E)
    dense = attention(query, key, value, mask=masks.causal(), return_weights=True)[1]
    actual = attention_weights(query, key, mask=masks.causal(), heads=[3, 0], queries=slice(2, None))
    np.testing.assert_array_equal(actual, np.asarray(dense)[..., [3, 0], 2:, :], strict=True)


def test_jit_and_gradient():
    """Only the chosen rows are connected to the result."""

    def last(query, key):
        return attention_weights(query, key, mask=masks.causal(), heads=1, queries=-1)

    eager = last(QUERY, KEY)
    np.testing.assert_allclose(jax.jit(last)(QUERY, KEY), eager, rtol=5e-7)
    gradient = jax.grad(lambda query: jnp.sum(last(query, KEY) ** 2))(QUERY)
    others = np.ones((B, T, H, D), bool)
    others[:, -1, 1] = False
    np.testing.assert_array_equal(gradient[others], 0)
    assert jnp.abs(gradient[:, -1, 1]).min() > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_float32_at_least(dtype):
    assert attention_weights(QUERY.astype(dtype), KEY.astype(dtype)).dtype == jnp.float32


def test_weights_of_a_score_that_knows_positions():
    """A function of the caller's sees all heads and queries, whichever are asked for."""

    def distance(query, key):
        apart = abs(jnp.arange(T)[:, None] - jnp.arange(S)[None])[None] * (1 + jnp.arange(H))[:, None, None]
        return -jnp.broadcast_to(apart, (B, H, T, S)).astype(jnp.float32)

    weights = attention(QUERY, KEY, VALUE, score=distance, return_weights=True)[1]
    chosen = attention_weights(QUERY, KEY, score=distance, heads=[1, 3], queries=[4, 0])
    np.testing.assert_array_equal(chosen, weights[:, [1, 3]][:, :, [4, 0]])
