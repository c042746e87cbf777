"""`jax.export`: symbolic batches and lengths, and the right program for every platform, also those not here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jattn
from jattn import biases, masks, models, nn, scores

PLATFORMS = ["cpu", "cuda", "tpu"]
H, K, D, E = 4, 2, 8, 6
HEADS = {"query": ("b", "t", H, D), "key": ("b", "s", K, D), "value": ("b", "s", K, E)}
POSITIONS = {"query_positions": ("b", "t"), "key_positions": ("b", "s")}


class Case(NamedTuple):
    f: Callable[..., Any]
    shapes: dict[str, tuple[Any, ...]]  # letters are symbols
    integers: Mapping[str, int] = MappingProxyType({})  # the arguments that are integers, and their upper bounds


def attend(**options: Any) -> Case:
    return Case(lambda query, key, value: jattn.attention(query, key, value, **options), HEADS)


def with_mask(mask: Callable[..., masks.Mask], shapes: dict[str, tuple[Any, ...]], most: int) -> Case:
    """Attention under a mask with data."""

    def f(query, key, value, **data):
        return jattn.attention(query, key, value, mask=mask(**data))

    return Case(f, HEADS | shapes, dict.fromkeys(shapes, most))


FUNCTIONS = {
    "plain": attend(),
    "causal": attend(mask=masks.causal()),
    "window": attend(mask=masks.sliding_window(3, 1)),
    "prefix": attend(mask=masks.causal() | masks.prefix(2)),
    "not": attend(mask=~masks.sliding_window(1, 1)),
    "where": attend(mask=masks.where(lambda q, k: (q + k) % 3 > 0)),
    "alibi, soft cap and sinks": attend(bias=biases.alibi(H), logits_soft_cap=3.0, sinks=jnp.arange(float(H))),
    "relative": attend(bias=biases.relative(jnp.arange(16.0 * H).reshape(16, H))),
    "modified": attend(score=scores.modified(lambda x, q, k: x / (1 + abs(q - k)))),
    "dropout": attend(dropout_rate=0.5, dropout_rng=jax.random.key(0)),
    "weights": attend(return_weights=True, mask=masks.causal()),
    "Gaussian": attend(score=scores.Gaussian(bandwidth=2.0)),
    "lengths": with_mask(lambda n: masks.lengths(n) & masks.causal(), {"n": ("b",)}, 5),
    "offsets": with_mask(lambda n: masks.causal(offset=n), {"n": ("b",)}, 5),
    "segments": with_mask(masks.segments, {"query_ids": ("b", "t"), "key_ids": ("b", "s")}, 2),
    "dense": with_mask(lambda n: masks.dense(n > 0), {"n": ("b", 1, 1, "s")}, 2),
    "bias": Case(lambda bias, **x: jattn.attention(**x, bias=bias), HEADS | {"bias": (H, "t", "s")}),
    "positions": Case(
        lambda **x: jattn.attention(**x, mask=masks.causal(), bias=biases.alibi(H)),
        HEADS | POSITIONS,
        dict.fromkeys(POSITIONS, 9),
    ),
    "drop-in": Case(
        lambda n, **x: jattn.dot_product_attention(**x, is_causal=True, key_value_seq_lengths=n),
        HEADS | {"n": ("b",)},
        {"n": 5},
    ),
    "gradient": Case(
        lambda query, key, value: jax.grad(
            lambda x: jnp.sum(jattn.attention(*x, mask=masks.causal(), sinks=jnp.ones(H)) ** 2)
        )((query, key, value)),
        HEADS,
    ),
    "attention_weights": Case(
        lambda query, key: jattn.attention_weights(query, key, mask=masks.causal(), heads=[3, 0]),
        {name: HEADS[name] for name in ("query", "key")},
    ),
    "attention_statistics": Case(
        lambda query, key: jattn.attention_statistics(query, key, mask=masks.causal()),
        {name: HEADS[name] for name in ("query", "key")},
    ),
    "additive_attention": Case(
        lambda query, key, value: jattn.additive_attention(
            query, key, value, jnp.ones((D, 20)), jnp.ones((D, 20)), jnp.ones(20)
        ),
        {"query": ("b", "t", D), "key": ("b", "s", D), "value": ("b", "s", E)},
    ),
    "nadaraya_watson": Case(
        jattn.nadaraya_watson, {"query": ("b", "t", D), "key": ("b", "s", D), "value": ("b", "s", E)}
    ),
    "nadaraya_watson of scalars": Case(
        lambda query, key, value: jattn.nadaraya_watson(query, key, value, kernel="boxcar"),
        {"query": ("t",), "key": ("s",), "value": ("s",)},
    ),
    "masked_softmax": Case(
        lambda logits, n: jattn.masked_softmax(logits, masks.lengths(n)),
        {"logits": ("b", "t", "s"), "n": ("b",)},
        {"n": 5},
    ),
}


def module(
    make: Callable[[nnx.Rngs], Any], shapes: dict[str, tuple[Any, ...]], integers: int = 0, **options: Any
) -> Case:
    """A module in eval mode; without integers its inputs are features, otherwise tokens below that number."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) / 2, state)

    def f(**x):
        merged = nnx.merge(graph, state)
        merged.eval()
        return merged(*(x[name] for name in shapes), **options)  # as jax.jit sorts a dictionary

    return Case(f, shapes, dict.fromkeys(shapes, integers) if integers else {})


X, Y, TOKENS = {"x": ("b", "t", 8)}, {"y": ("b", "s", 8)}, {"tokens": ("b", "t")}
TEXT = dict(vocab_size=11, features=8, num_heads=2, num_layers=1)
CAUSAL = dict(mask=masks.causal())
CLIP_BLOCK = dict(num_heads=2, feedforward_features=16, norm="pre")


def tiny(model: Any, **settings: Any) -> Callable[[nnx.Rngs], Any]:
    return lambda rngs: model(**TEXT, **settings, rngs=rngs)


MODULES = {
    "DotProductAttention": module(lambda rngs: nn.DotProductAttention(), X | Y | {"z": ("b", "s", 5)}),
    "AdditiveAttention": module(lambda rngs: nn.AdditiveAttention(8, 8, 4, rngs=rngs), X | Y | {"z": ("b", "s", 5)}),
    "MultiHeadAttention": module(lambda rngs: nn.MultiHeadAttention(4, 8, rngs=rngs), X | Y, return_weights=True),
    "MultiHeadAttention, rotary": module(
        lambda rngs: nn.MultiHeadAttention(2, 8, rotary_base=100.0, normalize_qk=True, rngs=rngs), X, **CAUSAL
    ),
    "WideMultiHeadSelfAttention": module(lambda rngs: nn.WideMultiHeadSelfAttention(8, 2, rngs=rngs), X),
    "NadarayaWatson": module(lambda rngs: nn.NadarayaWatson(), X | Y | {"z": ("b", "s", 5)}),
    "TransformerBlock": module(lambda rngs: nn.TransformerBlock(2, 8, 16, causal=True, rngs=rngs), X),
    "TransformerBlock with memory": module(
        lambda rngs: nn.TransformerBlock(2, 8, 16, norm="pre", cross_attention=True, rngs=rngs), X | Y
    ),
    "FeedForward": module(lambda rngs: nn.FeedForward(8, 16, rngs=rngs), X),
    "LayerNorm": module(lambda rngs: nn.LayerNorm(8, rngs=rngs), X),
    "RMSNorm": module(lambda rngs: nn.RMSNorm(8, rngs=rngs), X),
    "SinusoidalPositions": module(lambda rngs: nn.SinusoidalPositions(8), X),
    "LearnedPositions": module(lambda rngs: nn.LearnedPositions(64, 8, rngs=rngs), X),
    "GRU": module(lambda rngs: nn.GRU(8, 6, 2, rngs=rngs), X),
    "torch.MultiheadAttention": module(
        lambda rngs: nn.torch.MultiheadAttention(8, 2, batch_first=True, rngs=rngs), X | Y | {"z": ("b", "s", 8)}
    ),
    "torch.TransformerEncoder": module(
        lambda rngs: nn.torch.TransformerEncoder(
            nn.torch.TransformerEncoderLayer(8, 2, 16, batch_first=True, rngs=rngs), 1
        ),
        X,
    ),
    "torch.Transformer": module(lambda rngs: nn.torch.Transformer(8, 2, 1, 1, 16, batch_first=True, rngs=rngs), Y | X),
    "GPT2": module(tiny(models.GPT2, max_length=64), TOKENS, 11),
    "Llama": module(tiny(models.Llama, feedforward_features=16), TOKENS, 11),
    "CLIPText": module(
        lambda rngs: models.CLIPText(11, output_features=6, features=8, layers=[CLIP_BLOCK], max_length=64, rngs=rngs),
        TOKENS,
        11,
    ),
    "VisionEncoder": module(
        lambda rngs: models.VisionEncoder(
            image_size=8, patch_size=4, features=8, layers=[CLIP_BLOCK], output_features=5, rngs=rngs
        ),
        {"x": ("b", 8, 8, 3)},
    ),
    "Bert": module(tiny(models.Bert, feedforward_features=16, max_length=64), TOKENS, 11),
    "Seq2Seq": module(lambda rngs: models.Seq2Seq(11, 11, rngs=rngs), {"source": ("b", "s")} | TOKENS, 11),
    "RecallClassifier": module(lambda rngs: models.RecallClassifier(11, 8, 2, rngs=rngs), TOKENS, 11),
    "AttentionRegressor": module(lambda rngs: models.AttentionRegressor(8, rngs=rngs), {"x": ("b", "t")}),
    "TransformerRegressor": module(lambda rngs: models.TransformerRegressor(9, 8, 2, rngs=rngs), {"x": ("b", 9)}),
    "DigitsClassifier": module(
        lambda rngs: models.DigitsClassifier(features=8, num_layers=1, rngs=rngs), {"x": ("b", 8, 8)}
    ),
}


@pytest.mark.usefixtures("unchecked")  # jaxtyping can't compare symbols
@pytest.mark.parametrize("case", (FUNCTIONS | MODULES).values(), ids=FUNCTIONS | MODULES)
def test_symbolic_batch_and_lengths(case):
    """One program for any size, which the platform that it runs on picks."""
    constraints = ["t <= 20"] if any("t" in shape for shape in case.shapes.values()) else []  # the smallest table's
    symbols = dict(zip("bts", export.symbolic_shape("b, t, s", constraints=constraints), strict=True))
    dtypes = {name: jnp.int32 if name in case.integers else jnp.float32 for name in case.shapes}
    given = {
        name: jax.ShapeDtypeStruct(tuple(symbols.get(n, n) for n in shape), dtypes[name])
        for name, shape in case.shapes.items()
    }
    exported = export.export(jax.jit(lambda x: case.f(**x)), platforms=PLATFORMS)(given)
    rng = np.random.default_rng(0)
    for sizes in ({"b": 1, "t": 6, "s": 5}, {"b": 3, "t": 5, "s": 7}):
        arrays = {}
        for name, shape in case.shapes.items():
            shape = tuple(sizes.get(n, n) for n in shape)
            drawn = rng.integers(0, case.integers[name], shape) if name in case.integers else rng.normal(size=shape)
            arrays[name] = jnp.asarray(drawn, dtypes[name])
        for x, y in zip(jax.tree.leaves(exported.call(arrays)), jax.tree.leaves(case.f(**arrays)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5 * (1 + np.abs(y).max()))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["LearnedPositions", "GPT2", "Bert"])
def test_a_symbol_beyond_the_positions(name):
    b, t = export.symbolic_shape("b, t")
    case = MODULES[name]
    ((argument, shape),) = case.shapes.items()
    given = jax.ShapeDtypeStruct((b, t, *shape[2:]), jnp.int32 if case.integers else jnp.float32)
    with pytest.raises(ValueError, match=r"must have at most max_length = 64 positions. Got t, a symbol .*t <= 64"):
        export.export(jax.jit(lambda x: case.f(**{argument: x})))(given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mask", [None, masks.causal(), masks.causal() & masks.lengths(jnp.array(300))])
def test_a_symbolic_batch_streams(mask):
    """With lengths that are known, blocks are cut, and no array holds all pairs."""
    (b,) = export.symbolic_shape("b")
    given = [jax.ShapeDtypeStruct((b, 400, heads, D), jnp.float32) for heads in (H, K, K)]

    def f(query, key, value):
        return jattn.attention(query, key, value, mask=mask)

    exported = export.export(jax.jit(f))(*given)
    assert f"{H}x400x400x" not in exported.mlir_module()
    rng = np.random.default_rng(0)
    for n in (1, 2):
        arrays = [jnp.asarray(rng.normal(size=(n, *x.shape[1:])), jnp.float32) for x in given]
        np.testing.assert_allclose(exported.call(*arrays), f(*arrays), atol=2e-6)


@pytest.mark.parametrize("platform", PLATFORMS[::-1])  # the last one first: that of this process proves nothing
def test_the_platform_of_the_program_decides(platform):
    """A processor takes one head after the other, an accelerator all at once, wherever the program is made."""
    x = jax.ShapeDtypeStruct((1, 1024, H, D), jnp.float32)

    def f(query, key, value):
        return jax.vjp(lambda *x: jattn.attention(*x, mask=masks.causal()), query, key, value)[1](query)

    text = export.export(jax.jit(f), platforms=[platform])(x, x, x).mlir_module()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all(("batching_dims" in line) == (platform != "cpu") for line in products)


def test_a_program_for_several_platforms_runs_here():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 400, H, D)), jnp.float32)

    def f(x):
        return jattn.attention(x, x, x, mask=masks.causal())

    exported = export.export(jax.jit(f), platforms=PLATFORMS)(x)
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(x), f(x), atol=1e-6)


def test_explain_knows_every_platform():
    x = jnp.ones((1, 1024, H, D))
    for platform in (None, *PLATFORMS):
        assert jattn.explain(x, x, x, platform=platform).implementation == "streaming"
    with pytest.raises(ValueError, match=r"platform must be one of None, 'cpu', 'cuda', 'rocm', 'tpu'. Got 'gpu'."):
        jattn.explain(x, x, x, platform="gpu")
