"""What a multi-head layer and a block pass on: positions, biases, sinks, projected keys; and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import biases, masks, models, nn, scores
from tests.errors import raises

pytestmark = pytest.mark.usefixtures("x64")

T, M, H = 6, 8, 4


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def layer(**options) -> nn.MultiHeadAttention:
    made = nn.MultiHeadAttention(H, M, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    made.eval()
    return made


X = normal(0, 2, T, M).astype(float)


@pytest.mark.parametrize("rotary", [nn.Rotary(50.0), nn.Rotary(scaling=nn.LinearScaling(2.0), interleaved=True)])
def test_the_last_query_is_that_of_the_whole_pass(rotary):
    attend, x = layer(rotary=rotary, num_kv_heads=2), normal(0, 2, T, M)
    whole = attend(x, mask=masks.causal())
    last = attend(x[:, -2:], x, mask=masks.causal(), positions=jnp.arange(T - 2, T))
    np.testing.assert_allclose(last, whole[:, -2:], atol=1e-12)
    with pytest.raises(ValueError, match=r"^positions must be given .* 1 queries and 6 keys"):
        attend(x[:, -1:], x, mask=masks.causal_lower_right(1, T))
    with pytest.raises(ValueError, match=r"^positions must be given .* 1 queries and 6 keys"):
        attend(x[:, -1:], attend.project(x))


def test_padding_on_the_left_changes_nothing():
    """Positions begin where the text does, for rotary positions, a mask and a bias alike."""
    attend, x = layer(rotary_base=50.0), normal(0, T, M)
    alone = attend(x[2:], mask=masks.causal(), bias=biases.alibi(H))
    positions = jnp.maximum(jnp.arange(T) - 2, 0)
    real = masks.segments((jnp.arange(T) >= 2).astype(int))
    padded = attend(x, mask=masks.causal() & real, bias=biases.alibi(H), positions=positions)
    np.testing.assert_allclose(padded[2:], alone, atol=1e-12)


def test_fractional_positions_turn_and_mask_nothing():
    attend, x = layer(rotary_base=50.0), normal(0, T, M)
    halves = attend(x, positions=jnp.arange(T) / 2)
    doubled = layer(rotary=nn.Rotary(50.0, scaling=nn.LinearScaling(2.0)))(x)
    np.testing.assert_allclose(halves, doubled, atol=1e-12)


def test_projected_once():
    attend, memory = layer(normalize_qk="rms", use_bias=("key",)), normal(1, 2, 7, M)
    projected = attend.project(memory)
    for seed in (2, 3):
        query = normal(seed, 2, T, M)
        np.testing.assert_allclose(attend(query, projected), attend(query, memory), atol=1e-12)
    block = nn.TransformerBlock(H, M, 12, cross_attention=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = normal(0, 2, T, M)
    np.testing.assert_allclose(block(x, block.cross_attention.project(memory)), block(x, memory), atol=1e-12)


@pytest.mark.parametrize(
    "scaling",
    [nn.DynamicNTKScaling(2.0, 3), nn.LongRoPEScaling((1.0, 1.5), (2.0, 4.0), 3, 2.0)],
    ids=["dynamic", "long"],
)
def test_queries_and_keys_turn_by_one_length(scaling):
    """Also where the queries are a part of the sequence that doesn't reach as far."""
    attend, x = layer(qkv_features=16, rotary=nn.Rotary(scaling=scaling)), normal(0, 2, T, M)
    whole = attend(x, mask=masks.causal())
    part = attend(x[:, :2], x, positions=jnp.arange(2), mask=masks.causal())
    np.testing.assert_allclose(part, whole[:, :2], atol=1e-12)


def test_projected_keys_know_their_positions():
    attend, x, positions = layer(rotary_base=30.0), normal(0, 2, T, M), jnp.arange(T) + 4
    whole = attend(x, positions=positions, mask=masks.causal())
    memory = attend.project(x, positions=positions)
    np.testing.assert_allclose(attend(x, memory, positions=positions, mask=masks.causal()), whole, atol=1e-12)
    with pytest.raises(ValueError, match=r"^positions must be given"):
        attend(x, memory, mask=masks.causal())


def test_the_same_call_inside_of_jit():
    attend, x, positions = layer(rotary_base=9.0), normal(0, 2, T, M), 2 * jnp.arange(T)
    expected = attend(x, positions=positions)
    found = jax.jit(lambda q, k: attend(q, k, positions=positions, key_positions=positions))(x, x)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_is_passed_on():
    """The same as the function on the layer's own heads."""
    attend, x = layer(scale=0.7, logits_soft_cap=1.5, use_sinks=True), normal(0, 2, T, M)
    attend.sinks[...] = normal(5, H)
    score = scores.modified(lambda logits, q, k: jnp.where(k < q, 2 * logits, logits), scores.DotProduct(0.7))
    given = dict(bias=normal(4, H, T, T), head_gates=normal(6, H), implementation="dense")
    heads = [projection(x) for projection in (attend.query, attend.key, attend.value)]
    own = dict(logits_soft_cap=1.5, sinks=attend.sinks[...])
    output, weights = jattn.attention(*heads, **given, **own, scale=0.7, mask=masks.causal(), return_weights=True)
    found = attend(x, mask=masks.causal(), return_weights=True, **given)
    assert isinstance(found, nn.Outputs)
    np.testing.assert_allclose(found.output, attend.out(output), atol=1e-12)
    np.testing.assert_allclose(found.weights, weights, atol=1e-12)
    with pytest.raises(ValueError, match="scale must be None when score is given"):
        attend(x, score=score)
    attend.scale = None
    expected = attend.out(jattn.attention(*heads, **own, score=score))
    np.testing.assert_allclose(attend(x, score=score), expected, atol=1e-12)


def test_biases_one_by_one():
    attend = layer(use_bias=("query", "out"))
    have = [getattr(attend, name).bias is not None for name in ("query", "key", "value", "out")]
    assert have == [True, False, False, True]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "phrases"),
    [
        (lambda: layer(use_bias="query"), ("use_bias must be True, False or some of", "'query'")),
        (lambda: layer(use_bias=("q",)), ("use_bias must be True, False or some of", "('q',)")),
        (lambda: layer(normalize_qk="batch"), ("normalize_qk must be a jattn.nn.Norm", "'batch'")),
        (lambda: layer(qk_norm_over="tokens"), ("qk_norm_over must be one of 'head', 'width'",)),
        (
            lambda: layer(normalize_qk=True, qk_norm_over="width", qk_norm_shared=False),
            ('qk_norm_shared must be True where qk_norm_over="width"',),
        ),
        (lambda: layer(rotary=nn.Rotary(), rotary_base=5.0), ("rotary_base must be None where rotary is given",)),
        (lambda: layer(rotary=10000.0), ("rotary must be a jattn.nn.Rotary", "10000.0")),
        (lambda: layer(use_sinks="yes"), ("use_sinks must be True or False", "'yes'")),
        (lambda: nn.Norm("batch"), ("kind must be one of 'layer', 'rms'",)),
        (lambda: nn.Norm("rms", use_bias=True), ("use_bias must be False for an RMS norm",)),
        (lambda: nn.Norm("layer", scale_offset=1.0), ("scale_offset must be 0 for a layer norm",)),
        (lambda: nn.FeedForward(4, 8, activation="swish", rngs=nnx.Rngs(0)), ("activation must be one of", "'swish'")),
        (lambda: nn.FeedForward(4, 8, gated=1, rngs=nnx.Rngs(0)), ("gated must be True or False",)),
        (lambda: block(norm="middle"), ("norm must be one of 'post', 'pre', 'sandwich', 'branch'",)),
        (lambda: block(parallel=True), ('parallel must be False unless norm="pre"',)),
        (lambda: block(norm="pre", shared_norm=True), ("shared_norm must be False unless parallel=True",)),
        (
            lambda: block(norm="pre", parallel=True, shared_norm=True, first_norm=False),
            ("shared_norm must be False unless parallel=True, with a first norm",),
        ),
        (lambda: block(norm_kind="batch"), ("norm_kind must be a jattn.nn.Norm",)),
        (lambda: layer()(X, layer().project(X), X), ("value must be None where key holds projected values",)),
        (lambda: layer()(X, layer(num_kv_heads=1).project(X)), ("key must be what this layer's project returned", "1")),
        (lambda: layer()(X, layer(value_head_features=5).project(X)), ("key must be what this layer's project",)),
        (
            lambda: layer()(X, layer().project(X[:1])),
            ("key must be what this layer's project returned", "(1, 6, 4, 2)"),
        ),
        (lambda: layer()(X, X, positions=jnp.arange(T)), ("key_positions must be given", "leave key out")),
        (lambda: layer()(X, positions="abc"), ("positions must be a real number", "'abc'")),
        (lambda: layer()(X, positions=jnp.zeros(9)), ("positions must broadcast to (2, 6)", "(9,)")),
        (
            lambda: layer(rotary_base=9.0)(X, positions=jnp.arange(T) / 2, mask=masks.causal()),
            ("positions must be integers where a mask",),
        ),
        (lambda: layer(use_bias={"query": True}), ("use_bias must be True, False or some of",)),
        (lambda: layer(use_bias=[["query"]]), ("use_bias must be True, False or some of",)),
        (lambda: layer(qk_norm_epsilon=1e-3), ("qk_norm_epsilon must be None where normalize_qk is False",)),
        (lambda: layer(scale="a"), ("scale must be a real number", "'a'")),
        (lambda: layer(value_head_features=0), ("value_head_features must be an integer in [1, inf)", "0")),
        (lambda: nn.Norm("rms", scale_offset="a"), ("scale_offset must be a number", "'a'")),
        (lambda: nn.Norm("layer", use_bias="x"), ("use_bias must be True or False", "'x'")),
        (lambda: block(norm_kind=np.ones(2)), ("norm_kind must be a jattn.nn.Norm",)),
        (lambda: block(causal="yes"), ("causal must be True or False", "'yes'")),
        (lambda: block(attention_options={"use_bias": False}), ("attention_options must hold what", "use_bias")),
        (
            lambda: block(cross_attention=True, cross_attention_options={"rotary": None}),
            ("cross_attention_options must hold what", "rotary"),
        ),
        (
            lambda: block(cross_attention_options={"scale": 1.0}),
            ("cross_attention_options must be None for a block with cross_attention=False",),
        ),
        (lambda: nn.LayerNorm(4, rngs=nnx.Rngs(0))(jnp.ones((3, 1))), ("x must have 4 features", "(3, 1)")),
        (lambda: nn.RMSNorm(4, rngs=nnx.Rngs(0))(jnp.ones((3, 1))), ("x must have 4 features", "(3, 1)")),
        (lambda: nn.LayerNorm(4, rngs=nnx.Rngs(0))(jnp.ones((3, 4), int)), ("x must be floating point",)),
    ],
)
def test_mistakes_in_making(make, phrases):
    with raises(*phrases):
        make()


def block(**options) -> nn.TransformerBlock:
    return nn.TransformerBlock(H, M, 12, **options, rngs=nnx.Rngs(0))


MODELS = {
    "GPT2": lambda: models.GPT2(20, max_length=8, features=M, num_heads=2, num_layers=1, rngs=nnx.Rngs(0)),
    "Llama": lambda: models.Llama(20, features=M, num_heads=2, num_layers=1, feedforward_features=12, rngs=nnx.Rngs(0)),
    "Bert": lambda: models.Bert(
        vocab_size=20, features=M, num_heads=2, num_layers=1, feedforward_features=12, rngs=nnx.Rngs(0)
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_mask_of_tokens_is_no_lengths(make):
    model, tokens = make(), jnp.ones((2, T), int)
    mask = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with raises("valid_lens must be one number for each example, shape (2,). Got shape (2, 6)", "mask.sum(-1)"):
        model(tokens, valid_lens=mask)
    model.eval()
    assert model(tokens, valid_lens=mask.sum(-1)).shape[:2] == (2, T)


def test_options_of_the_attention_to_a_memory():
    """T5 has no scale in either attention, and heads as wide as it likes."""
    options = {"scale": 1.0, "qkv_features": 2 * M}
    block = nn.TransformerBlock(H, M, 12, cross_attention=True, cross_attention_options=options, rngs=nnx.Rngs(0))
    x, memory = normal(0, 2, T, M).astype(jnp.float32), normal(1, 2, 9, M).astype(jnp.float32)
    _, (_, across) = block(x, memory, return_weights=True)
    assert block.cross_attention.query.kernel.shape == (M, H, 2 * M // H)
    attended = block.norm1(x + block.attention(x))
    expected = block.cross_attention(attended, memory, return_weights=True).weights
    np.testing.assert_allclose(across, expected, rtol=1e-5)
    query, key = (
        layer(y) for layer, y in ((block.cross_attention.query, attended), (block.cross_attention.key, memory))
    )
    np.testing.assert_allclose(across, jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key)), rtol=1e-5)


def test_stacked_blocks():
    """One compiled block for all layers, by nnx.scan; and recomputed in the backward pass, by nnx.remat."""

    def stacked(layers: int):
        @nnx.split_rngs(splits=layers)
        @nnx.vmap
        def blocks(rngs: nnx.Rngs):
            return nn.TransformerBlock(H, M, 12, norm="pre", rotary_base=50.0, causal=True, rngs=rngs)

        return blocks(nnx.Rngs(0))

    blocks, x = stacked(3), normal(0, 2, T, M).astype(jnp.float32)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(one, x):
        return nnx.remat(lambda one, x: one(x))(one, x)

    graph, state = nnx.split(blocks)
    expected = x
    for i in range(3):
        expected = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))(expected)
    np.testing.assert_allclose(run(blocks, x), expected, atol=1e-5)
    gradients = nnx.grad(lambda blocks: (run(blocks, x) ** 2).sum())(blocks)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))

    def size(layers: int) -> int:
        graph, state = nnx.split(stacked(layers))
        loss = jax.value_and_grad(lambda state: run(nnx.merge(graph, state), x).sum())
        return len(jax.jit(loss).lower(state).as_text().splitlines())

    assert size(2) == size(32), "the program grows with the number of layers"
