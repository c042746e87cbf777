"""The kernels, by Pallas' interpreter, against the dense definition: the same numbers and gradients."""

import jax
import jax.numpy as jnp
import pytest

from jattn import masks
from jattn.implementations import pallas
from tests import ingredients
from tests.implementations import like_dense
from tests.ingredients import normal

B, T, S, H, K, D, E = 2, 40, 200, 4, 2, 8, 6

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True, scope="module")
def several_blocks():
    """Three blocks of queries, the last of them cut off, and two of keys; JAX does not know of what is patched."""
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        patch.setattr(pallas, "_ROWS", 16)
        patch.setattr(pallas, "_WIDTH", 128)
        yield
    jax.clear_caches()


def query_key_value() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, T, H, D), normal(1, B, S, K, D), normal(2, B, S, K, E)


def assert_same(**arguments) -> None:
    given = dict(zip(("query", "key", "value"), query_key_value(), strict=True)) | arguments
    like_dense.assert_same("pallas", **given)


@pytest.mark.parametrize("name", ingredients.each_mask(B, H, T, S))
def test_masks(name):
    assert_same(mask=ingredients.each_mask(B, H, T, S)[name])


@pytest.mark.parametrize("name", ingredients.each_bias(B, H, T, S))
def test_biases(name):
    bias = ingredients.each_bias(B, H, T, S)[name]
    assert_same(bias=bias, mask=masks.sliding_window(130, 5), logits_soft_cap=3.0)


@pytest.mark.parametrize("name", ingredients.each_score(D))
def test_scores(name):
    assert_same(score=ingredients.each_score(D)[name], mask=masks.causal(offset=100))


def test_all_at_once():
    """The same rng drops the same weights, whatever computes them."""
    arguments = dict(dropout_rate=0.3, dropout_rng=jax.random.key(0), sinks=normal(15, H))
    assert_same(head_gates=normal(14, B, H), mask=masks.causal(offset=100), **arguments)
    assert_same(mask=masks.lengths(jnp.array([190, 80])), broadcast_dropout=True, **arguments)
