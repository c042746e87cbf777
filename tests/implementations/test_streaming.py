"""Blocks of queries against the dense definition: the same numbers and gradients, in memory linear in the sequence."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jattn
from jattn import attention, attention_statistics, attention_weights, masks, scores
from jattn._engine import pairwise, plan
from jattn._engine.platform import ACCELERATOR, CPU
from jattn.implementations import choice, streaming
from jattn.masks import Mask
from tests import ingredients
from tests.implementations import like_dense
from tests.ingredients import Below, Checkered, booleans, integers, normal

B, T, S, H, K, D, E = 2, 300, 700, 4, 2, 8, 6


pytestmark = pytest.mark.usefixtures("x64")


class Beyond(scores.Score):
    """A user's own, which no key of query 3 is within reach of."""

    by_pair = True

    def __call__(self, query, key):
        x = scores.DotProduct()(query, key)
        return jnp.where(query[..., 0][..., None].swapaxes(-2, -3) == 9.0, -jnp.inf, x)


def query_key_value() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, T, H, D), normal(1, B, S, K, D), normal(2, B, S, K, E)


def named_inputs() -> dict[str, jax.Array]:
    return dict(zip(("query", "key", "value"), query_key_value(), strict=True))


def assert_same(**arguments) -> None:
    like_dense.assert_same("streaming", query_key_value(), **arguments)


@pytest.mark.parametrize("name", ingredients.each_mask(B, H, T, S))
def test_masks(name):
    assert_same(mask=ingredients.each_mask(B, H, T, S)[name])


@pytest.mark.parametrize("name", ingredients.each_bias(B, H, T, S))
def test_biases(name):
    bias = ingredients.each_bias(B, H, T, S)[name]
    assert_same(bias=bias, mask=masks.sliding_window(30, 5), logits_soft_cap=3.0)


def test_a_bias_in_several_loops():
    assert_same(bias=normal(10, H, T, S), mask=masks.causal())


@pytest.mark.parametrize("name", ingredients.each_score(D))
def test_scores(name):
    assert_same(score=ingredients.each_score(D)[name], mask=masks.causal(offset=400))


def test_additive_score(monkeypatch, traced_anew):
    """Of as many hidden units as make two chunks and a rest."""
    monkeypatch.setattr(pairwise, "_CHUNK", 3)
    score = scores.Additive(normal(11, D, 7), normal(12, D, 7), normal(13, 7))
    assert_same(score=score, mask=masks.causal(offset=400))


@pytest.mark.parametrize("score", [Beyond(), scores.DotProduct()], ids=lambda score: type(score).__name__)
def test_rows_that_a_score_or_a_bias_empties(score):
    query = query_key_value()[0].at[:, 3, :, 0].set(9.0)
    bias = None if isinstance(score, Beyond) else jnp.zeros((T, S)).at[3].set(-jnp.inf)
    assert_same(query=query, score=score, bias=bias)
    for implementation in ("dense", "streaming"):
        output = attention(query, *query_key_value()[1:], score=score, bias=bias, implementation=implementation)
        assert not output[:, 3].any()
        assert jnp.isfinite(output).all()


def test_dropout_and_gates():
    """The same rng drops the same weights, whatever computes them."""
    assert_same(
        dropout_rate=0.3, dropout_rng=jax.random.key(0), head_gates=normal(14, B, H), mask=masks.causal(offset=400)
    )
    assert_same(dropout_rate=0.3, dropout_rng=jax.random.key(0), mask=masks.lengths(jnp.array([650, 80])))


@pytest.mark.parametrize(
    ("batch", "t", "s", "heads"),
    [
        ((), 300, 300, (2, 2)),
        ((2, 3), 130, 257, (2, 1)),
        ((1,), 1, 5, (2, 2)),
        ((1,), 1025, 513, (1, 1)),
    ],
)
def test_lengths_of_any_axis(batch, t, s, heads):
    h, k = heads
    query, key, value = normal(0, *batch, t, h, D), normal(1, *batch, s, k, D), normal(2, *batch, s, k, E)
    assert_same(query=query, key=key, value=value, mask=masks.causal(offset=2))
    if batch:
        assert_same(query=query, key=key, value=value, mask=masks.lengths(integers(3, s + 1, *batch), per_query=False))


@pytest.mark.parametrize(("batch", "width"), [(0, E), (B, 0)])
def test_axes_without_anything(batch, width):
    query, key, value = jnp.ones((batch, T, H, D)), jnp.ones((batch, S, K, D)), jnp.ones((batch, S, K, width))
    assert attention(query, key, value).shape == (batch, T, H, width)
    assert attention(query, key, value, score=scores.Gaussian()).shape == (batch, T, H, width)
    assert jattn.attention_statistics(query, key).received.shape == (batch, H, S)


def test_a_mask_of_ones_own_with_data():
    own = Below(integers(15, S, B, H))
    given = query_key_value()
    allowed = np.broadcast_to(np.arange(S) < np.asarray(own.most)[:, :, None, None], (B, H, T, S))
    np.testing.assert_array_equal(own.as_array(T, S), allowed)
    expected = attention(*given, mask=jnp.asarray(allowed), implementation="dense")
    np.testing.assert_allclose(attention(*given, mask=own, implementation="streaming"), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float32, 2e-6)])
def test_narrower_dtypes(dtype, tolerance):
    query, key, value = (x.astype(dtype) for x in query_key_value())
    output = attention(query, key, value, mask=masks.causal(), implementation="streaming")
    assert output.dtype == dtype
    expected = attention(
        *(x.astype(jnp.float64) for x in (query, key, value)), mask=masks.causal(), implementation="dense"
    )
    np.testing.assert_allclose(output.astype(jnp.float64), expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("unchecked")  # check_grads calls with NumPy's arrays
def test_forward_mode_and_second_order():
    query, key, value = normal(0, 70, 2, 3), normal(1, 150, 1, 3), normal(2, 150, 1, 2)
    valid_lens = jnp.array(140)  # data, so that there are branches

    def f(query, key, value, implementation="streaming"):
        mask = masks.causal(offset=100) & masks.lengths(valid_lens)
        return attention(query, key, value, mask=mask, implementation=implementation)

    check_grads(jax.jit(f), (query, key, value), order=1, modes=("fwd", "rev"))

    def loss(scale, f):
        return jnp.sum(f(query * scale, key, value) ** 2)

    by_name = (functools.partial(f, implementation=name) for name in ("streaming", "dense"))
    hessians = [jax.jit(jax.hessian(functools.partial(loss, f=f)))(jnp.arange(1.0, 4.0)) for f in by_name]
    np.testing.assert_allclose(*hessians, rtol=1e-9)


def test_new_lengths_do_not_recompile():
    traces, given = [], query_key_value()

    @jax.jit
    def run(valid_lens):
        traces.append(None)
        return attention(*given, mask=masks.lengths(valid_lens), implementation="streaming")

    for valid_lens in ([1, 2], [700, 0]):
        expected = attention(*given, mask=masks.lengths(jnp.array(valid_lens)), implementation="dense")
        np.testing.assert_allclose(run(jnp.array(valid_lens)), expected, atol=1e-12)
    assert len(traces) == 1


def test_mapped():
    """Under vmap a branch is no longer skipped, but the numbers stay."""
    lens, given = jnp.array([650, 80]), query_key_value()
    mapped = jax.vmap(lambda q, k, v, n: attention(q, k, v, mask=masks.lengths(n), implementation="streaming"))
    expected = attention(*given, mask=masks.lengths(lens), implementation="dense")
    np.testing.assert_allclose(mapped(*given, lens), expected, atol=1e-12)


def test_choice():
    short, long = jnp.ones((1, 16, 2, 8)), jnp.ones((1, 1024, 2, 8))
    assert jattn.explain(short, short, short).implementation == "dense"
    assert jattn.explain(long, long, long).implementation == "streaming"
    assert jattn.explain(long, long, long, return_weights=True).implementation == "dense"
    own = jattn.explain(long, long, long, score=lambda q, k: jnp.einsum("...thd,...shd->...hts", q, k))
    assert own.implementation == "dense"
    assert "positions" in own.refused["streaming"]
    assert "NVIDIA" in own.refused["cudnn"]


class PerHead(scores.DotProduct):
    """A user's own that does not say that a part of its logits can be computed by itself."""

    temperature: jax.Array | None = None
    power: int = 1

    def __call__(self, query, key):
        assert isinstance(self.power, int)
        return super().__call__(query, key) ** self.power * self.temperature[:, None, None]


def test_a_score_that_knows_more_than_a_pair_sees_all():
    given, score = named_inputs(), PerHead(temperature=jnp.arange(1.0, H + 1), power=2)
    assert not score.by_pair
    assert not score.reaches_all
    assert "by_pair" in jattn.explain(**given, score=score).refused["streaming"]
    output = attention(**given, score=score)

    def function(query, key):
        return score(query, key)

    np.testing.assert_allclose(output, attention(**given, score=function), atol=1e-12)  # the one is compiled
    query, key = given["query"], given["key"]
    weights = jattn.attention_weights(query, key, score=score, heads=[3, 1], queries=[299])
    np.testing.assert_allclose(weights, jattn.attention_weights(query, key, score=score)[:, [3, 1], 299:], atol=1e-12)
    statistics = jattn.attention_statistics(query, key, score=score)
    expected = jattn.attention_statistics(query, key, score=function)
    np.testing.assert_allclose(statistics.entropy, expected.entropy, atol=1e-12)


class Wrong(Mask):
    """A user's own that is no mask."""

    what: str

    def formula(self, grid):
        return {"axes": jnp.ones((3, 1, 1, S), bool), "numbers": grid.query + grid.key}[self.what]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("implementation", ["dense", "streaming"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Below(jnp.ones((B + 1, H), int)), r"most must broadcast to \(2, 4\), the axes \*b h. Got shape \(3, 4\)"),
        (Below(jnp.ones((B, 3), int)), r"most must broadcast to \(2, 4\), the axes \*b h. Got shape \(2, 3\)"),
        (
            Wrong("axes"),
            r"formula of Wrong must return booleans that broadcast to \(2, 4, 300, 700\).*bool, shape \(3, 1, 1, 700\)",
        ),
        (Wrong("numbers"), r"formula of Wrong must return booleans. Got int64. Compare it"),
        (Checkered() & ~Wrong("numbers"), r"formula of Wrong must return booleans"),
    ],
)
def test_a_mask_of_ones_own_has_the_axes(mask, message, implementation):
    with pytest.raises(ValueError, match=message):
        attention(**named_inputs(), mask=mask, implementation=implementation)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(implementation="streaming", return_weights=True),
            "'streaming': return_weights=True asks for the whole matrix",
        ),
        (dict(implementation="streaming", score=lambda q, k: q), "score"),
        (dict(implementation="cudnn"), "'cudnn': it needs an NVIDIA GPU"),
        (dict(implementation="flash"), "implementation must be"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention(**named_inputs() | arguments)


@pytest.mark.parametrize("axis", ["batch", "queries", "keys", "width of value"])
def test_an_axis_of_length_0(axis):
    """There is nothing to cut into blocks, and the result is that of the matrix: empty, or zeros without keys."""
    query, key, value = query_key_value()
    given = {
        "batch": (query[:0], key[:0], value[:0]),
        "queries": (query[:, :0], key, value),
        "keys": (query, key[:, :0], value[:, :0]),
        "width of value": (query, key, value[..., :0]),
    }[axis]
    streamed, dense = (attention(*given, mask=masks.causal(), implementation=name) for name in ("streaming", "dense"))
    np.testing.assert_array_equal(streamed, dense)
    assert not streamed.any()
    statistics, weights = (f(*given[:2], mask=masks.causal()) for f in (attention_statistics, attention_weights))
    np.testing.assert_allclose(statistics.largest, weights.max(-1, initial=0), atol=1e-12)
    assert statistics.received.shape == (given[0].shape[0], H, given[1].shape[1])


@pytest.fixture
def traced_anew():
    """Nothing compiled before the test, or in it, is used again: JAX does not know of what it patches."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("heads", "taken"), [(0.5, (1, 1)), (3, (1, 2)), (9, (2, 4))])
@pytest.mark.whole
def test_a_few_heads_at_a_time(monkeypatch, traced_anew, heads, taken):
    """As where copies of all would take much memory."""
    query, key, value = normal(0, 2, 2, 20, 8, D), normal(1, 2, 2, 30, 4, D), normal(2, 2, 2, 30, 4, E)
    size = query.size + key.size + value.size
    monkeypatch.setattr(streaming, "_COPIED_AT_ONCE", 0)
    monkeypatch.setattr(streaming, "_COPIED_IN_PARTS", int(heads * size / 16))
    arrays = [x.reshape(4, *x.shape[2:]) for x in (query, key, value)]
    assert streaming._together(4, 4, arrays, CPU) == taken
    given = dict(query=query, key=key, value=value)
    lengths = masks.lengths(jnp.array([[0, 20], [7, 30]]), per_query=False)
    assert_same(**given, bias=normal(10, 2, 2, 8, 20, 30), mask=lengths)
    assert_same(**given, bias=normal(10, 8, 20, 30), mask=booleans(6, 2, 1, 8, 20, 30))
    assert_same(**given, bias=normal(10, 2, 2, 1, 1, 30), dropout_rate=0.3, dropout_rng=jax.random.key(0))
    score = scores.Additive(normal(11, D, 5), normal(12, D, 5), normal(13, 5))
    assert_same(**given, score=score, mask=lengths)


def attention_logits(mask):
    return jattn.bind(*query_key_value()[:2], mask=mask).call.logits


@pytest.fixture
def on_accelerator(monkeypatch, traced_anew):
    """What is compiled is what an accelerator would get."""
    monkeypatch.setattr(choice, "where_lowered", lambda run, arguments, alike, **_: run(ACCELERATOR, arguments))


@pytest.mark.whole
def test_a_loop_that_chooses_among_known_widths(monkeypatch, traced_anew):
    """As over large blocks."""
    monkeypatch.setattr(plan, "_LOGITS_APART", 0)
    causal = attention_logits(masks.causal(offset=3))
    (group,) = plan.plan(T, H // K, S, functools.partial(causal.key_range, s=S), CPU)
    assert len(group.widths) > 1
    assert_same(mask=masks.causal(offset=3), bias=normal(10, H, T, S))
    assert_same(mask=masks.sliding_window(30, 5), dropout_rate=0.3, dropout_rng=jax.random.key(0))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about processors")
@pytest.mark.parametrize("mask", [masks.causal(), masks.segments(jnp.arange(T)[None] // 100)], ids=["known", "data"])
def test_no_masked_store(mask):
    """As a choice may be between what a kernel has loaded and a constant; not so between a sum and a constant."""

    def loss(query, key, value):
        return jnp.sum(attention(query, key, value, mask=mask, implementation="streaming"))

    given = [normal(seed, 1, T, 1, D).astype(jnp.float32) for seed in range(3)]
    for f in (loss, jax.grad(loss, argnums=(0, 1, 2))):
        text = jax.jit(f).lower(*given).compile().as_text()
        chosen = re.findall(r"= f32\[\d+,\d+\]\S* select\(%\S+, %(\S+), %\S+\)", text)
        assert any(name.startswith("add") for name in chosen)
        assert not any(name.startswith("param") for name in chosen)


def test_a_masked_key_may_be_anything():
    """Also one that other queries attend to."""
    query, key, value = query_key_value()
    given = query, key[:, :T].at[:, T - 1].set(jnp.nan), value[:, :T]
    output = attention(*given, mask=masks.causal(), implementation="streaming")
    expected = attention(query, key[:, :T], value[:, :T], mask=masks.causal(), implementation="dense")
    np.testing.assert_allclose(output[:, :-1], expected[:, :-1], atol=1e-12)
    assert jnp.isnan(output[:, -1]).all()


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.whole
def test_all_heads_at_once():
    """As on an accelerator, where one head after the other would leave most of it idle."""
    assert_same(mask=masks.causal(), bias=normal(10, H, T, S))
    assert_same(
        mask=masks.causal() & masks.lengths(jnp.array([650, 80])), dropout_rate=0.3, dropout_rng=jax.random.key(0)
    )


@pytest.mark.usefixtures("on_accelerator")
def test_a_choice_of_width_stays_one_under_vmap():
    """On an accelerator, where it is made for all examples at once: a `select` would compute every width."""

    def f(query, key, value, valid_lens):
        return attention(query, key, value, mask=masks.lengths(valid_lens), implementation="streaming")

    lens, given = jnp.array([650, 80]), query_key_value()
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(f))(*given, lens))
    expected = attention(*given, mask=masks.lengths(lens), implementation="dense")
    np.testing.assert_allclose(jax.vmap(f)(*given, lens), expected, atol=1e-12)
