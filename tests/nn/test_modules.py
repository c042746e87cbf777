"""What every module and model promises: it is pure under JAX's transformations and keeps nothing in itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, models, nn
from tests.settings import SETTINGS


class Case(NamedTuple):
    make: Callable[[], nnx.Module]
    inputs: tuple[Any, ...]  # the first is differentiable where it is floating point
    drops: bool = False  # whether it takes an rng


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


X = normal(2, 5, 8)
MEMORY = normal(2, 7, 8)
TOKENS = jnp.arange(10).reshape(2, 5) % 4


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


CASES = {
    "DotProductAttention": Case(lambda: nn.DotProductAttention(0.5), (X, MEMORY, MEMORY), True),
    "AdditiveAttention": Case(lambda: nn.AdditiveAttention(8, 8, 6, 0.5, rngs=rngs()), (X, MEMORY, MEMORY), True),
    "MultiHeadAttention": Case(
        lambda: nn.MultiHeadAttention(
            4, 8, num_kv_heads=2, normalize_qk=True, rotary_base=1e4, dropout_rate=0.5, use_sinks=True, rngs=rngs()
        ),
        (X,),
        True,
    ),
    "MultiHeadAttention of a memory": Case(
        lambda: nn.MultiHeadAttention(4, 8, num_kv_heads=2, normalize_qk="rms", dropout_rate=0.5, rngs=rngs()),
        (X, MEMORY),
        True,
    ),
    "TransformerBlock sandwich, gated": Case(
        lambda: nn.TransformerBlock(
            2, 8, 16, norm="sandwich", norm_kind="rms", activation="silu", gated=True, dropout_rate=0.5, rngs=rngs()
        ),
        (X,),
        True,
    ),
    "WideMultiHeadSelfAttention": Case(
        lambda: nn.WideMultiHeadSelfAttention(8, 3, dropout_rate=0.5, rngs=rngs()), (X,), True
    ),
    "NadarayaWatson": Case(lambda: nn.NadarayaWatson(normal(7), normal(7)), (normal(5),)),
    "LearnedPositions": Case(lambda: nn.LearnedPositions(9, 8, rngs=rngs()), (X,)),
    "Embed": Case(lambda: nn.Embed(4, 8, padding_idx=0, scale=3.0, rngs=rngs()), (TOKENS,)),
    "Conv": Case(lambda: nn.Conv(8, 6, 3, strides=2, padding=1, rngs=rngs()), (X,)),
    "SinusoidalPositions": Case(lambda: nn.SinusoidalPositions(8), (X,)),
    "FeedForward": Case(lambda: nn.FeedForward(8, 16, dropout_rate=0.5, rngs=rngs()), (X,), True),
    "TransformerBlock post": Case(lambda: nn.TransformerBlock(2, 8, 16, dropout_rate=0.5, rngs=rngs()), (X,), True),
    "TransformerBlock pre, cross": Case(
        lambda: nn.TransformerBlock(
            2, 8, 16, norm="pre", attention_dropout_rate=0.5, causal=True, cross_attention=True, rngs=rngs()
        ),
        (X, MEMORY),
        True,
    ),
    "GRU": Case(lambda: nn.GRU(8, 6, 3, 0.5, rngs=rngs()), (X,), True),
    "AttentionRegressor": Case(lambda: models.AttentionRegressor(16, rngs=rngs()), (normal(2, 5),)),
    "TransformerRegressor": Case(lambda: models.TransformerRegressor(5, 8, 2, 0.5, rngs=rngs()), (normal(2, 5),), True),
    "RecallClassifier": Case(lambda: models.RecallClassifier(4, 8, 2, dropout_rate=0.5, rngs=rngs()), (TOKENS,), True),
    "Seq2Seq": Case(
        lambda: models.Seq2Seq(4, 4, embedding_features=6, hidden_features=6, dropout_rate=0.5, rngs=rngs()),
        (TOKENS, TOKENS),
        True,
    ),
    "DigitsClassifier": Case(
        lambda: models.DigitsClassifier(features=8, num_heads=2, num_layers=2, dropout_rate=0.5, rngs=rngs()),
        (normal(2, 8, 8),),
        True,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def first(outputs: Any) -> jax.Array:
    return jax.tree.leaves(outputs)[0]


@nnx.jit
def called(module: Any, *inputs: Any, **rng: Any) -> jax.Array:
    """The first output. Without jit each of a module's operations would be compiled by itself."""
    return first(module(*inputs, **rng))


def test_eval_mode_needs_no_rng_and_draws_nothing(case: Case) -> None:
    module = case.make()
    module.eval()
    once, again = called(module, *case.inputs), called(module, *case.inputs)
    np.testing.assert_array_equal(once, again)
    assert bool(jnp.isfinite(once).all())


def test_training_mode_asks_for_an_rng_and_repeats_with_it(case: Case, unchecked: None) -> None:
    module = case.make()
    if not case.drops:
        called(module, *case.inputs)
        return
    with pytest.raises(ValueError, match=r"rng must be given when dropout_rate is above 0\. Got None"):
        module(*case.inputs)
    a, b, c = (called(module, *case.inputs, rng=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    module.eval()
    assert not np.array_equal(a, called(module, *case.inputs))


def test_a_call_changes_nothing_in_the_module(case: Case) -> None:
    module = case.make()
    before = nnx.split(module)
    called(module, *case.inputs, **({"rng": jax.random.key(0)} if case.drops else {}))
    after = nnx.split(module)
    assert before[0] == after[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, before[1], after[1]))


def test_jit_grad_and_vmap_of_a_merged_module_in_training(case: Case) -> None:
    module = case.make()
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    dropout = (lambda rng: {"rng": rng}) if case.drops else (lambda rng: {})

    def loss(parameters: Any, rng: jax.Array) -> jax.Array:
        return jnp.sum(first(nnx.merge(graph, parameters, rest)(*case.inputs, **dropout(rng))) ** 2)

    rng = jax.random.key(3)
    compiled = jax.jit(jax.value_and_grad(loss))
    value, gradients = compiled(parameters, rng)
    np.testing.assert_allclose(value, loss(parameters, rng), rtol=1e-5)  # jit reorders float32 sums
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
    three = jax.random.split(rng, 3)
    several = jax.jit(jax.vmap(loss, (None, 0)))(parameters, three)
    np.testing.assert_allclose(several[1], compiled(parameters, three[1])[0], rtol=1e-5)  # likewise


def test_every_parameter_matters(case: Case) -> None:
    module = case.make()
    module.eval()
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    shape = nnx.eval_shape(lambda module: first(module(*case.inputs)), module).shape
    weigh = normal(*shape)  # a plain sum of a softmax or a norm would be constant

    def loss(parameters: Any) -> jax.Array:
        return jnp.sum(weigh * first(nnx.merge(graph, parameters, rest)(*case.inputs)))

    for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(parameters)):
        # Softmax does not see what all keys share, so a key's bias has no effect, and no gradient.
        if path[-2:] != ("key", "bias"):
            assert float(np.abs(gradient[...]).max()) > 0, path


@pytest.mark.parametrize("setting", ["rank_promotion", "dtype_promotion"])
def test_nothing_is_promoted_unasked(case: Case, setting: str) -> None:
    module = case.make()
    rng = {"rng": jax.random.key(0)} if case.drops else {}
    with SETTINGS[setting]():
        nnx.eval_shape(lambda module: first(module(*case.inputs, **rng)), module)


def test_float64_in_float64_out(case: Case, x64: None) -> None:
    module = case.make()
    module.eval()
    graph, state = nnx.split(module)

    def wide(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    output = jax.eval_shape(
        lambda state, inputs: first(nnx.merge(graph, state)(*inputs)), *jax.tree.map(wide, (state, case.inputs))
    )
    assert output.dtype == jnp.float64


def test_parameter_tree_of_multi_head_attention_is_flax_s() -> None:
    options = dict(num_heads=4, in_features=8, qkv_features=16, out_features=6, num_kv_heads=2)
    ours = nn.MultiHeadAttention(**options, use_bias=True, normalize_qk=True, rngs=rngs())
    flax_s = nnx.MultiHeadAttention(**options, use_bias=True, normalize_qk=True, decode=False, rngs=nnx.Rngs(1))
    theirs = nnx.state(flax_s, nnx.Param)

    def shapes(state: Any) -> dict[Any, Any]:
        return {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}

    assert shapes(nnx.state(ours, nnx.Param)) == shapes(theirs)
    nnx.update(ours, theirs)
    mask = jnp.tril(jnp.ones((5, 5), bool))
    # The two order float32 sums differently.
    np.testing.assert_allclose(
        nnx.jit(lambda ours: ours(X, mask=masks.causal()))(ours),
        nnx.jit(lambda flax_s: flax_s(X, mask=mask[None, None], deterministic=True))(flax_s),
        atol=1e-5,
    )


def test_a_view_in_eval_mode_drops_nothing() -> None:
    block = nn.TransformerBlock(2, 8, 16, dropout_rate=0.5, attention_dropout_rate=0.5, rngs=rngs())
    view = nnx.view(block, deterministic=True)
    block.eval()
    np.testing.assert_array_equal(view(X), block(X))


def test_seq2seq_ignores_what_follows_the_valid_lengths() -> None:
    model = models.Seq2Seq(9, 9, rngs=rngs())
    model.eval()
    lens = jnp.array([3, 5])
    run = nnx.jit(lambda model, source: model(source, TOKENS, lens, return_weights=True))
    a, weights = run(model, TOKENS)
    np.testing.assert_array_equal(a, run(model, TOKENS.at[0, 3:].set(8))[0])
    assert float(weights[0, :, 3:].max()) == 0


def test_seq2seq_step_by_step_is_the_whole() -> None:
    model = models.Seq2Seq(9, 9, rngs=rngs())
    model.eval()
    lens = jnp.array([3, 5])
    whole, whole_weights = nnx.jit(lambda model: model(TOKENS, TOKENS, lens, return_weights=True))(model)
    state = model.encoder(TOKENS, lens)
    step = nnx.jit(lambda decoder, tokens, state: decoder.step(tokens, state))
    for i in range(5):
        logits, state, weights = step(model.decoder, TOKENS[:, i], state)
        # A scan and single steps are compiled separately, so float32 sums may differ in order.
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)
        np.testing.assert_allclose(weights, whole_weights[:, i], atol=1e-5)


def test_recall_without_positions_cannot_order() -> None:
    model = models.RecallClassifier(4, 8, 2, positions=False, rngs=rngs())
    model.eval()
    shuffled = TOKENS[:, jnp.array([2, 0, 3, 1, 4])]
    np.testing.assert_allclose(model(TOKENS), model(shuffled), atol=1e-6)  # sums in another order


def test_rotary_scores_depend_on_the_distance_only() -> None:
    query, key = jnp.broadcast_to(normal(1, 1, 8), (6, 1, 8)), jnp.broadcast_to(normal(1, 2, 8)[:, :1], (6, 1, 8))
    scores = jnp.einsum("thd,shd->ts", nn.rotary(query), nn.rotary(key))
    for distance in range(-5, 6):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, np.full_like(diagonal, diagonal[0]), atol=1e-5)  # float32 sines


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "heads and width": (
        lambda: nn.MultiHeadAttention(3, 8, rngs=rngs()),
        r"num_heads must be a positive divisor of qkv_features, 8\. Got 3\.",
    ),
    "kv heads": (
        lambda: nn.MultiHeadAttention(4, 8, num_kv_heads=3, rngs=rngs()),
        r"num_kv_heads must be a positive divisor of num_heads, 4\. Got 3\.",
    ),
    "dropout rate": (
        lambda: nn.MultiHeadAttention(4, 8, dropout_rate=1.0, rngs=rngs()),
        r"dropout_rate must lie in \[0, 1\), a Python number\. Got 1\.0\.",
    ),
    "input width": (
        lambda: nn.MultiHeadAttention(4, 8, rngs=rngs())(normal(2, 5, 9)),
        r"query must have 8 features on its last axis\. Got shape \(2, 5, 9\)\.",
    ),
    "key width": (
        lambda: nn.AdditiveAttention(8, 6, 4, rngs=rngs())(X, MEMORY, MEMORY),
        r"key must have 6 features on its last axis\. Got shape \(2, 7, 8\)\.",
    ),
    "memory missing": (
        lambda: nn.TransformerBlock(2, 8, 16, cross_attention=True, rngs=rngs())(X),
        r"memory must be given to a block with cross_attention=True\. Got None\.",
    ),
    "memory unused": (
        lambda: nn.TransformerBlock(2, 8, 16, rngs=rngs())(X, MEMORY),
        r"memory must be None for a block with cross_attention=False\. Got one\.",
    ),
    "norm": (
        lambda: nn.TransformerBlock(2, 8, 16, norm="middle", rngs=rngs()),
        r"norm must be one of 'post', 'pre', 'sandwich', 'branch'\. Got 'middle'\.",
    ),
    "activation": (
        lambda: nn.FeedForward(8, 16, activation="swish", rngs=rngs()),
        r"activation must be one of 'relu', 'gelu', 'gelu_tanh', 'silu'\. Got 'swish'\.",
    ),
    "too long": (
        lambda: nn.LearnedPositions(4, 8, rngs=rngs())(X),
        r"x must have at most max_length = 4 positions\. Got 5\.",
    ),
    "rotary positions": (
        lambda: nn.rotary(normal(5, 1, 8), jnp.arange(1)),
        r"positions must have shape \(5,\) or \(5,\)\. Got \(1,\)\.",
    ),
    "integers": (lambda: nn.SinusoidalPositions(8)(TOKENS), r"x must be floating point\. Got int32\."),
    "a stream of keys": (
        lambda: nn.MultiHeadAttention(4, 8, dropout_rate=0.1, rngs=rngs())(X, rng=nnx.Rngs(0)),
        r"rng must be a jax\.random\.key\. Got Rngs[\s\S]*Pass rngs\.dropout\(\)\.",
    ),
    "a seed": (
        lambda: nn.TransformerBlock(2, 8, 16, dropout_rate=0.1, rngs=rngs())(X, rng=0),
        r"rng must be a jax\.random\.key\. Got 0\.",
    ),
    "a mask for lengths": (
        lambda: nn.MultiHeadAttention(4, 8, rngs=rngs())(X, X, X, masks.causal()),
        r"valid_lens must be an array\. Got Causal",
    ),
    "batches of source and target": (
        lambda: models.Seq2Seq(4, 4, rngs=rngs())(TOKENS, TOKENS[:1], rng=jax.random.key(0)),
        r"target must have the source's batch, 2\. Got shape \(1, 5\)\.",
    ),
    "odd rotary": (
        lambda: nn.rotary(normal(5, 1, 7)),
        r"x must have an even number of features for rotary positions\. Got 7\.",
    ),
    "GRU state": (
        lambda: nn.GRU(8, 6, 2, rngs=rngs())(X, normal(1, 2, 6)),
        r"state must have shape \(2, 2, 6\), the axes l b n\. Got \(1, 2, 6\)\.",
    ),
    "GRU lengths": (
        lambda: nn.GRU(8, 6, rngs=rngs())(X, valid_lens=jnp.array([5, 6])),
        r"valid_lens must lie between 0 and the number of positions, 5\. Got 6\.",
    ),
    "observations in part": (
        lambda: nn.NadarayaWatson(normal(3)),
        r"keys and values must be given together\. Got only one of them\.",
    ),
    "no observations": (
        lambda: nn.NadarayaWatson()(normal(3)),
        r"key and value must be given to a module made without keys and values\. Got None\.",
    ),
    "leave one out of others": (
        lambda: nn.NadarayaWatson(normal(4), normal(4))(normal(3), leave_one_out=True),
        r"query must be the keys themselves when leave_one_out=True\. Got shape \(3,\)",
    ),
    "token out of range": (
        lambda: models.RecallClassifier(4, 8, 2, rngs=rngs())(TOKENS + 1, rng=jax.random.key(0)),
        r"tokens must lie between 0 and 3, the vocabulary\. Got 4\.",
    ),
    "tokens as floats": (
        lambda: models.RecallClassifier(4, 8, 2, rngs=rngs())(TOKENS * 1.0, rng=jax.random.key(0)),
        r"tokens must be integers, the numbers of tokens\. Got float32\.",
    ),
    "score": (
        lambda: models.Seq2Seq(4, 4, score="cosine", rngs=rngs()),
        r"score must be one of 'additive', 'dot'\. Got 'cosine'\.",
    ),
    "patch size": (
        lambda: models.DigitsClassifier(patch_size=3, rngs=rngs()),
        r"patch_size must be a positive divisor of image_size, 8\. Got 3\.",
    ),
    "image size": (
        lambda: CASES["DigitsClassifier"].make()(normal(2, 9, 9)),
        r"images must have shape \(b, 8, 8\)\. Got \(2, 9, 9\)\.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name: str, unchecked: None) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_feed_forward_drops_anew_at_each_place():
    """Hidden units and outputs that are as many: the same rng twice would drop the same ones."""
    network = nn.FeedForward(64, 64, dropout_rate=0.5, rngs=rngs())
    for linear in (network.linear1, network.linear2):
        linear.kernel[...] = jnp.eye(64)
    x = jnp.ones((1, 64))
    kept = np.asarray(network(x, rng=jax.random.key(0)))[0] > 0
    # Kept by both: a quarter; by one and the same, a half.
    assert 4 < kept.sum() < 26


@pytest.mark.parametrize("module", [nn.DotProductAttention(), nn.AdditiveAttention(8, 8, 6, rngs=rngs())])
def test_lengths_and_mask_both_hold(module):
    mask, lens = masks.sliding_window(1, 1), jnp.array([2, 5])
    both = module(X, MEMORY, MEMORY, valid_lens=lens, mask=mask, return_weights=True)[1]
    expected = module(X, MEMORY, MEMORY, mask=mask & masks.lengths(lens), return_weights=True)[1]
    np.testing.assert_array_equal(both, expected)
    assert not both[0, :, 2:].any()


@pytest.mark.parametrize("late", [4001, 601])
def test_late_positions_are_rounded_once(late):
    """Neither they nor their angles are bfloat16's."""
    in_full = nn.sinusoidal_positions(late + 1, 8)
    rounded = nn.sinusoidal_positions(late + 1, 8, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(rounded[late], in_full[late].astype(jnp.bfloat16))
