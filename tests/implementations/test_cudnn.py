"""How calls are put to NVIDIA's kernel: to a stand-in for it here, and to the kernel itself where there is a GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import attention, bind, masks, scores
from jattn._engine.platform import ACCELERATOR, platforms
from jattn.bound import Bound
from jattn.implementations import cudnn
from tests import ingredients
from tests.ingredients import integers

HOPPER = dataclasses.replace(ACCELERATOR, name="cuda", capability=9.0)

B, T, H, K, D = 2, 700, 4, 2, 8
own_kernel = jax.nn.dot_product_attention


def packed(seed: int, count: int, t: int) -> jax.Array:
    return jnp.sort(integers(seed, count, B, t))


def each_mask(t: int) -> ingredients.Masks:
    return ingredients.each_mask(B, H, t, t)


NAMED = {  # what the kernel has arguments for; the others it is given as arrays
    "none",
    "causal",
    "lower right",
    "window of the past",
    "lengths",
    "one length",
    "no keys",
    "prefix",
    "an example without keys",
    "causal and lengths",
    "window and lengths",
}
OTHERS = [name for name in each_mask(T) if name not in NAMED]


@pytest.fixture
def stand_in(monkeypatch, x64):
    """jax.nn's own attention in the kernel's place, with the kernel's demands and its zeros."""

    shapes: list[tuple[int, int, int]] = []  # n t s of each call

    def kernel(query, key, value, bias=None, mask=None, *, implementation, **named_arguments):
        assert implementation == "cudnn"
        t, s = query.shape[1], key.shape[1]
        shapes.append((query.shape[0], t, s))
        assert t % 2 == s % 2 == 0
        assert query.shape[0] == key.shape[0]
        assert mask is None or (mask.shape[1] in (1, H) and mask.shape[::2] == (len(query), t) and s % 128 == 0)
        assert mask is None or mask.shape[3] == s
        output = own_kernel(query, key, value, bias, mask, implementation="xla", **named_arguments)
        # By name, unlike by an array, a query may be left with nothing to attend to.
        first = (
            jnp.arange(t) - named_arguments["local_window_size"][0]
            if "local_window_size" in named_arguments
            else jnp.zeros(t)
        )
        lens = named_arguments.get("key_value_seq_lengths", jnp.array([s]))
        return jnp.where((first < lens[:, None])[:, :, None, None], output, 0)

    jax.clear_caches()
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(cudnn, "_SMALL", 0)
    yield shapes
    jax.clear_caches()


def inputs(t: int, dtype=jnp.float64) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(B, t, heads, D)), dtype) for heads in (H, K, K, H))


def with_gradients(f, query, key, value, cotangent):
    output, pull = jax.vjp(f, query, key, value)
    return output, *pull(cotangent)


def through_the_kernel(query, key, value, mask):
    return cudnn.Cudnn().run(bind(query, key, value, mask=mask).call, HOPPER).output


def arguments_of(mask, t: int):
    logits = bind(*inputs(t)[:2], mask=mask).call.logits
    return cudnn._arguments(logits)


def dense(query, key, value, mask):
    return attention(query, key, value, mask=mask, implementation="dense")


def assert_same(mask, arguments) -> None:
    """Output and gradients through the kernel, and dense; jax.nn's softmax is in float32."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, mask, *arguments):
        return with_gradients(lambda *x: f(*x, mask), *arguments)

    for x, y in zip(run(through_the_kernel, mask, *arguments), run(dense, mask, *arguments), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * (1 + np.abs(y).max()))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("t", [T, 77])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_masks_that_it_has_arguments_for(name, t):
    assert arguments_of(each_mask(t)[name], t) is not None
    assert_same(each_mask(t)[name], inputs(t))


# 77 is less than a block, and odd.
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("t", "name"), [*((T, name) for name in OTHERS), *((77, name) for name in ("offset", "segments", "array"))]
)
def test_masks_that_it_is_given_as_arrays(t, name):
    mask = each_mask(t)[name]
    assert arguments_of(mask, t) is None
    assert_same(mask, inputs(t))


@pytest.mark.parametrize("name", ingredients.each_bias(B, H, T, T))
def test_no_bias(name):
    call = bind(*half_inputs(), bias=ingredients.each_bias(B, H, T, T)[name]).call
    assert cudnn.Cudnn().refusal(call, HOPPER) == "it takes a bias of minus infinity for a number"


@pytest.mark.parametrize("name", ingredients.each_score(D))
def test_no_score_but_the_dot_product(name):
    score = ingredients.each_score(D)[name]
    refusal = cudnn.Cudnn().refusal(bind(*half_inputs(), score=score).call, HOPPER)
    assert (refusal is None) == (type(score) is scores.DotProduct)


def half_inputs():
    return inputs(T, jnp.bfloat16)[:3]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["offset", "window", "segments", "two segments", "array of heads"])
def test_a_few_blocks_at_a_time(monkeypatch, name):
    """As where masks and keys of all blocks would take much memory."""
    monkeypatch.setattr(cudnn, "_AT_ONCE", B * 512 * 512)
    assert_same(each_mask(1024)[name], inputs(1024))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.whole
def test_more_keys_than_queries_and_batch_axes(batch):
    rng = np.random.default_rng(0)
    shapes = [(500, H, D), (700, K, D), (700, K, D), (500, H, D)]
    arguments = [jnp.asarray(rng.normal(size=(*batch, *shape))) for shape in shapes]
    lens = jnp.asarray(rng.integers(0, 700, batch))
    assert_same(masks.causal_lower_right(500, 700), arguments)
    assert_same(masks.lengths(lens, per_query=False), arguments)
    assert_same(masks.causal(lens) & masks.sliding_window(50, 9, offset=lens), arguments)


@pytest.mark.whole
def test_mapped(stand_in):
    """Under vmap examples are added to the kernel's batch, also where the mask is the same for all."""
    arguments = inputs(600)
    for mask, axis in ((masks.sliding_window(30, 5), None), (packed(4, 20, 600), 0)):

        def run(f, query, key, value, cotangent, mask):
            mask = masks.segments(mask) if isinstance(mask, jax.Array) else mask
            return with_gradients(functools.partial(f, mask=mask), query, key, value, cotangent)

        mapped = jax.vmap(functools.partial(run, through_the_kernel), (0, 0, 0, 0, axis))
        del stand_in[:]
        results, expected = mapped(*arguments, mask), run(dense, *arguments, mask)
        counts = {n for n, _, _ in stand_in}
        assert {B * n for n in counts} & counts
        for x, y in zip(results, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * (1 + np.abs(y).max()))


def test_its_work_falls_with_the_mask(stand_in):
    x = jax.ShapeDtypeStruct((1, 8192, 1, 8), jnp.float32)
    jax.eval_shape(lambda q, k, v: through_the_kernel(q, k, v, masks.sliding_window(100, 100)), x, x, x)
    ((n, t, s),) = stand_in
    assert n * t == 8192
    assert s <= 512


# ----------------------------------------------------------------------------------------------------------------------
# The kernel itself.

on_gpu = pytest.mark.skipif(platforms()["cuda"].capability < 8, reason="it needs an NVIDIA GPU, Ampere or newer")


@on_gpu
@pytest.mark.parametrize("small", [0, cudnn._SMALL])
@pytest.mark.parametrize("t", [T, 77, 192])
@pytest.mark.parametrize("name", each_mask(T))
def test_the_kernel(monkeypatch, name, t, small):
    """Output and gradients of the kernel in bfloat16, which has 8 bits, and dense in float32."""
    monkeypatch.setattr(cudnn, "_SMALL", small)
    jax.clear_caches()
    mask, arguments = each_mask(t)[name], inputs(t, jnp.bfloat16)

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, *arguments):
        return with_gradients(lambda *x: f(*x, mask), *arguments)

    results = run(through_the_kernel, *arguments)
    with jax.default_matmul_precision("highest"):
        expected = run(dense, *(x.astype(jnp.float32) for x in arguments))
    for x, y in zip(results, expected, strict=True):
        np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=0, atol=2e-2 * np.abs(y).max())
    nothing = np.asarray(expected[0]) == 0  # to attend to
    assert not np.asarray(results[0])[nothing].any()


@on_gpu
def test_it_is_chosen():
    query, key, value, _ = inputs(128, jnp.bfloat16)
    for mask in each_mask(128).values():
        assert jattn.explain(query, key, value, mask=mask).implementation == "cudnn"
    call = dataclasses.replace(bind(query, key, value).call, xla_only=True)
    assert "XLA" in Bound(call).explain().refused["cudnn"]
    bias = jnp.zeros((B, H, 128, 128), jnp.bfloat16)
    assert "bias" in jattn.explain(query, key, value, bias=bias).refused["cudnn"]
