"""Importance of heads: known answers, what counts, what is refused, and memory."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads, models, nn
from jattn.heads import Importance, Row
from jattn.nn import MultiHeadAttention
from jattn.training import NonFiniteError

rng = np.random.default_rng(0)
X = jnp.asarray(rng.standard_normal((6, 5, 12)), jnp.float32)
TARGET = jnp.asarray(rng.standard_normal((6, 5, 12)), jnp.float32)


def squared(model: Any, batch: Any, rng: Any) -> jax.Array:
    x, target = batch
    return ((model(x) - target) ** 2).mean()


def attention(**options: Any) -> MultiHeadAttention:
    return MultiHeadAttention(3, 12, **options, rngs=nnx.Rngs(0))


def of(found: Importance, metric: str) -> np.ndarray:
    return found.values(metric)


# ----------------------------------------------------------------------------------------------------------------------
# Known answers.


def test_heads_with_known_weights() -> None:
    """With no key and no bias all weights are 1 / s; with sharp keys each query sees one key, its own."""
    attend = attention(qkv_features=36)
    eye = jnp.broadcast_to(10 * jnp.eye(12)[:, None], (12, 3, 12))
    for projection in (attend.query, attend.key):
        projection.kernel.set_value(eye.at[:, 0].set(0))
    x = jnp.broadcast_to(10 * jnp.eye(12)[:5], (6, 5, 12))
    found = heads.importance(attend, (x, TARGET), loss=squared, batch_size=6, progress=False)
    expected = {
        "l1": [1, 1, 1],
        "l2": [1 / np.sqrt(5), 1, 1],
        "entropy": [np.log(5), 0, 0],
        "confidence": [0.2, 1, 1],
        "variance": [0, 0.8, 0.8],  # E |w|^2 = 1, and E w = (1 / 5, ...)
    }
    for metric, values in expected.items():
        np.testing.assert_allclose(of(found, metric), values, atol=1e-5)
    assert (
        of(found, "output_variance")[0] < 1e-8 < of(found, "output_variance")[1]
    )  # a mean over all is the same for all


def test_a_head_that_adds_nothing_is_the_least_important() -> None:
    attend = heads.gated(attention(), {"": jnp.array([1.0, 0.0, 1.0])})
    asked = ("output_variance", "gradient", "taylor", "leave_one_out")
    found = heads.importance(attend, (X, TARGET), loss=squared, batch_size=6, metrics=asked, progress=False)
    assert found.metrics == asked
    for metric in asked:
        assert of(found, metric)[1] == 0
        assert np.all(np.delete(of(found, metric), 1) != 0)
    for metric in asked[:3]:
        assert found.ranking(metric)[0] == ("", 1)


def test_leave_one_out_and_gradients_by_hand() -> None:
    attend = attention()
    found = heads.importance(attend, (X, TARGET), loss=squared, batch_size=6, progress=False)

    @jax.jit
    def loss(gates: jax.Array, x: jax.Array, target: jax.Array) -> jax.Array:
        return squared(heads.gated(attend, {"": gates}), (x, target), None)

    slope = jax.jit(jax.grad(lambda g, head, *data: loss(jnp.ones(3).at[head].set(g), *data)))
    whole = squared(attend, (X, TARGET), None)
    for head in range(3):
        rise = loss(jnp.ones(3).at[head].set(0), X, TARGET) - whole
        np.testing.assert_allclose(of(found, "leave_one_out")[head], rise, rtol=1e-4, atol=1e-6)
        slopes = [slope(1.0, head, X[i : i + 1], TARGET[i : i + 1]) for i in range(6)]
        np.testing.assert_allclose(of(found, "gradient")[head], np.mean(np.abs(slopes)), rtol=1e-4)
        np.testing.assert_allclose(of(found, "taylor")[head], np.mean(np.square(slopes)), rtol=1e-4)


def test_value_and_spread_weigh_batches_by_their_examples() -> None:
    attend = attention()
    metrics = ("entropy", "leave_one_out")
    options: dict[str, Any] = dict(loss=squared, metrics=metrics, progress=False)
    both = heads.importance(attend, (X, TARGET), batch_size=4, **options)
    parts = [heads.importance(attend, (X[i], TARGET[i]), batch_size=4, **options) for i in (slice(4), slice(4, 6))]
    assert (both.examples, both.batches) == (6, 2)
    for metric in metrics:
        a, b = (of(part, metric) for part in parts)
        np.testing.assert_allclose(of(both, metric), (4 * a + 2 * b) / 6, rtol=1e-5)
        spreads = [row.spread for row in both.rows if row.metric == metric]
        np.testing.assert_allclose(spreads, np.sqrt(2) / 3 * np.abs(a - b), rtol=1e-4, atol=1e-9)
    assert {row.spread for row in parts[0].rows} == {0.0}


# ----------------------------------------------------------------------------------------------------------------------
# What counts.

LENS = jnp.array([5, 3, 2, 4, 1, 5])


def test_padding_queries_do_not_count_in_self_attention() -> None:
    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        return model(batch[0], valid_lens=batch[1]).mean()

    attend, metrics = attention(), ("l1", "l2", "entropy", "variance", "output_variance", "confidence")
    options: dict[str, Any] = dict(loss=loss, batch_size=6, metrics=metrics, progress=False)
    real = (jnp.arange(5) < LENS[:, None])[..., None]
    found = heads.importance(attend, (X, LENS), **options)
    other = heads.importance(attend, (jnp.where(real, X, 100), LENS), **options)
    for metric in metrics:
        np.testing.assert_allclose(of(found, metric), of(other, metric), rtol=1e-5)
    np.testing.assert_allclose(of(found, "l1"), 1, rtol=1e-6)


def test_padding_queries_count_where_nothing_tells_which_they_are() -> None:
    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        return model(batch[0], batch[1], valid_lens=batch[2]).mean()

    attend = attention()
    options: dict[str, Any] = dict(loss=loss, batch_size=6, metrics=("entropy",), progress=False)
    found = heads.importance(attend, (X, TARGET, LENS), **options)
    other = heads.importance(attend, (X.at[4, 4].set(100), TARGET, LENS.at[:].set(5)), **options)
    assert not np.allclose(of(found, "entropy"), of(other, "entropy"))


def test_pytorchs_module_and_its_padding() -> None:
    attend = nn.torch.MultiheadAttention(12, 3, batch_first=True, rngs=nnx.Rngs(0))
    padding = jnp.arange(5) >= LENS[:, None]

    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        output, _ = model(batch[0], batch[0], batch[0], key_padding_mask=batch[1])
        return jnp.where(batch[1][..., None], 0, output**2).mean()

    options: dict[str, Any] = dict(loss=loss, batch_size=6, progress=False)
    found = heads.importance(attend, (X, padding), **options)
    other = heads.importance(attend, (jnp.where(padding[..., None], 100, X), padding), **options)
    for metric in heads.METRICS:
        np.testing.assert_allclose(of(found, metric), of(other, metric), rtol=1e-4, atol=1e-6)


def test_a_shared_layer_is_the_mean_over_its_calls() -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.attend = attention()

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attend(self.attend(x))

    model = Twice()
    options: dict[str, Any] = dict(loss=squared, batch_size=6, metrics=("entropy", "l2"), progress=False)
    found = heads.importance(model, (X, TARGET), **options)
    calls = [heads.importance(model.attend, (x, TARGET), **options) for x in (X, model.attend(X))]
    for metric in ("entropy", "l2"):
        np.testing.assert_allclose(of(found, metric), sum(of(call, metric) for call in calls) / 2, rtol=1e-5)
    assert found.heads == (("attend", 0), ("attend", 1), ("attend", 2))


@pytest.mark.whole
def test_the_model_is_left_as_it_is_and_dropout_is_off() -> None:
    model = models.DigitsClassifier(features=16, num_layers=1, dropout_rate=0.5, rngs=nnx.Rngs(0))
    model.train()
    before = jax.tree.map(jnp.copy, nnx.state(model))

    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        return model(batch, rng=rng).mean()

    images = jnp.asarray(rng.random((4, 8, 8)), jnp.float32)
    options: dict[str, Any] = dict(loss=loss, batch_size=4, progress=False)
    found = heads.importance(model, images, seed=0, **options)
    assert found == heads.importance(model, images, seed=1, **options)  # nothing is drawn
    assert not model.blocks[0].attention.dropout.deterministic
    assert jax.tree.structure(before) == jax.tree.structure(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_memory_is_linear_in_the_sequence() -> None:
    """8,192 positions, whose matrix of weights would take 256 MiB a head: less than a tenth of it as scratch."""
    from jattn.heads.measure import _of_weights

    attend = MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attend)
    x = jnp.zeros((1, 8192, 8))
    compiled = _of_weights.lower(state, (x, x), jax.random.key(0), graph, squared).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 8192**2 * 4 / 10


# ----------------------------------------------------------------------------------------------------------------------
# The result.

ROWS = {
    "entropy": [2.0, 1.0, 0.5, 0.0, 1.5],
    "leave_one_out": [0.1, 0.2, 0.3, 0.4, 0.15],
    "l1": [1.0, 1.0 + 1e-7, 1.0, 1.0 - 1e-7, 1.0],
    "gradient": [5.0, 1.0, 2.0, 3.0, 4.0],
}
HEADS = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
FOUND = Importance(
    tuple(
        Row(*head, metric, value, 0.1)
        for metric, values in ROWS.items()
        for head, value in zip(HEADS, values, strict=True)
    ),
    examples=10,
    batches=2,
)


def test_ranking() -> None:
    assert FOUND.ranking("entropy") == [("a", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 0)]  # high entropy first
    assert FOUND.ranking("leave_one_out") == FOUND.ranking("entropy")
    assert FOUND.ranking("l1") == HEADS  # rounding ranks nothing
    assert FOUND.ranking("gradient") == [("a", 1), ("a", 2), ("b", 0), ("b", 1), ("a", 0)]


def test_lowest() -> None:
    assert FOUND.lowest(0.4, "entropy") == FOUND.lowest(2, "entropy") == {"a": [0], "b": [1]}
    assert FOUND.lowest(3, "gradient") == {"a": [1, 2], "b": [0]}
    assert FOUND.lowest(3, "entropy") == {"a": [0, 1], "b": [1]}  # the last of b stays
    assert FOUND.lowest(0, "entropy") == FOUND.lowest(0.0, "entropy") == {}
    for amount in (4, 0.9):
        with pytest.raises(ValueError, match=r"amount must leave each of 2 layers a head: at most 3 of 5 heads\. Got"):
            FOUND.lowest(amount, "entropy")
    with pytest.raises(ValueError, match=r"amount must be a number in \[0, 1\)\. Got -0\.1"):
        FOUND.lowest(-0.1, "entropy")
    with pytest.raises(ValueError, match=r"metric must be one of 'entropy'.* Got 'taylor'"):
        FOUND.lowest(1, "taylor")


def test_agreement() -> None:
    agreement = FOUND.agreement()
    assert agreement["entropy"] == pytest.approx(1)
    assert agreement["gradient"] == pytest.approx(-0.6)  # 1 - 6 * 32 / (5 * 24)
    assert np.isnan(agreement["l1"])
    assert "leave_one_out" not in agreement


def test_to_json_and_back() -> None:
    text = FOUND.to_json()
    assert Importance.from_json(text) == FOUND
    assert json.loads(text)["rows"][0] == {"layer": "a", "head": 0, "metric": "entropy", "value": 2.0, "spread": 0.1}
    for other in ("", "{}", text.replace('"entropy"', '"charm"'), "[]"):
        with pytest.raises(ValueError, match=r"text must be what Importance\.to_json wrote\. Got"):
            Importance.from_json(other)


def test_to_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas: pip install pandas"):
        FOUND.to_pandas()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    frame = FOUND.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == ["layer", "head", "metric", "value", "spread"]
    assert len(frame) == 20


def test_it_prints_as_a_table() -> None:
    text = str(FOUND)
    assert "importance of 5 heads, by 10 examples in 2 batches" in text
    assert "rank correlation" in text
    assert "-0.60" in text


def test_every_metric_is_described() -> None:
    assert heads.table().row_count == len(heads.METRICS)
    for metric in heads.METRICS.values():
        assert all(metric)
        assert metric.important_if in ("high", "low")


# ----------------------------------------------------------------------------------------------------------------------
# What is refused.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("entropie",)}, r"metrics must be some of l1, .* Got entropie\."),
        ({"metrics": ()}, r"metrics must be some of l1, .* Got none\."),
        ({"batch_size": 0}, r"batch_size must be an integer in \[1, inf\)\. Got 0"),
        ({"loss": 1}, r"loss must be a function of model, batch, rng\. Got 1"),
        ({"loss": lambda model, batch, rng: model(batch[0])}, r"loss must return one number, the mean over the batch"),
        ({"loss": lambda model, batch, rng: batch[0].mean()}, r"loss must run every layer .* never ran it"),
        (
            {"loss": lambda model, batch, rng: jax.vmap(model)(batch[0]).mean()},
            r"loss must call the model outside of jax\.vmap, .* Got a call inside one\.",
        ),
        ({"data": (X, TARGET[:3])}, r"data must be arrays whose first axis counts the same examples"),
        ({"model": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}, r"model must have heads"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(loss=squared, batch_size=4, progress=False) | options
    model, data = given.pop("model", attention()), given.pop("data", (X, TARGET))
    with pytest.raises(ValueError, match=message):
        heads.importance(model, data, **given)


def test_it_is_not_for_within_jit() -> None:
    attend = attention()
    with pytest.raises(ValueError, match=r"importance must be called outside of jax\.jit"):
        jax.jit(lambda x: heads.importance(attend, (x, TARGET), loss=squared, batch_size=4).examples)(X)


@pytest.mark.parametrize("metric", ["entropy", "gradient", "leave_one_out"])
def test_nan_is_named(metric: str) -> None:
    data = (X.at[5, 0, 0].set(jnp.nan), TARGET)
    with pytest.raises(
        NonFiniteError, match=rf"importance must be finite\. Got {metric} nan of head 0 in .* batch 1\."
    ):
        heads.importance(attention(), data, loss=squared, batch_size=4, metrics=(metric,), progress=False)


def test_a_batch_without_a_query_that_counts_is_named() -> None:
    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        return model(batch[0], valid_lens=batch[1]).mean()

    data = (X, jnp.zeros(6, int))
    with pytest.raises(NonFiniteError, match=r"Got l2 nan of head 0 in the layer, batch 0\..* no query may attend"):
        heads.importance(attention(), data, loss=loss, batch_size=6, metrics=("l2",), progress=False)
