"""Heads removed: the smaller model is the gated one, to rounding, and an ordinary model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads, models, nn
from jattn.nn import MultiHeadAttention, TransformerBlock, WideMultiHeadSelfAttention
from jattn.training import adam, fit

rng = np.random.default_rng(0)
QUERIES, KEYS, VALUES = (rng.standard_normal(shape) for shape in ((2, 5, 12), (2, 7, 10), (2, 7, 9)))


def randomised(make: Callable[[], nnx.Module]) -> Any:
    """In eval mode, every parameter random, as a bias of zero could be lost. NumPy draws without compiling."""
    graph, state = nnx.split(nnx.eval_shape(make))
    model = nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), state))
    model.eval()
    return model


@nnx.jit
def call(model: Any, *inputs: jax.Array, **options: Any) -> Any:
    return model(*inputs, **options)


def without(model: nnx.Module, removed: dict[str, list[int]]) -> dict[str, jax.Array]:
    """Gates that switch the removed heads off."""
    return {
        path: jnp.ones(h).at[jnp.array(removed.get(path, []), int)].set(0) for path, h in heads.counts(model).items()
    }


def assert_pruned_is_gated(model: Any, removed: dict[str, list[int]], *inputs: Any, **options: Any) -> Any:
    inputs = tuple(map(jnp.asarray, inputs))
    smaller = heads.prune(model, removed)
    expected = call(heads.gated(model, without(model, removed)), *inputs, **options)
    np.testing.assert_allclose(call(smaller, *inputs, **options), expected, rtol=1e-12, atol=1e-12)
    return smaller


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"use_bias": True},
    "widths": {"key_features": 10, "value_features": 9, "value_head_features": 5, "out_features": 8, "use_bias": True},
    "norm and rotary": {"normalize_qk": True, "rotary_base": 50.0, "use_bias": True},
    "norms of its own": {"normalize_qk": "layer", "qk_norm_shared": False},
    "dropout": {"dropout_rate": 0.5},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("removed", [[0], [1, 2], [2, 0]])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pruned_is_gated(options: dict[str, Any], removed: list[int]) -> None:
    model = randomised(lambda: MultiHeadAttention(3, 12, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    inputs = (QUERIES, KEYS, VALUES) if "key_features" in options else (QUERIES,)
    lens = jnp.array([3, 5])
    smaller = assert_pruned_is_gated(model, {"": removed}, *inputs, valid_lens=lens)
    d = 4
    assert smaller.query.kernel.shape == (12, 3 - len(removed), d)
    assert smaller.out.kernel.shape[0] == smaller.key.kernel.shape[1] == 3 - len(removed)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))  # the caller's model is as it was


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("removed", "kv_heads", "num_kv_heads"),
    [
        ([0, 1, 2], None, 1),  # a whole group
        ([1, 3], None, 2),  # the groups stay equal
        ([4], (0, 0, 0, 1, 1), 2),
        ([0, 1], (0, 1, 1, 1), 2),
        ([0, 1, 2, 5], None, 1),
    ],
)
def test_grouped_heads(removed: list[int], kv_heads: tuple[int, ...] | None, num_kv_heads: int) -> None:
    options: dict[str, Any] = dict(num_kv_heads=2, use_bias=True, normalize_qk=True, rotary_base=20.0)
    model = randomised(lambda: MultiHeadAttention(6, 12, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    smaller = assert_pruned_is_gated(model, {"": removed}, QUERIES)
    assert smaller.kv_heads == kv_heads
    assert smaller.key.kernel.shape == smaller.value.kernel.shape == (12, num_kv_heads, 2)
    _, weights = nnx.eval_shape(lambda: smaller(jnp.asarray(QUERIES), return_weights=True))
    assert weights.shape == (2, 6 - len(removed), 5, 5)


@pytest.mark.usefixtures("x64")
def test_a_pruned_model_is_pruned_again() -> None:
    model = randomised(lambda: MultiHeadAttention(6, 12, num_kv_heads=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    twice = heads.prune(heads.prune(model, {"": [4]}), {"": [0, 4]})  # the numbers 0 and 5 of the original
    at_once = heads.prune(model, {"": [0, 4, 5]})
    assert (twice.kv_heads, at_once.kv_heads) == ((0, 0, 1), (0, 0, 1))
    x = jnp.asarray(QUERIES)
    np.testing.assert_array_equal(call(twice, x), call(at_once, x))
    assert heads.prune(twice, {"": [2]}).key.kernel.shape == (12, 1, 2)


@pytest.mark.usefixtures("x64")
def test_wide_heads_and_cross_attention() -> None:
    wide = randomised(lambda: WideMultiHeadSelfAttention(12, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    assert assert_pruned_is_gated(wide, {"": [1]}, QUERIES).out.kernel.shape == (2, 12, 12)
    block = randomised(
        lambda: TransformerBlock(
            3, 12, 20, cross_attention=True, causal=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
    )
    memory = rng.standard_normal((2, 7, 12))
    removed = {"attention": [0], "cross_attention": [1, 2]}
    smaller = assert_pruned_is_gated(block, removed, QUERIES, memory, memory_valid_lens=jnp.array([7, 2]))
    assert heads.counts(smaller) == {"attention": 2, "cross_attention": 1}


@pytest.mark.whole
def test_it_trains_under_jit_and_keeps_its_mode() -> None:
    model = models.DigitsClassifier(num_heads=4, num_layers=1, features=16, dropout_rate=0.2, rngs=nnx.Rngs(0))
    smaller = heads.prune(model, {"blocks.0.attention": [0, 2]})
    assert not smaller.blocks[0].attention.dropout.deterministic
    images, labels = jnp.asarray(rng.random((20, 8, 8)), jnp.float32), jnp.arange(20) % 10

    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(model(batch[0], rng=rng))
        return -jnp.take_along_axis(log_probabilities, batch[1][:, None], axis=1).mean()

    history = fit(smaller, (images, labels), loss=loss, optimizer=adam(0.01), epochs=30, batch_size=20, progress=False)
    assert history.losses[-1] < 0.8 * history.losses[0]
    assert heads.counts(smaller) == {"blocks.0.attention": 2}


def test_prune_within_jit() -> None:
    model = MultiHeadAttention(3, 12, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    x = jnp.asarray(QUERIES, jnp.float32)
    inside = jax.jit(lambda state: heads.prune(nnx.merge(graph, state), {"": [1]})(x))(state)
    np.testing.assert_allclose(inside, heads.prune(model, {"": [1]})(x), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Gates, and where they are.


def test_gates_are_those_of_the_call() -> None:
    attend = MultiHeadAttention(3, 12, rngs=nnx.Rngs(0))
    x, gates = jnp.asarray(QUERIES, jnp.float32), jnp.array([0.5, 0.0, -2.0])
    np.testing.assert_allclose(heads.gated(attend, {"": gates})(x), attend(x, head_gates=gates), rtol=1e-5, atol=1e-6)


def test_gates_of_pytorchs_module() -> None:
    attend = nn.torch.MultiheadAttention(12, 3, batch_first=True, rngs=nnx.Rngs(0))
    x = jnp.asarray(QUERIES, jnp.float32)
    parts = [heads.gated(attend, {"": jnp.eye(3)[i]})(x, x, x)[0] for i in range(3)]
    np.testing.assert_allclose(sum(parts), attend(x, x, x)[0], rtol=1e-5, atol=1e-6)


def test_other_gates_compile_nothing_and_have_gradients() -> None:
    attend = MultiHeadAttention(3, 12, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attend)
    x, traced = jnp.asarray(QUERIES, jnp.float32), []

    @jax.jit
    def total(gates: jax.Array) -> jax.Array:
        traced.append(None)
        return heads.gated(nnx.merge(graph, state), {"": gates})(x).sum()

    values = [total(jnp.eye(3)[i]) for i in range(3)]
    assert len(traced) == 1
    np.testing.assert_allclose(jax.grad(total)(jnp.ones(3)), values, rtol=1e-4, atol=1e-5)  # it is linear in the gates
    np.testing.assert_allclose(jax.vmap(total)(jnp.eye(3)), values, rtol=1e-4, atol=1e-5)


def test_a_layer_in_two_places_counts_once() -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.first = MultiHeadAttention(3, 12, rngs=nnx.Rngs(0))
            self.second = self.first

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(self.first(x))

    model = Twice()
    assert heads.counts(model) == {"first": 3}
    smaller = heads.prune(model, {"first": [0]})
    assert smaller.first is smaller.second
    assert smaller.second.out.kernel.shape[0] == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"": [0, 1, 2]}, r"heads\[''\] must leave the layer at least one of its 3 heads\. Got all of them\."),
        ({"": [3]}, r"heads\[''\] must lie between 0 and 2, the layer's heads\. Got 3\."),
        ({"": [-1]}, r"heads\[''\] must be a list of the numbers of heads, from 0\. Got \[-1\]\."),
        ({"": [1, 1]}, r"heads\[''\] must name each head once\. Got \[1, 1\]\."),
        ({"": 1}, r"heads\[''\] must be a list of the numbers of heads, from 0\. Got 1\."),
        ({"": "1"}, r"heads\[''\] must be a list of the numbers of heads"),
        ({"": [1.0]}, r"heads\[''\] must be a list of the numbers of heads"),
        ({"block": [0]}, r"heads must name layers of the model: ''\. Got 'block'\."),
        ([0], r"heads must be a mapping from the paths of layers\. Got list\."),
    ],
)
def test_heads_that_are_refused(removed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heads.prune(MultiHeadAttention(3, 12, rngs=nnx.Rngs(0)), removed)


def test_pytorchs_module_cannot_lose_heads() -> None:
    attend = nn.torch.MultiheadAttention(12, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Got '', a jattn\.nn\.torch\.MultiheadAttention.*jattn\.heads\.gated"):
        heads.prune(attend, {"": [0]})
    assert heads.counts(heads.prune(attend, {"": []})) == {"": 3}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"": jnp.ones(2)}, r"gates\[''\] must be one floating-point number for each of 3 heads\. Got shape \(2,\)"),
        ({"": jnp.ones(3, int)}, r"gates\[''\] must be one floating-point number .* Got shape \(3,\) of int32\."),
        ({"a": jnp.ones(3)}, r"gates must name layers of the model: ''\. Got 'a'\."),
    ],
)
def test_gates_that_are_refused(gates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heads.gated(MultiHeadAttention(3, 12, rngs=nnx.Rngs(0)), gates)


@pytest.mark.usefixtures("unchecked")
def test_models_without_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model must have heads: .* Got a Linear without any\."):
        heads.layers(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"model must be a flax\.nnx\.Module\. Got str\."):
        heads.layers("model")


def test_stacked_models_are_refused() -> None:
    graph, state = nnx.split(MultiHeadAttention(3, 12, rngs=nnx.Rngs(0)))
    stacked = nnx.merge(graph, jax.tree.map(lambda x: jnp.stack([x, x]), state))
    with pytest.raises(ValueError, match=r"model must be one model\. Got a layer with a query kernel of shape"):
        heads.layers(stacked)


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face's settings, which say one number of heads for all layers.


def llama(**options: Any) -> models.Llama:
    sizes: dict[str, Any] = dict(features=16, num_heads=4, num_kv_heads=2, num_layers=2, feedforward_features=24)
    return randomised(lambda: models.Llama(50, **{**sizes, **options}, rngs=nnx.Rngs(0)))


def test_what_hugging_face_cannot_say_is_refused() -> None:
    pytest.importorskip("torch")
    unequal = heads.prune(llama(), {"blocks.0.attention": [0, 1]})
    with pytest.raises(ValueError, match=r"model must have as many heads in each layer"):
        unequal.to_hugging_face()
    both = {"blocks.0.attention": [0], "blocks.1.attention": [0]}
    with pytest.raises(ValueError, match=r"model must have groups of equal size"):
        heads.prune(llama(), both).to_hugging_face()
    sizes: dict[str, Any] = dict(vocab_size=50, features=16, num_heads=4, num_layers=2, feedforward_features=24)
    encoder = heads.prune(randomised(lambda: models.Bert(**sizes, rngs=nnx.Rngs(0))), both)
    with pytest.raises(
        ValueError, match=r"model must have heads that together are as wide as the model, 16, .* Got 12\."
    ):
        encoder.to_hugging_face()


def test_a_llama_pruned_alike_in_all_layers_goes_to_hugging_face() -> None:
    """Its settings say the number of heads and their width apart."""
    pytest.importorskip("torch")
    smaller = heads.prune(llama(), {"blocks.0.attention": [0, 1], "blocks.1.attention": [2, 3]})
    tensors = smaller.to_hugging_face()
    assert tensors["model.layers.0.self_attn.q_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (4, 16)


def _with_biases_by_head(kind: str) -> Any:
    block: dict[str, Any] = {"num_heads": 3, "feedforward_features": 8}
    if kind == "ALiBi":
        return models.TextDecoder(11, features=6, layers=[block] * 2, alibi=True, rngs=nnx.Rngs(0))
    if kind == "MPNet's":
        options = dict(max_length=9, relative_buckets=4)
        return models.TextEncoder(11, features=6, layers=[block] * 2, **options, rngs=nnx.Rngs(0))
    side = dict(layers=[block] * 2, relative_buckets=4, relative_distance=8)
    return models.EncoderDecoder(11, features=6, encoder=side, decoder=side, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["ALiBi", "MPNet's", "T5's"])
def test_biases_stay_with_their_heads(kind: str) -> None:
    """Also where heads are lost one after the other."""
    model = randomised(lambda: _with_biases_by_head(kind))
    tokens = jnp.array([[1, 4, 2, 7, 3]])
    inputs = (tokens, tokens) if kind == "T5's" else (tokens,)
    first = "encoder.blocks.0.attention" if kind == "T5's" else "blocks.0.attention"
    pruned = heads.prune(heads.prune(model, {first: [0]}), {first: [1]})
    layer = heads.layers(model)[first]
    for i in (0, 2):
        layer.out.kernel[...] = layer.out.kernel[...].at[i].set(0)
    np.testing.assert_allclose(pruned(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
