"""Every score against plain float64 NumPy."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jattn import scores
from jattn.softmax import masked_softmax
from tests import oracle

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def _infinite_logits_are_meant() -> Iterator[None]:
    """A kernel of compact support scores minus infinity, where `debug_infs` stops, as it should."""
    with jax.debug_infs(False):
        yield


B, T, S, H, D = 2, 5, 7, 3, 4
KERNELS = {"gaussian": scores.Gaussian, "boxcar": scores.Boxcar, "epanechnikov": scores.Epanechnikov}
kernels = pytest.mark.parametrize("name", KERNELS)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def query_and_key(dtype=None, width: int = D) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(normal(0, B, T, H, width), dtype), jnp.asarray(normal(1, B, S, H, width), dtype)


def additive_parameters(dtype=None, key_width: int = D) -> dict[str, jax.Array]:
    shapes = {"w_query": (D, 6), "w_key": (key_width, 6), "w_value": (6,)}
    return {name: jnp.asarray(normal(len(name), *shape), dtype) for name, shape in shapes.items()}


def cases() -> dict[str, tuple[scores.Score, oracle.Score]]:
    """Pairs of a score and its oracle. A function, so that parameters are made with the dtypes of the test."""
    per_feature = jnp.array([0.5, 1.0, 2.0, 4.0])
    return {
        "dot product": (scores.DotProduct(), oracle.dot_product(D**-0.5)),
        "dot product, scale": (scores.DotProduct(0.25), oracle.dot_product(0.25)),
        "dot product, scale as an array": (scores.DotProduct(jnp.array(-3.0)), oracle.dot_product(-3.0)),
        "dot product, scale 0": (scores.DotProduct(0.0), oracle.dot_product(0.0)),
        "additive": (scores.Additive(**additive_parameters()), oracle.additive(**additive_parameters())),
        "gaussian": (scores.Gaussian(), oracle.kernel("gaussian")),
        "gaussian, bandwidth": (scores.Gaussian(bandwidth=0.5), oracle.kernel("gaussian", 0.5)),
        "gaussian, per feature": (scores.Gaussian(bandwidth=per_feature), oracle.kernel("gaussian", per_feature)),
        "gaussian, factor": (scores.Gaussian(factor=0.5), oracle.kernel("gaussian", 2.0)),
        "gaussian, negative factor": (scores.Gaussian(factor=-0.5), oracle.kernel("gaussian", 2.0)),
        "gaussian, factors": (scores.Gaussian(factor=per_feature), oracle.kernel("gaussian", 1 / per_feature)),
        "gaussian, factor 0": (scores.Gaussian(factor=0.0), oracle.constant),
        "boxcar": (scores.Boxcar(), oracle.kernel("boxcar")),
        "boxcar, bandwidth": (scores.Boxcar(bandwidth=2.5), oracle.kernel("boxcar", 2.5)),
        "boxcar, per feature": (scores.Boxcar(bandwidth=per_feature), oracle.kernel("boxcar", per_feature)),
        "boxcar, factor": (scores.Boxcar(factor=0.4), oracle.kernel("boxcar", 2.5)),
        "epanechnikov": (scores.Epanechnikov(), oracle.kernel("epanechnikov")),
        "epanechnikov, bandwidth": (scores.Epanechnikov(bandwidth=3.0), oracle.kernel("epanechnikov", 3.0)),
        "epanechnikov, per feature": (
            scores.Epanechnikov(bandwidth=2 * per_feature),
            oracle.kernel("epanechnikov", 2 * per_feature),
        ),
        "epanechnikov, factor": (scores.Epanechnikov(factor=0.4), oracle.kernel("epanechnikov", 2.5)),
        "constant": (scores.Constant(), oracle.constant),
    }


each = pytest.mark.parametrize("name", cases())


def assert_close_in_float32(name: str, actual: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    if name.startswith("epanechnikov"):  # near its edge the logarithm magnifies rounding: compare the kernel itself
        actual, expected = jnp.exp(actual), np.exp(expected)
    # atol for sums whose terms cancel.
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@each
@pytest.mark.usefixtures("x64")
@pytest.mark.every_case
def test_float64(name):
    score, reference = cases()[name]
    query, key = query_and_key()
    actual = score(query, key)
    assert actual.dtype == jnp.float64
    # atol for sums of D products that cancel.
    np.testing.assert_allclose(actual, oracle.logits(query, key, reference), rtol=1e-12, atol=1e-14)


@each
def test_float32(name):
    score, reference = cases()[name]
    query, key = query_and_key()
    actual = score(query, key)
    assert actual.dtype == jnp.float32
    assert_close_in_float32(name, actual, oracle.logits(query, key, reference), 2e-6)


@each
def test_bfloat16_features_give_float32_logits(name):
    score, reference = cases()[name]
    query, key = query_and_key(jnp.bfloat16)
    actual = score(query, key)
    assert actual.dtype == jnp.float32
    # As precise as float32: products of bfloat16 numbers are exact in it, and Additive's parameters are float32.
    assert_close_in_float32(name, actual, oracle.logits(query, key, reference), 2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_additive_in_half_precision_gives_float32_logits(dtype):
    parameters = additive_parameters(dtype)
    query, key = query_and_key(dtype)
    actual = scores.Additive(**parameters)(query, key)
    assert actual.dtype == jnp.float32
    # The two projections round to dtype, at magnitudes up to about 8; each of the 6 hidden units has a slope up to 1.
    atol = 6 * 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(actual, oracle.logits(query, key, oracle.additive(**parameters)), rtol=0, atol=atol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lead", [(), (2, 3)])
@each
def test_batch_axes(name, lead):
    score, reference = cases()[name]
    query, key = jnp.asarray(normal(0, *lead, T, H, D)), jnp.asarray(normal(1, *lead, S, H, D))
    expected = oracle.logits(query, key, reference)
    assert expected.shape == (*lead, H, T, S)
    np.testing.assert_allclose(score(query, key), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_widths_may_differ():
    query, key = jnp.asarray(normal(0, B, T, H, D)), jnp.asarray(normal(1, B, S, H, 3))
    parameters = additive_parameters(key_width=3)
    actual = scores.Additive(**parameters)(query, key)
    np.testing.assert_allclose(actual, oracle.logits(query, key, oracle.additive(**parameters)), rtol=1e-12)
    np.testing.assert_array_equal(scores.Constant()(query, key), np.zeros((B, H, T, S)), strict=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("width", [16, 37])
@pytest.mark.needs_jit
@pytest.mark.whole
def test_as_many_features_as_are_summed_in_chunks(width):
    query, key = query_and_key(width=width)
    weights = [jnp.asarray(normal(i, *shape)) for i, shape in enumerate([(width, width), (width, width), (width,)])]
    bandwidth = jnp.linspace(1.0, 2.0, width)
    for score, reference in (
        (scores.Additive(*weights), oracle.additive(*weights)),
        (scores.Gaussian(bandwidth), oracle.kernel("gaussian", bandwidth)),
    ):
        f = jax.jit(lambda score, query, key: score(query, key))
        np.testing.assert_allclose(f(score, query, key), oracle.logits(query, key, reference), rtol=1e-12, atol=1e-13)
        check_grads(f, (score, query, key), order=1, rtol=1e-6, atol=1e-6)


@kernels
def test_bandwidth_is_the_reciprocal_of_factor(name):
    query, key = query_and_key()
    bandwidth = jnp.array([0.5, 1.0, 2.0, 4.0])  # powers of two, whose reciprocals are exact
    by_bandwidth, by_factor = KERNELS[name](bandwidth=bandwidth), KERNELS[name](factor=1 / bandwidth)
    np.testing.assert_array_equal(by_bandwidth(query, key), by_factor(query, key))


def one_axis(*numbers: float) -> jax.Array:
    return jnp.array(numbers).reshape(-1, 1, 1)


def test_boxcar_includes_its_edge():
    key = one_axis(-2.0, 2.0, 2.0000003, -2.0000003, 0.0)
    logits = scores.Boxcar(bandwidth=2.0)(one_axis(0.0), key)
    np.testing.assert_array_equal(logits[0, 0], [0, 0, -np.inf, -np.inf, 0])


def test_epanechnikov_excludes_its_edge():
    logits = scores.Epanechnikov(bandwidth=2.0)(one_axis(0.0), one_axis(-2.0, 2.0, 1.9999999, 3.0, 0.0))
    np.testing.assert_array_equal(jnp.isneginf(logits[0, 0]), [True, True, False, True, False])


@pytest.mark.parametrize("name", ["boxcar", "epanechnikov"])
@pytest.mark.parametrize("parameter", ["bandwidth", "factor"])
def test_gradients_at_and_beyond_the_edge(name, parameter):
    """Finite everywhere, and zero for the keys out of reach."""
    query, key = one_axis(0.0, 50.0), one_axis(-2.0, 2.0, 1.9999999, 3.0, 0.0, 1.0)
    value = 2.0 if parameter == "bandwidth" else 0.5
    cotangent = jnp.asarray(normal(2, 1, 2, 6), jnp.float32)

    def loss(query, key, value):
        return jnp.vdot(masked_softmax(KERNELS[name](**{parameter: value})(query, key)), cotangent)

    gradients = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][1], 0)  # a query that reaches nothing
    np.testing.assert_array_equal(gradients[1][jnp.array([0, 1, 3])], 0 * gradients[1][:3])
    tangents = jax.jvp(loss, (query, key, value), jax.tree.map(jnp.ones_like, (query, key, value)))[1]
    assert jnp.isfinite(tangents)


def test_boxcar_is_flat():
    query, key = query_and_key()
    gradients = jax.grad(
        lambda query, key, bandwidth: jnp.sum(masked_softmax(scores.Boxcar(bandwidth)(query, key)) ** 2),
        argnums=(0, 1, 2),
    )(query, key, 2.0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["dot product, scale", "additive", "gaussian, per feature", "gaussian, factor"])
@pytest.mark.needs_jit
def test_gradients(name):
    """Of query, key and the score's own parameters, the score being a pytree, to second order."""
    score, _ = cases()[name]
    query, key = query_and_key()
    f = jax.jit(lambda score, query, key: score(query, key))
    # atol for second derivatives that are 0, which finite differences know to about 1e-6.
    check_grads(f, (score, query, key), order=2, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_factor_may_pass_through_zero():
    """Where the Gaussian's logits have a maximum in it."""
    query, key = query_and_key()
    total = lambda factor: jnp.sum(scores.Gaussian(factor=factor)(query, key))  # noqa: E731
    assert jax.grad(total)(0.0) == 0
    expected = 2 * oracle.logits(query, key, oracle.kernel("gaussian")).sum()
    np.testing.assert_allclose(jax.grad(jax.grad(total))(0.0), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["dot product, scale as an array", "additive", "gaussian, per feature", "boxcar, factor"]
)
def test_scores_are_pytrees(name):
    score, _ = cases()[name]
    query, key = query_and_key()
    jitted = jax.jit(lambda score, query, key: score(query, key))(score, query, key)
    np.testing.assert_allclose(jitted, score(query, key), rtol=2e-6, atol=2e-6)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), score)
    mapped = jax.vmap(lambda score: score(query, key))(several)
    np.testing.assert_allclose(mapped[0], score(query, key), rtol=2e-6, atol=2e-6)
    assert mapped.shape == (2, B, H, T, S)


def test_inside_shard_map():
    """Where arrays have a type that says over which axes of a mesh they vary."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    query, key = jnp.asarray(normal(0, B, T, H, 20), jnp.float32), jnp.asarray(normal(1, B, S, H, 20), jnp.float32)
    hidden = scores.Additive(jnp.eye(20), jnp.eye(20), jnp.ones(20))
    for score in (hidden, scores.Gaussian()):  # of more features than one chunk
        sharded = jax.shard_map(score, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"))
        np.testing.assert_allclose(jax.jit(sharded)(query, key), score(query, key), rtol=2e-6, atol=2e-6)


@kernels
@pytest.mark.parametrize("leaf", [-1.0, 0.0, "a name", None])
def test_a_tree_of_updates_may_hold_anything(name, leaf):
    """Gradients, optimiser states and in_axes have a score's structure, but not its contract."""
    structure = jax.tree.structure(KERNELS[name](bandwidth=1.0))
    assert jax.tree.unflatten(structure, [leaf]).bandwidth == leaf


def test_a_gradient_with_respect_to_a_score_may_be_negative():
    query, key = query_and_key()
    loss = lambda score: -jnp.sum(score(query, key))  # noqa: E731
    gradient = jax.grad(loss)(scores.Gaussian(bandwidth=2.0)).bandwidth
    expected = 2 * -oracle.logits(query, key, oracle.kernel("gaussian", 2.0)).sum() / -2.0
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert gradient < 0


@kernels
def test_far_from_zero(name):
    """Differences of numbers near 10,000 keep their digits: nothing is expanded into squares."""
    query = 1e4 + jnp.asarray(normal(0, B, T, H, D), jnp.float32)
    key = 1e4 + jnp.asarray(normal(1, B, S, H, D), jnp.float32)
    actual = KERNELS[name](bandwidth=3.0)(query, key)
    expected = oracle.logits(query, key, oracle.kernel(name, 3.0))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
