"""Rules over positions, and what they are bound into: equality, meshes, positions, keys that nobody attends to."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jattn
from jattn import biases, masks, scores

B, T, S, H, K, D, E = 2, 40, 50, 4, 2, 8, 6

pytestmark = pytest.mark.usefixtures("x64")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def query_key_value() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, T, H, D), normal(1, B, S, K, D), normal(2, B, S, K, E)


def square(x: jax.Array) -> jax.Array:
    return x**2


@pytest.mark.parametrize(
    "make",
    [
        lambda: biases.alibi(6),
        lambda: biases.relative(jnp.ones((8, 4)), bidirectional=False),
        lambda: biases.alibi(4) + jnp.ones((3, 5)),
        lambda: biases.where(square_of_distance, factor=("h", jnp.arange(4.0))),
        lambda: scores.Gaussian(bandwidth=jnp.arange(1.0, 4.0)),
        lambda: scores.modified(square_of_distance, scores.DotProduct(2.0)),
        lambda: masks.where(square_of_distance, span=square_of_distance),
    ],
)
def test_alike_values_are_equal(make):
    assert make() == make()
    assert hash(make()) == hash(make())
    others = [biases.alibi(5), biases.relative(jnp.ones((8, 4))), scores.Gaussian(bandwidth=2.0), masks.causal()]
    assert all(make() != other for other in others)


def square_of_distance(*positions, **rest):
    *_, query, key = positions
    return (query - key) ** 2


def causal(q, k):
    return q >= k


def with_n(q, k, n):
    return n * (q - k)


def test_a_value_cannot_be_changed():
    with pytest.raises(AttributeError, match="scale of a DotProduct can't be changed"):
        scores.DotProduct(2.0).scale = 3.0
    with pytest.raises(AttributeError, match="offset of a Causal can't be deleted"):
        del masks.causal().offset


class Activated(scores.Score):
    """A user's own, with a jitted function for a field."""

    by_pair = True
    activation: Callable[[jax.Array], jax.Array]
    factor: jax.Array

    def __call__(self, query, key):
        return self.activation(scores.DotProduct(0.3)(query, key)) * self.factor


def test_a_function_is_structure():
    query, key, value = query_key_value()

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, factor):
        def f(factor):
            score = Activated(jax.nn.silu, factor)
            return jattn.attention(query, key, value, score=score, implementation=implementation)

        output, pull = jax.vjp(f, factor)
        return output, pull(jnp.ones_like(output))[0]

    for x, y in zip(run("streaming", jnp.array(1.5)), run("dense", jnp.array(1.5)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    assert Activated(jax.nn.silu, 1.0) == Activated(jax.nn.silu, 1.0) != Activated(jax.nn.relu, 1.0)


def test_where_a_rule_lies_on_a_mesh():
    """As its fields declare their axes; an axis of length 1 is on every device."""
    ids = jnp.zeros((B, T), int)
    mask = masks.segments(ids) & masks.lengths(jnp.zeros(B, int)) & masks.dense(jnp.ones((B, 1, 1, T), bool))
    specs = mask.partition_specs(batch=1, b=("data",), h="model", t="sequence")
    assert jax.tree.leaves(specs) == [P("data", "sequence"), P("data", None), P("data"), P("data", None, None, None)]
    specs = biases.relative(jnp.zeros((32, H))).partition_specs(batch=2, b=("data", None), h="model")
    assert specs.table == P(None, "model")
    assert (biases.alibi(H) + jnp.ones((T, S))).partition_specs(batch=1, h="model").b.bias == P(None, None)
    assert jax.tree.leaves(masks.causal().partition_specs(batch=1)) == []


ATTENDED = {
    "lengths": masks.lengths(jnp.array([30, 7])),
    "causal and lengths": masks.causal(offset=5) & masks.lengths(jnp.array([30, 7])),
    "offsets": masks.causal(offset=jnp.array([-10, -33])),  # as in a cache whose last slots are empty
    "window": masks.sliding_window(3, 0, offset=-13),
    "array of keys": jnp.arange(S)[None, None, None] < jnp.array([30, 7])[:, None, None, None],
    "array": jnp.broadcast_to(jnp.arange(S) < jnp.array([30, 7])[:, None, None, None], (B, H, T, S)),
    "heads": masks.where(lambda q, k, n: k < n, n=("bh", jnp.array([[30, 30, 7, 7], [5, 5, 0, 0]]))),
    "not": ~masks.where(lambda q, k: k >= 30),
    "segments": masks.segments(jnp.zeros((B, T), int), jnp.arange(S) // 30 * jnp.ones((B, 1), int)),
    # Gaps: nobody attends to keys that lie between those that somebody does.
    "segments, a gap": masks.segments(jnp.arange(T) % 2 * 2, jnp.arange(S) % 3),
    "dilated, a gap": masks.dilated_window(60, 60, 60),
    "rows, a gap": masks.neighbourhood((3, S // 3 + 1), (2, 0)) & masks.causal(offset=-T),
    "both, one query each": masks.causal(offset=-3) & masks.where(lambda q, k: (k < 5) | (k > q + 2)),
    "span, a gap": masks.where(lambda q, k: (k == q) & (k % 2 == 0), span=lambda first, last: (first, last)),
    "either": masks.sliding_window(0, 0, offset=-2) | masks.lengths(jnp.array([1, 0])),
}
SCORES = {
    "dot": None,
    "gaussian": scores.Gaussian(),
    "modified": scores.modified(lambda x, q, k: jnp.tanh(x)),
    "additive": scores.Additive(normal(3, D, 5), normal(4, D, 5), normal(5, 5)),
}


@pytest.mark.parametrize(
    "mask",
    # Lengths are tried with all scores, which takes long.
    [pytest.param(x, id=n, marks=[pytest.mark.whole] * (n == "lengths")) for n, x in ATTENDED.items()],
)
def test_what_nobody_attends_to_may_hold_anything(mask):
    """Keys and values that no query may attend to: outputs, gradients, weights and statistics stay the same."""
    query, key, value = query_key_value()
    allowed = np.broadcast_to(masks.as_mask(mask).as_array(T, S), (B, H, T, S))
    attended = jnp.asarray(allowed.reshape(B, K, H // K, T, S).any(axis=(2, 3)).swapaxes(1, 2))[..., None]
    assert not attended.all()

    @functools.partial(jax.jit, static_argnames=("implementation", "name"))
    def run(key, value, implementation, name):
        def f(query, key, value):
            cap = 5.0 if name == "additive" else None
            options = dict(mask=mask, score=SCORES[name], implementation=implementation, logits_soft_cap=cap)
            return jattn.attention(query, key, value, **options)

        output, pull = jax.vjp(f, query, key, value)
        weights = jattn.attention_weights(query, key, mask=mask, score=SCORES[name], queries=[0, 3])
        return output, pull(jnp.ones_like(output)), weights, jattn.attention_statistics(query, key, mask=mask)

    for implementation in ("dense", "streaming"):
        for name in SCORES if mask is ATTENDED["lengths"] else ["dot"]:
            expected = jax.tree.leaves(run(key, value, implementation, name))
            for anything in (np.nan, np.inf, 1e300):
                bad_key, bad_value = (jnp.where(attended, x, anything) for x in (key, value))
                results = jax.tree.leaves(run(bad_key, bad_value, implementation, name))
                for x, y in zip(results, expected, strict=True):
                    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_positions_with_a_gap():
    """Nobody attends to the keys between the windows of two queries that are far from each other."""
    query, key, value = (x[:, :n] for x, n in zip(query_key_value(), (2, 12, 12), strict=True))
    options = dict(mask=masks.sliding_window(1, 0), query_positions=jnp.array([2, 9]))
    bad_key, bad_value = (x.at[:, 4:8].set(jnp.nan) for x in (key, value))
    for implementation in ("dense", "streaming"):
        f = functools.partial(jattn.attention, implementation=implementation, **options)
        (output, pull), (expected, expected_pull) = (
            jax.vjp(f, query, *x) for x in ((bad_key, bad_value), (key, value))
        )
        for x, y in zip((output, *pull(expected)), (expected, *expected_pull(expected)), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


class Ball(scores.Score):
    """A user's own, of keys within a ball: NaN outside."""

    by_pair = True

    def __call__(self, query, key):
        return scores.DotProduct(1.0)(query, key) * jnp.sqrt(1 - (key**2).sum(-1)).swapaxes(-1, -2)[..., None, :]


class Centred(scores.Score):
    """A user's own that compares keys with each other, the padded ones too."""

    def __call__(self, query, key):
        return scores.DotProduct(1.0)(query, jnp.tanh(key) - key * key.mean(axis=-3, keepdims=True))


class Direction(scores.DotProduct):
    """A user's own that has no direction, and no derivative, at zero, where its base is a plain product."""

    def prepare(self, query, key):
        query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
        return query, key, scores.DotProduct(1.0)


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
def test_a_score_on_another_does_not_take_zeros_for_it(implementation):
    query, key, value = query_key_value()
    mask = masks.lengths(jnp.array([30, 7]))
    assert scores.DotProduct.takes_zeros
    assert not Direction.takes_zeros
    f = functools.partial(jattn.attention, mask=mask, score=Direction(), implementation=implementation)
    output, pull = jax.vjp(f, query, key, value)
    assert all(jnp.isfinite(x).all() for x in (output, *pull(output)))


@pytest.mark.parametrize("score", [Ball(), Ball().__call__], ids=["by pair", "a function"])
def test_padding_stays_where_a_score_is_defined(score):
    query, key, value = query_key_value()
    key = key / 10
    assert (jnp.linalg.norm(key, axis=-1) < 1).all()
    mask = masks.lengths(jnp.array([30, 7]))
    for implementation in ("dense", "streaming") if isinstance(score, Ball) else ("dense",):
        f = functools.partial(jattn.attention, mask=mask, score=score, implementation=implementation)
        for cap in (None, 5.0):
            output, pull = jax.vjp(functools.partial(f, logits_soft_cap=cap), query, key, value)
            assert all(jnp.isfinite(x).all() for x in (output, *pull(output)))


@pytest.mark.parametrize("score", [Centred(), Centred().__call__], ids=["score", "function"])
def test_a_score_that_compares_keys_sees_the_padding(score):
    """Output and gradients are those of the formula at all keys; a soft cap that is too high to matter changes none."""
    query, key, value = query_key_value()
    allowed = jnp.arange(S) < jnp.array([30, 7])[:, None, None, None]

    def by_hand(query, key, value):
        weights = jax.nn.softmax(jnp.where(allowed, Centred()(query, jnp.repeat(key, H // K, 2)), -jnp.inf))
        return jnp.einsum("bhts,bshe->bthe", weights, jnp.repeat(value, H // K, 2))

    expected, expected_pull = jax.vjp(by_hand, query, key, value)
    for cap in (None, 1e12):
        f = functools.partial(jattn.attention, score=score, mask=allowed, logits_soft_cap=cap)
        output, pull = jax.vjp(f, query, key, value)
        for x, y in zip((output, *pull(expected)), (expected, *expected_pull(expected)), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-10)
    weights = jattn.attention_weights(query, key, score=score, mask=allowed, queries=[0, 3])
    np.testing.assert_allclose(weights, jattn.attention_weights(query, key, score=score, mask=allowed)[:, :, [0, 3]])


class Narrow(scores.Score):
    by_pair = True

    def __call__(self, query, key):
        return scores.DotProduct()(query, key).mean(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda q, k, v: jattn.attention(q, k, v, score=Narrow(), implementation="dense"),
        lambda q, k, v: jattn.attention(q, k, v, score=Narrow(), mask=masks.causal(), implementation="streaming"),
        lambda q, k, v: jattn.attention_weights(q, k, score=Narrow(), queries=0),
        lambda q, k, v: jattn.attention_statistics(q, k, score=Narrow()),
    ],
    ids=["dense", "streaming", "weights", "statistics"],
)
@pytest.mark.usefixtures("unchecked")
def test_a_score_of_the_wrong_shape(call):
    with pytest.raises(ValueError, match=r"^score must return the shape .*, the axes .*t s\. Got shape \(.*1\)\."):
        call(*query_key_value())


def test_a_prefix_may_end_at_a_position_beyond_the_keys():
    query, key, value = query_key_value()
    positions = 100 + jnp.arange(S)
    output = jattn.attention(query, key, value, mask=masks.prefix(103), key_positions=positions)
    np.testing.assert_allclose(output, jattn.attention(query, key[:, :3], value[:, :3]), atol=1e-12)


@pytest.mark.parametrize("f", [jattn.attention_weights, jattn.attention_statistics])
@pytest.mark.parametrize("options", [dict(head_gates=jnp.zeros(H)), dict(dropout_rate=0.5)])
def test_what_changes_no_weight_is_refused(f, options):
    query, key, _ = query_key_value()
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"^{name} must be left to attention, as it changes no weight"):
        f(query, key, **options)


class Cosine(scores.Score):
    """A user's own, whose derivative is NaN at a key of zeros."""

    by_pair = True

    def __call__(self, query, key):
        def direction(x):
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        return scores.DotProduct(1.0)(direction(query), direction(key))


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
@pytest.mark.parametrize("padding", [1.0, 0.0, np.nan])
def test_padding_under_a_score_without_a_derivative_at_zero(padding, implementation):
    query, key, value = query_key_value()
    n = 30

    def f(query, key, value, mask):
        return jattn.attention(query, key, value, score=Cosine(), mask=mask, implementation=implementation)

    def padded(x):
        return jnp.concatenate([x, jnp.full((B, S - n, *x.shape[2:]), padding)], axis=1)

    expected, pull = jax.vjp(lambda *x: f(*x, None), query, key[:, :n], value[:, :n])
    cotangent = normal(3, *expected.shape)
    output, pull_padded = jax.vjp(
        lambda query, key, value: f(query, padded(key), padded(value), masks.lengths(n)),
        query, key[:, :n], value[:, :n],
    )  # fmt: skip
    for x, y in zip((output, *pull_padded(cotangent)), (expected, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


@pytest.mark.parametrize("mask", ["causal", "lengths per query", "segments", "window"])
def test_no_queries(mask):
    query, key, value = query_key_value()
    mask = {
        "causal": masks.causal(),
        "lengths per query": masks.lengths(jnp.ones((B, 0), int)),
        "segments": masks.segments(jnp.ones((B, 0), int), jnp.ones((B, S), int)),
        "window": masks.sliding_window(1, 1),
    }[mask]
    assert jattn.attention(query[:, :0], key, value, mask=mask).shape == (B, 0, H, E)


class AnyOf(masks.Mask):
    """A user's own, with masks in a tuple."""

    parts: tuple[masks.Mask, ...]

    def formula(self, grid):
        return functools.reduce(jnp.logical_or, [part.formula(grid) for part in self.parts])


def test_rules_in_a_tuple():
    query, key, value = query_key_value()
    mask = AnyOf((masks.lengths(jnp.array([3, 9])), masks.sliding_window(2, 2)))
    expected = jattn.attention(query, key, value, mask=mask.parts[0] | mask.parts[1])
    for implementation in ("dense", "streaming"):
        output = jattn.attention(query, key, value, mask=mask, implementation=implementation)
        np.testing.assert_allclose(output, expected, atol=1e-13)
    with pytest.raises(ValueError, match=r"valid_lens must broadcast to \(2,\)"):
        jattn.attention(query, key, value, mask=AnyOf((masks.lengths(jnp.array([3, 9, 2])),)))


@pytest.mark.filterwarnings("error")
def test_a_formula_that_divides_by_zero_warns_nobody():
    query, key, value = query_key_value()
    mask = masks.where(lambda q, k: (q + 1) / k > 0.5)
    assert jnp.isfinite(jattn.attention(query, key, value, mask=mask, implementation="streaming")).all()


def test_not_a_number_where_it_counts_is_not_hidden():
    query, key, value = query_key_value()
    key = key.at[0, 5].set(np.nan)
    for implementation in ("dense", "streaming"):
        output = jattn.attention(query, key, value, mask=masks.lengths(30), implementation=implementation)
        np.testing.assert_array_equal(jnp.isnan(output).all(axis=(1, 2, 3)), [True, False])


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
def test_left_padding_is_the_example_alone(implementation):
    """Positions start where the example does."""
    query, key, value = (x[:, :T] for x in query_key_value())
    padding = jnp.array([0, 13])
    positions = jnp.arange(T) - padding[:, None]
    options = dict(bias=biases.alibi(H), implementation=implementation)
    real = masks.where(lambda q, k: k >= 0)
    mask = real & (masks.causal() & masks.sliding_window(9, 0) | masks.prefix(3))
    output = jattn.attention(
        query, key, value, mask=mask, query_positions=positions, key_positions=positions, **options
    )
    weights = jattn.attention_weights(
        query, key, mask=mask, query_positions=positions, key_positions=positions, bias=options["bias"], queries=[20]
    )
    for i, start in enumerate(padding.tolist()):
        alone = [x[i, start:] for x in (query, key, value)]
        expected = jattn.attention(*alone, mask=mask, **options)
        np.testing.assert_allclose(output[i, start:], expected, atol=1e-13)
        expected = jattn.attention_weights(*alone[:2], mask=mask, bias=options["bias"], queries=[20 - start])
        np.testing.assert_allclose(weights[i, :, :, start:], expected, atol=1e-13)


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
def test_a_function_may_return_one_number(implementation):
    query, key, value = query_key_value()
    options = dict(mask=masks.where(lambda q, k: True), bias=biases.where(lambda q, k, n: n, n=jnp.array(1.5)))
    output = jattn.attention(query, key, value, **options, implementation=implementation)
    np.testing.assert_allclose(output, jattn.attention(query, key, value), atol=1e-13)


def test_packed_documents_that_start_anew():
    query, key, value = (x[:1, :T] for x in query_key_value())
    positions = jnp.concatenate([jnp.arange(15), jnp.arange(25)])[None]
    mask = masks.segments((jnp.arange(T) >= 15).astype(int)[None]) & masks.causal() & masks.prefix(20)
    options = dict(bias=biases.relative(normal(3, 8, H), max_distance=20), sinks=normal(4, H))
    for implementation in ("dense", "streaming"):
        output = jattn.attention(
            query,
            key,
            value,
            mask=mask,
            query_positions=positions,
            key_positions=positions,
            implementation=implementation,
            **options,
        )
        for part in (slice(0, 15), slice(15, T)):
            alone = [x[:, part] for x in (query, key, value)]
            n = alone[0].shape[1]
            expected = jattn.attention(*alone, mask=masks.causal() & masks.prefix(min(20, n)), **options)
            np.testing.assert_allclose(output[:, part], expected, atol=1e-13)


def test_what_is_bound():
    """The functions are methods of it."""
    query, key, value = query_key_value()
    options = dict(mask=masks.causal(offset=10), sinks=normal(4, H), logits_soft_cap=3.0)
    bound = jattn.bind(query, key, value, **options)
    np.testing.assert_array_equal(bound.run(), jattn.attention(query, key, value, **options))
    output, weights = bound.run(return_weights=True)
    np.testing.assert_allclose(output, bound.run(), atol=1e-14)
    np.testing.assert_allclose(weights, bound.weights(), atol=1e-14)
    np.testing.assert_array_equal(
        bound.weights(3, -1), jattn.attention_weights(query, key, heads=3, queries=-1, **options)
    )
    statistics = bound.statistics()
    np.testing.assert_allclose(statistics.largest, weights.max(axis=-1), atol=1e-14)
    np.testing.assert_allclose(statistics.received, weights.sum(axis=-2), atol=1e-12)
    assert bound.explain() == jattn.explain(query, key, value, **options)
    without = jattn.bind(query, key, **options)
    np.testing.assert_array_equal(without.weights(), bound.weights())
    for ask in (without.run, without.explain):
        with pytest.raises(ValueError, match=r"value must be given for an output. Got None"):
            ask()


def test_sinks_by_hand():
    """A sink of log 3 beside three keys of logit 0 takes half of the weights."""
    query, key, value = jnp.zeros((2, 1, 4)), jnp.ones((3, 1, 4)), jnp.arange(3.0)[:, None, None]
    mask = jnp.array([[True] * 3, [False] * 3])
    for implementation in ("dense", "streaming"):
        output = jattn.attention(
            query, key, value, sinks=jnp.log(jnp.array([3.0])), mask=mask, implementation=implementation
        )
        np.testing.assert_allclose(output[:, 0, 0], [0.5, 0], atol=1e-15)
    weights = jattn.attention_weights(query, key, sinks=jnp.log(jnp.array([3.0])), mask=mask)
    np.testing.assert_allclose(weights[0], [[1 / 6] * 3, [0] * 3], atol=1e-15)
    bound = jattn.bind(query, key, value, sinks=jnp.log(jnp.array([3.0])), mask=mask)
    log_sum_exp = bound.result(return_log_sum_exp=True).log_sum_exp
    np.testing.assert_allclose(log_sum_exp[:, 0], np.log([6, 3]), atol=1e-15)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sinks=jnp.zeros(3)), r"sinks must broadcast to \(2, 4\), the axes \*b h. Got shape \(3,\)"),
        (dict(sinks=jnp.zeros(H, int)), "sinks must be floating point. Got int"),
        (dict(query_positions=jnp.zeros(S, int)), r"query_positions must broadcast to \(2, 40\), the axes \*b t"),
        (dict(key_positions=jnp.zeros(S)), "key_positions must be integers. Got float"),
        (dict(bias=biases.alibi(3)), r"slopes must broadcast to \(2, 4\), the axes \*b h. Got shape \(3,\)"),
        (
            dict(bias=biases.relative(jnp.zeros((8, 3)))),
            r"table must broadcast to \(4,\), the axes h. Got shape \(8, 3\)",
        ),
        (dict(bias=lambda q, k: q), "bias must be a bias or an array. Got the function .* jattn.biases.where"),
        (dict(mask=masks.where(lambda q, k: k[0, 0, 0] < 3)), r"f must return booleans .* shape \(50,\)"),
        (dict(bias=biases.where(lambda q, k: q - k)), "f must return floating-point numbers. Got int"),
        (dict(mask=masks.where(lambda q, k: q - k)), "f must return booleans. Got int"),
        (
            dict(mask=masks.where(lambda q, k, n: k < n, n=("h", jnp.zeros(3)))),
            r"n must broadcast to \(4,\), the axes h",
        ),
        (
            dict(mask=masks.where(lambda q, k, n: n, n=jnp.ones((T, S), bool))),
            r"to \(2, 4, 1, 1\).* \(40, 50\). .* its axes",
        ),
        (dict(bias=biases.where(lambda q, k, n: n, n=normal(3, S))), r"to \(2, 4, 40, 50\).* \(50,\). .* its axes"),
        (dict(score=scores.modified(lambda x, q, k, n: x + n, n=normal(3, T, S))), r"shape \(2, 4, 1, 1\) .* its axes"),
        (dict(score=scores.modified(lambda x, q, k: x[..., :0])), "f must return floating-point logits of the shape"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        jattn.attention(*query_key_value(), **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.where(3), "f must be a function of query, key. Got 3"),
        (
            lambda: masks.where(lambda b, h, q, k: q >= k),
            r"f must be a function of query, key. Got a function of \(b, h, q, k\)",
        ),
        (
            lambda: biases.where(lambda q, k: q, n=jnp.ones(2)),
            "f must be a function of query, key, n. Got a function of",
        ),
        (lambda: masks.where(causal, span=3), "span must be a function of first, last. Got 3"),
        (lambda: masks.where(with_n, n=("ht", jnp.ones(3), 2)), "n must be an array, or a pair of axes"),
        (lambda: biases.where(with_n, n=("th", jnp.ones((3, 2)))), 'n must be .* in the order of "bhts"'),
        (lambda: masks.dilated_window(1, 1, 0), r"dilation must be an integer in \[1, inf\). Got 0"),
        (lambda: masks.neighbourhood(6, 1), "shape must be a tuple, the lengths of the grid's axes. Got 6"),
        (lambda: masks.over("hb"), 'axes must be different letters, "b" first'),
        (lambda: masks.neighbourhood((3, 0), 1), r"shape must be an integer in \[1, inf\). Got 0"),
        (lambda: masks.neighbourhood((3, 4), (1, 2, 3)), r"radius must be .* each axis of \(3, 4\). Got \(1, 2, 3\)"),
        (lambda: biases.relative(jnp.ones((7, 2))), "table must have an even number of buckets from 4 on"),
        (lambda: biases.relative(jnp.ones((8, 2)), max_distance=2), r"max_distance must be an integer in \[3, inf\)"),
        (lambda: biases.relative(jnp.ones(8)), r"table must have the axes n h. Got shape \(8,\)"),
        (lambda: biases.alibi(0), r"num_heads must be an integer in \[1, inf\). Got 0"),
        (lambda: biases.dense(jnp.ones((2, 2), int)), "bias must be floating point. Got int64"),
        (
            lambda: scores.modified(lambda x, q, k: x, square),
            "score must be a score of jattn.scores, not modified before",
        ),
    ],
)
def test_mistakes_in_making(make, message):
    with pytest.raises(ValueError, match=message):
        make()
