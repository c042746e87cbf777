"""Gradients of everything, in both modes; and of rows that may attend to nothing, where they are exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jattn import additive_attention, attention, biases, masks, nn, scores

B, T, S, H, K, D, E = 2, 5, 7, 4, 2, 3, 6
EMPTY = 3  # a query that may attend to nothing, in the first example only


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def arrays() -> dict[str, jax.Array]:
    """Everything that attention can be differentiated for."""
    return {
        "query": normal(0, B, T, H, D),
        "key": normal(1, B, S, K, D),
        "value": normal(2, B, S, K, E),
        "bias": normal(3, H, T, S),
        "head_gates": normal(4, B, H),
    }


def score(name: str) -> scores.Score:
    return {
        "dot product": scores.DotProduct(jnp.array(0.7)),
        "additive": scores.Additive(normal(5, D, 8), normal(6, D, 8), normal(7, 8)),
        "gaussian": scores.Gaussian(bandwidth=jnp.array([0.5, 1.0, 2.0])),
        "boxcar": scores.Boxcar(bandwidth=jnp.array(2.0)),
        "epanechnikov": scores.Epanechnikov(bandwidth=jnp.array(4.0)),
        "constant": scores.Constant(),
    }[name]


def rebuilt(score: scores.Score, leaves: list[jax.Array]) -> scores.Score:
    return jax.tree.unflatten(jax.tree.structure(score), leaves)


SCORES = ["dot product", "additive", "gaussian", "boxcar", "epanechnikov", "constant"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "soft_cap"), [*((name, None) for name in SCORES), ("dot product", 1.5)])
def test_against_finite_differences(name, soft_cap):
    """Output and weights, with a mask that empties a row, for all arrays and the score's parameters at once."""
    mask = masks.lengths(jnp.array([[1, 7, 4, 0, 2], [7, 7, 3, 5, 1]]))

    @jax.jit
    def f(arrays, leaves):
        return attention(
            **arrays, score=rebuilt(score(name), leaves), mask=mask, logits_soft_cap=soft_cap, return_weights=True
        )

    # Central differences with steps of 1e-5 are good for about 1e-9 here; atol is for gradients that are 0.
    check_grads(f, (arrays(), jax.tree.leaves(score(name))), order=1, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_second_order_against_finite_differences():
    given = (normal(0, 3, 2, D), normal(1, 4, 1, D), normal(2, 4, 1, E))
    f = jax.jit(lambda *given: attention(*given, mask=masks.causal(offset=-1)))
    check_grads(f, given, order=2, modes=["rev"], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.whole
def test_additive_attention_against_finite_differences():
    given = (normal(0, B, T, D), normal(1, B, S, 9), normal(2, B, S, E), normal(3, D, 8), normal(4, 9, 8), normal(5, 8))
    mask = masks.lengths(jnp.array([3, 0]))
    check_grads(jax.jit(lambda *given: additive_attention(*given, mask=mask)), given, order=1, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("t", "s"), [(1, 4), (3, 1), (1, 1)])
def test_short_sequences_against_finite_differences(t, s):
    given = (normal(0, t, 2, D), normal(1, s, 1, D), normal(2, s, 1, E), normal(3, 2, t, s))
    check_grads(
        jax.jit(lambda query, key, value, bias: attention(query, key, value, bias=bias, mask=masks.causal())),
        given,
        order=1,
        rtol=1e-6,
        atol=1e-7,
    )


def empty_by_mask(arrays: dict[str, jax.Array]):
    valid_lens = jnp.full((B, T), 6).at[0, EMPTY].set(0)
    return arrays, scores.DotProduct(jnp.array(0.7)), masks.lengths(valid_lens)


def empty_by_bias(arrays: dict[str, jax.Array]):
    bias = jnp.broadcast_to(arrays["bias"], (B, H, T, S))
    bias = bias.at[0, :, EMPTY].set(-jnp.inf).at[1, 1, 2, 4:].set(-jnp.inf)
    return arrays | {"bias": bias}, scores.DotProduct(jnp.array(0.7)), None


def empty_by_mask_and_bias(arrays: dict[str, jax.Array]):
    """Neither empties the row alone."""
    bias = jnp.broadcast_to(arrays["bias"], (B, H, T, S)).at[0, :, EMPTY, 2:].set(-jnp.inf)
    mask = jnp.ones((B, 1, T, S), bool).at[0, :, EMPTY, :2].set(False)
    return arrays | {"bias": bias}, scores.DotProduct(jnp.array(0.7)), masks.dense(mask)


def empty_by_additive_score(arrays: dict[str, jax.Array]):
    _, _, mask = empty_by_mask(arrays)
    return arrays, scores.Additive(normal(5, D, 8), normal(6, D, 8), normal(7, 8)), mask


def out_of_reach(kernel: type[scores.Boxcar] | type[scores.Epanechnikov]):
    def empty(arrays: dict[str, jax.Array]):
        query = (0.3 * arrays["query"]).at[0, EMPTY].add(100.0)
        return arrays | {"query": query, "key": 0.3 * arrays["key"]}, kernel(bandwidth=jnp.array(3.0)), None

    return empty


CAUSES = {
    "mask": empty_by_mask,
    "bias": empty_by_bias,
    "mask and bias": empty_by_mask_and_bias,
    "additive": empty_by_additive_score,
    "boxcar": out_of_reach(scores.Boxcar),
    "epanechnikov": out_of_reach(scores.Epanechnikov),
}
causes = pytest.mark.parametrize(
    ("cause", "soft_cap"), [*((cause, None) for cause in CAUSES), ("mask", 2.0), ("bias", 2.0), ("boxcar", 2.0)]
)


def rows(cause: str, soft_cap: float | None):
    """The function from everything to (output, weights), and everything."""
    given, score, mask = CAUSES[cause](arrays())

    @jax.jit
    def attend(given, leaves, caps):
        cap = caps[0] if caps else None
        return attention(**given, score=rebuilt(score, leaves), mask=mask, logits_soft_cap=cap, return_weights=True)

    return attend, (given, jax.tree.leaves(score), [] if soft_cap is None else [jnp.float32(soft_cap)])


def assert_zero(tree) -> None:
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))


def all_finite(tree) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@causes
def test_an_empty_row_is_zero(cause, soft_cap):
    """And so is its tangent, in forward mode."""
    attend, given = rows(cause, soft_cap)
    (output, weights), tangents = jax.jvp(attend, given, jax.tree.map(lambda x: jnp.full_like(x, 0.5), given))
    totals = np.ones((B, H, T))
    totals[0, :, EMPTY] = 0
    np.testing.assert_allclose(weights.sum(axis=-1), totals, rtol=5e-7)
    assert_zero((output[0, EMPTY], weights[0, :, EMPTY], tangents[0][0, EMPTY], tangents[1][0, :, EMPTY]))
    assert all_finite((output, weights, tangents))


@causes
def test_an_empty_row_has_no_gradient(cause, soft_cap):
    """Reverse mode: nothing flows from the empty row to anything, whatever arrives there."""
    attend, given = rows(cause, soft_cap)
    (output, weights), pull = jax.vjp(attend, *given)
    row = (jnp.zeros_like(output).at[0, EMPTY].set(3.0), jnp.zeros_like(weights).at[0, :, EMPTY].set(-2.0))
    assert_zero(pull(row))
    everywhere = pull((jnp.ones_like(output) + row[0], jnp.ones_like(weights) + row[1]))
    elsewhere = pull((jnp.where(row[0] == 0, 1.0, 0.0), jnp.where(row[1] == 0, 1.0, 0.0)))
    assert all_finite(everywhere)
    jax.tree.map(np.testing.assert_array_equal, everywhere, elsewhere)


def test_nothing_to_attend_to_at_all():
    def loss(arrays):
        return jnp.sum(attention(**arrays, mask=masks.lengths(0)) ** 2 + 3.0)

    value, gradients = jax.jit(jax.value_and_grad(loss))(arrays())
    assert value == 3.0 * B * T * H * E
    assert_zero(gradients)


def test_second_order_through_an_empty_row():
    given = arrays()

    def loss(query):
        return jnp.sum(attention(query, given["key"], given["value"], mask=masks.causal(offset=-1)) ** 2)

    direction = jnp.ones_like(given["query"])
    curvature = jax.jit(lambda query: jax.jvp(jax.grad(loss), (query,), (direction,))[1])(given["query"])
    assert_zero(curvature[:, 0])
    assert all_finite(curvature)
    assert jnp.abs(curvature[:, 2:]).max() > 0


@pytest.fixture
def taylor(monkeypatch):
    """``jax.experimental.jet``, which in JAX 0.10 to 0.12 fails with any custom derivative, that of relu too."""
    core = pytest.importorskip("jax._src.core")
    jet = pytest.importorskip("jax.experimental.jet")

    def process_custom_jvp_call(self, primitive, fun, jvp, tracers, /, **options):
        with core.set_current_trace(self):
            return fun.call_wrapped(*tracers)

    try:
        jet.jet(jax.nn.relu, (jnp.ones(3),), ((jnp.ones(3),),))
    except (AttributeError, jax.errors.UnexpectedTracerError):
        monkeypatch.setattr(jet.JetTrace, "process_custom_jvp_call", process_custom_jvp_call)
    return jet.jet


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: attention(x, x, x, mask=masks.causal(offset=-2), sinks=jnp.ones(H), logits_soft_cap=3.0),
        lambda x: attention(x, x, x, mask=masks.lengths(jnp.array([2, 0])), bias=biases.alibi(H)),
        nn.LayerNorm(D, rngs=nnx.Rngs(0)),
        nn.RMSNorm(D, rngs=nnx.Rngs(0)),
    ],
    ids=["rows without keys", "examples without keys", "LayerNorm", "RMSNorm"],
)
@pytest.mark.whole
def test_taylor_mode(taylor, f):
    """Of a curve with a velocity and an acceleration, against derivatives taken one after the other."""
    x, velocity, acceleration = (normal(seed, B, T, H, D) for seed in range(3))

    def along(t):
        return f(x + t * velocity + t**2 / 2 * acceleration)

    first = jax.jacfwd(along)
    output, series = taylor(f, (x,), ((velocity, acceleration),))
    np.testing.assert_allclose(output, f(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(series[0], first(0.0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(series[1], jax.jacfwd(first)(0.0), rtol=1e-10, atol=1e-10)
