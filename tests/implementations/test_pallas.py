"""The kernels, by Pallas' interpreter, against the dense definition: the same numbers and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention, biases, masks, scores
from jattn.bound import bind
from jattn.implementations import chips, pallas
from tests import ingredients
from tests.implementations import like_dense
from tests.ingredients import normal

B, T, S, H, K, D, E = 2, 40, 200, 4, 2, 8, 6

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True, scope="module", params=["tpu", "cuda"])
def several_blocks(request):
    """The kernels for TPUs, and those for GPUs: three blocks of queries, the last of them cut off, and two of keys, or
    four. JAX does not know of what is patched."""
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        patch.setattr(pallas, "INTERPRETED", request.param)
        patch.setattr(pallas, "_ROWS", 16)
        patch.setattr(pallas, "_WIDTH", 128)
        patch.setattr(chips, "ROWS_OF_GPU", 16)
        patch.setattr(chips, "WIDTH_OF_GPU", 64)
        yield
    jax.clear_caches()


def query_key_value() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, T, H, D), normal(1, B, S, K, D), normal(2, B, S, K, E)


def assert_same(**arguments) -> None:
    like_dense.assert_same("pallas", query_key_value(), **arguments)


@pytest.mark.parametrize("name", ingredients.each_mask(B, H, T, S))
def test_masks(name):
    assert_same(mask=ingredients.each_mask(B, H, T, S)[name])


@pytest.mark.parametrize("name", ingredients.each_bias(B, H, T, S))
def test_biases(name):
    bias = ingredients.each_bias(B, H, T, S)[name]
    assert_same(bias=bias, mask=masks.sliding_window(130, 5), logits_soft_cap=3.0)


@pytest.mark.parametrize("name", ingredients.each_score(D))
def test_scores(name):
    score, mask = ingredients.each_score(D)[name], masks.causal(offset=100)
    if name not in ("boxcar", "Epanechnikov", "constant", "additive", "own"):
        assert_same(score=score, mask=mask)
    else:
        with pytest.raises(ValueError, match="'pallas': its score is the dot product, or one that is"):
            attention(*query_key_value(), score=score, mask=mask, implementation="pallas")


def test_all_at_once():
    """The same rng drops the same weights, whatever computes them."""
    arguments = dict(dropout_rate=0.3, dropout_rng=jax.random.key(0), sinks=normal(15, H))
    assert_same(head_gates=normal(14, B, H), mask=masks.causal(offset=100), **arguments)
    assert_same(mask=masks.lengths(jnp.array([190, 80])), broadcast_dropout=True, **arguments)


def test_a_bias_of_pairs_beside_a_mask_with_data():
    assert_same(bias=normal(16, T, S), mask=masks.lengths(jnp.array([190, 80])))


@pytest.mark.parametrize("shape", [(H, T, S), (B, 1, T, S), (B, H, T, S)])
def test_gradients_of_pairs_are_summed_over_what_shares_them(shape):
    assert_same(bias=normal(16, *shape), mask=masks.causal(offset=90))


@pytest.mark.parametrize(
    "bias",
    [
        lambda q, k, a: a[0] * jnp.log(T - q) + 0.0 * k,
        lambda q, k, a: a[0] * jnp.log(S - k) + 0.0 * q,
        lambda q, k, a: a[0] * jnp.sqrt(1.0 + abs(q - k)) + a[1],
    ],
)
def test_formulas_see_no_position_beyond_the_last(bias):
    """Of which they could make no number: blocks are cut off there."""
    assert_same(bias=biases.where(bias, a=jnp.array([0.5, 0.3])))


def test_ranges_of_each_example_without_a_program():
    mask, given = masks.lengths(jnp.array([190, 30])), query_key_value()
    with jax.disable_jit():
        found = attention(*given, mask=mask, implementation="pallas")
    np.testing.assert_allclose(found, attention(*given, mask=mask, implementation="dense"), atol=1e-12)


class Several(biases.Bias):
    """A user's own, which holds others in a tuple."""

    parts: tuple

    def formula(self, grid):
        return sum(part.formula(grid) for part in self.parts)


def test_rules_within_a_rule():
    assert_same(bias=Several((biases.relative(normal(28, 8, H), max_distance=20), biases.alibi(normal(26, H) ** 2))))


class Features(biases.Bias):
    """A user's own: an array with several numbers for each pair."""

    a: jax.Array = biases.over("tsc")

    def formula(self, grid):
        return jnp.sum(self.a, axis=-1)


def test_several_numbers_for_each_pair():
    assert_same(bias=Features(normal(29, T, S, 3)), mask=masks.causal(offset=100))


def test_a_mask_that_nothing_is_in_reach_of():
    class Nobody(masks.Mask):
        def formula(self, grid):
            return (grid.key < 0) & (grid.query < 0)

        def reachable(self, grid):
            return False

    for implementation in ("pallas", "streaming"):
        assert not attention(*query_key_value(), mask=Nobody(), implementation=implementation).any()


@pytest.mark.parametrize("dtypes", [("float32", "float32", "float64"), ("float32", "float32", "float32")])
def test_logits_wider_than_features(dtypes):
    query, key, value = (x.astype(dtype) for x, dtype in zip(query_key_value(), dtypes, strict=True))

    def f(query, implementation):
        return attention(query, key, value, bias=normal(16, T, S), implementation=implementation)

    (found, pull), (expected, pull_expected) = (
        jax.vjp(functools.partial(f, implementation=name), query) for name in ("pallas", "dense")
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(pull(found)[0], pull_expected(expected)[0], atol=2e-5)


def test_a_gaussian_in_bfloat16():
    narrow = [x.astype(jnp.bfloat16) for x in query_key_value()]
    found, expected = (attention(*narrow, score=scores.Gaussian(), implementation=x) for x in ("pallas", "dense"))
    np.testing.assert_allclose(found.astype(jnp.float64), expected.astype(jnp.float64), atol=2e-2)


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        found, expected = (
            attention(*query_key_value(), mask=masks.causal(offset=2), implementation=x) for x in ("pallas", "dense")
        )
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("table", [np.ones(300), 0.3], ids=["array", "number"])
def test_a_formula_that_holds_an_array(table):
    held = jnp.asarray(table)
    bias = biases.where(lambda q, k: held.reshape(-1)[0] * (q - k))
    with pytest.raises(ValueError, match="Got 'pallas': a formula holds an array; give it by its name"):
        attention(*query_key_value(), bias=bias, implementation="pallas")


def test_lengths_of_any_axis():
    query, key, value = normal(0, T, 1, D), normal(1, 5, 1, D), normal(2, 5, 1, E)
    assert_same(query=query, key=key, value=value, mask=masks.causal(offset=2))


def test_log_sum_exp_has_a_gradient():
    query, key, value = query_key_value()

    def f(query, implementation):
        arguments = dict(mask=masks.causal(offset=3), sinks=normal(15, H))
        return bind(query, key, value, **arguments).result(implementation, return_log_sum_exp=True).log_sum_exp

    (found, pull), (expected, pull_expected) = (
        jax.vjp(functools.partial(f, implementation=name), query) for name in ("pallas", "dense")
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(pull(found)[0], pull_expected(expected)[0], atol=1e-12)


def test_heads_side_by_side():
    """Of whole vectors of features, which are not copied heads first."""
    query, key, value = normal(0, B, T, H, 128), normal(1, B, S, K, 128), normal(2, B, S, K, 128)
    arguments = dict(dropout_rate=0.3, dropout_rng=jax.random.key(0), bias=biases.alibi(normal(26, H) ** 2))
    assert_same(query=query, key=key, value=value, mask=masks.causal(offset=100), **arguments)


@pytest.mark.usefixtures("unchecked")  # check_grads calls with NumPy's arrays
def test_second_order():
    query, key, value = normal(0, 20, 2, 3), normal(1, 130, 1, 3), normal(2, 130, 1, 2)

    def loss(scale, implementation):
        mask = masks.causal(offset=100) & masks.lengths(jnp.array(120))
        return jnp.sum(attention(query * scale, key, value, mask=mask, implementation=implementation) ** 2)

    given = jnp.arange(1.0, 4.0)
    found, expected = (jax.jit(jax.hessian(lambda x, name=name: loss(x, name)))(given) for name in ("pallas", "dense"))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_mapped():
    lens, given = jnp.array([190, 80]), query_key_value()
    mapped = jax.vmap(lambda q, k, v, n: attention(q, k, v, mask=masks.lengths(n), implementation="pallas"))
    expected = attention(*given, mask=masks.lengths(lens), implementation="dense")
    np.testing.assert_allclose(mapped(*given, lens), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float32, 2e-6)])
def test_narrower_dtypes(dtype, tolerance):
    narrow = [x.astype(dtype) for x in query_key_value()]
    output = attention(*narrow, mask=masks.causal(), implementation="pallas")
    assert output.dtype == dtype
    expected = attention(*(x.astype(jnp.float64) for x in narrow), mask=masks.causal(), implementation="dense")
    np.testing.assert_allclose(output.astype(jnp.float64), expected, rtol=0, atol=tolerance)


def test_scores_that_are_not_by_pair_are_refused():
    """Also one that is a Gaussian no more."""

    class Negative(scores.Gaussian):
        def __call__(self, query, key):
            return -super().__call__(query, key)

    for score in (Negative(1.0), lambda query, key: jnp.ones((B, H, T, S))):
        with pytest.raises(ValueError, match="'pallas': a score that is not one of"):
            attention(*query_key_value(), score=score, implementation="pallas")


def test_its_interpreter_knows_of_no_mesh():
    given = query_key_value()
    with jax.set_mesh(jax.make_mesh((1,), ("data",))), pytest.raises(ValueError, match="'pallas': its interpreter"):
        attention(*given, implementation="pallas")
