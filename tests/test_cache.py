"""A cache gives what attention to the whole sequence gives, however it was filled."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import Cache, biases, masks, models
from jattn.nn import MultiHeadAttention, Norm, Rotary, TransformerBlock, new_cache

T = 11
CHUNKS = [[4, 1, 1, 5], [1] * T, [T], [2, 9]]
# Each with what the rule is, the room of the cache, and whether it is a ring.
CASES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "causal": ({"mask": masks.causal()}, T, False),
    "more room": ({"mask": masks.causal()}, 16, False),
    "a ring as long as the window": ({"mask": masks.causal() & masks.sliding_window(2, 2)}, 3, True),
    "a longer ring": ({"mask": masks.causal() & masks.sliding_window(2, 2)}, 5, True),
    "ALiBi": ({"mask": masks.causal(), "bias": biases.alibi(4)}, T, False),
    "soft cap, sinks": (
        {"mask": masks.causal(), "logits_soft_cap": 1.5, "sinks": np.array([0.1, -1.0, 2.0, 0.0])},
        T,
        False,
    ),
}


@pytest.fixture(autouse=True)
def _in_float64() -> Any:
    with jax.enable_x64(True):
        yield


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def in_chunks(cache: Cache, sizes: list[int], query: Any, key: Any, value: Any, **rule: Any) -> tuple[Any, Cache]:
    """Attention to what has come so far, chunk after chunk."""
    outputs, start = [], 0
    mask = rule.pop("mask")
    for n in sizes:
        part = slice(start, start + n)
        now = cache.append(key[:, part], value[:, part])
        positions = {"query_positions": now.query_positions, "key_positions": now.positions}
        outputs.append(jattn.attention(query[:, part], now.keys, now.values, mask=mask & now.used, **rule, **positions))
        cache, start = now.cache, start + n
    return jnp.concatenate(outputs, axis=1), cache


@pytest.mark.core
@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equal_to_the_whole(case: tuple[dict[str, Any], int, bool], sizes: list[int]) -> None:
    """Four heads of two pairs of keys and values, of other widths."""
    rule, room, ring = case
    rule = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in rule.items()}
    query, key, value = drawn(2, T, 4, 6), drawn(2, T, 2, 6), drawn(2, T, 2, 5)
    cache = Cache.empty((2,), room=room, num_heads=2, features=6, value_features=5, dtype=jnp.float64, ring=ring)
    run = jax.jit(lambda cache, *arrays: in_chunks(cache, sizes, *arrays, **rule))
    output, after = run(cache, query, key, value)
    expected = jattn.attention(query, key, value, **rule)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert after.keys.shape[2] == room
    np.testing.assert_array_equal(after.length, [T, T])


def test_scanned_and_mapped() -> None:
    query, key, value = (drawn(3, T, 2, 4) for _ in range(3))
    key, value = key + 1, value - 1
    empty = Cache.empty((), room=T, num_heads=2, features=4, dtype=jnp.float64)

    def of_one(*arrays: Any) -> Any:
        def step(cache: Cache, token: Any) -> Any:
            q, k, v = (x[None] for x in token)
            now = cache.append(k, v)
            positions = {"query_positions": now.query_positions, "key_positions": now.positions}
            return now.cache, jattn.attention(q, now.keys, now.values, mask=masks.causal() & now.used, **positions)[0]

        return jax.lax.scan(step, empty, arrays)[1]

    expected = jattn.attention(query, key, value, mask=masks.causal())
    np.testing.assert_allclose(jax.vmap(of_one)(query, key, value), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hostile", [np.nan, np.inf, 1e300])
def test_unused_slots_are_harmless(hostile: float) -> None:
    x = drawn(1, 3, 2, 4)
    empty = Cache.empty((1,), room=8, num_heads=2, features=4, dtype=jnp.float64)
    full = Cache(*(jnp.full_like(y, hostile) for y in (empty.keys, empty.values)), empty.positions, empty.length)

    def output(cache: Cache, x: Any) -> Any:
        return in_chunks(cache, [2, 1], x, x, x, mask=masks.causal())[0]

    np.testing.assert_array_equal(output(full, x), output(empty, x))
    gradients = [jax.grad(lambda x, cache=cache: (output(cache, x) ** 2).sum())(x) for cache in (full, empty)]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.core
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("ring", [False, True])
def test_padding_takes_no_slots(side: str, ring: bool) -> None:
    x, lens = drawn(2, 6, 1, 4), np.array([6, 3])
    real = np.arange(6) >= 6 - lens[:, None] if side == "left" else np.arange(6) < lens[:, None]
    placed = np.zeros((2, 6, 1, 4))
    for i, n in enumerate(lens):
        placed[i, real[i]] = x[i, :n]
    cache = Cache.empty((2,), room=4 if ring else 6, num_heads=1, features=4, dtype=jnp.float64, ring=ring)
    now = cache.append(jnp.asarray(placed), jnp.asarray(placed), real=jnp.asarray(real))
    np.testing.assert_array_equal(now.cache.length, lens)
    np.testing.assert_array_equal(np.asarray(now.query_positions)[real], np.concatenate([np.arange(n) for n in lens]))
    for i, n in enumerate(lens):
        kept = np.asarray(now.cache.positions[i])
        order = np.argsort(kept[kept >= 0])
        assert sorted(kept[kept >= 0]) == list(range(max(0, n - now.cache.room), n))
        held = np.asarray(now.cache.keys[i].swapaxes(0, 1))[kept >= 0][order]
        np.testing.assert_array_equal(held, np.asarray(x[i, max(0, n - now.cache.room) : n]))


@pytest.mark.core
def test_grown_keeps_what_is_there() -> None:
    x = drawn(1, 5, 1, 4)
    small = Cache.empty((1,), room=3, num_heads=1, features=4, dtype=jnp.float64)
    _, small = in_chunks(small, [3], x, x, x, mask=masks.causal())
    output, _ = in_chunks(small.grown(5), [2], x[:, 3:], x[:, 3:], x[:, 3:], mask=masks.causal())
    np.testing.assert_allclose(output, jattn.attention(x, x, x, mask=masks.causal())[:, 3:], rtol=1e-12)


@pytest.mark.core
@pytest.mark.parametrize("ring", [False, True])
def test_cropped_takes_tokens_back(ring: bool) -> None:
    """Also where examples take back other numbers; a ring has two slots more than its window."""
    x, wrong = drawn(2, 9, 1, 4), drawn(2, 2, 1, 4)
    mask = masks.causal() & masks.sliding_window(2, 2)
    empty = Cache.empty((2,), room=5 if ring else 12, num_heads=1, features=4, dtype=jnp.float64, ring=ring)
    _, cache = in_chunks(empty, [6], x[:, :6], x[:, :6], x[:, :6], mask=mask)
    tried = jnp.stack([wrong[0], jnp.stack([x[1, 6], wrong[1, 1]])])
    _, rejected = in_chunks(cache, [2], tried, tried, tried, mask=mask)
    back = rejected.cropped(jnp.array([6, 7]))
    np.testing.assert_array_equal(back.length, [6, 7])
    rest = jnp.stack([x[0, 6:8], x[1, 7:9]])
    output, _ = in_chunks(back, [1, 1], rest, rest, rest, mask=mask)
    expected = jattn.attention(x, x, x, mask=mask)
    np.testing.assert_allclose(output, jnp.stack([expected[0, 6:8], expected[1, 7:9]]), rtol=1e-12)
    program = jax.jit(lambda cache, length: cache.cropped(length).length)
    np.testing.assert_array_equal(program(back, jnp.array([-1, 9])), [0, 7])


@pytest.mark.core
@pytest.mark.parametrize(("ring", "dtype"), [(True, jnp.int8), (False, jnp.float64)])
def test_rewound_is_as_if_no_more_had_come(ring: bool, dtype: Any) -> None:
    """Also of a ring that has replaced all that it held; each example keeps another number of tokens."""
    x, kept = drawn(4, 9, 1, 4), [0, 1, 2, 3]
    empty = Cache.empty((4,), room=4 if ring else 12, num_heads=1, features=4, dtype=dtype, ring=ring)
    before = empty.append(x[:, :5], x[:, :5]).cache
    real = jnp.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]) == 1
    rejected = jnp.arange(4)[None, :, None, None] >= jnp.array(kept)[:, None, None, None]
    wrong = jnp.where(rejected, 1e9, x[:, 5:])
    back = before.append(wrong, wrong, real=real).cache.rewound(before, jnp.array(kept), since=4)
    expected = before.append(x[:, 5:], x[:, 5:], real=~rejected[..., 0, 0]).cache
    np.testing.assert_array_equal(back.length, [5, 6, 7, 8])
    jax.tree.map(np.testing.assert_array_equal, back, expected)


@pytest.mark.core
def test_reordered() -> None:
    x = drawn(3, 4, 1, 4)
    empty = Cache.empty((3,), room=6, num_heads=1, features=4, dtype=jnp.float64)
    _, cache = in_chunks(empty, [4], x, x, x, mask=masks.causal())
    other = cache.reordered(jnp.array([2, 2, 0]))
    np.testing.assert_array_equal(other.keys[:, 0, :4], x[jnp.array([2, 2, 0]), :, 0])


def test_kept_in_bfloat16() -> None:
    """As exact as keys and values that were rounded."""
    x = drawn(1, 5, 2, 4)
    cache = Cache.empty((1,), room=5, num_heads=2, features=4, dtype=jnp.bfloat16)
    layer = MultiHeadAttention(2, 8, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    out = layer(x.reshape(1, 5, 8), cache=cache, mask=masks.causal())
    assert out.cache.keys.dtype == jnp.bfloat16
    assert out.output.dtype == jnp.float64
    whole = layer(x.reshape(1, 5, 8), mask=masks.causal())
    error = float(jnp.abs(out.output - whole).max() / jnp.abs(whole).max())
    assert 0 < error < 2**-7


# ----------------------------------------------------------------------------------------------------------------------
# Modules and models.

BLOCK: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "feedforward_features": 12, "norm": "pre"}
ROTARY = {**BLOCK, "rotary": Rotary(50.0), "normalize_qk": "rms"}
MODELS: dict[str, dict[str, Any]] = {
    "rotary, a window": {"layers": [{**ROTARY, "window": 3}, ROTARY]},
    "learned": {"layers": [BLOCK], "max_length": T, "first_position": 2},
    "ALiBi": {"layers": [BLOCK, {**BLOCK, "window": 4}], "alibi": True},
    "experts": {"layers": [{**BLOCK, "experts": {"num_experts": 3, "experts_per_token": 2}}]},
}


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_models_go_on(kind: str, sizes: list[int]) -> None:
    types = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    model = models.TextDecoder(23, features=8, norm=Norm("rms"), **MODELS[kind], **types)
    model.eval()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 23, (2, T)))
    cache, start, outs = model.new_cache(2, T), 0, []
    for window, one in zip(model.windows, cache, strict=True):
        assert one.room == (window or T)
    for n in sizes:
        outs.append(model(tokens[:, start : start + n], cache=cache, return_hidden=True, return_weights=True))
        cache, start = outs[-1].cache, start + n
    whole = model(tokens, return_hidden=True)
    np.testing.assert_allclose(jnp.concatenate([x.output for x in outs], 1), whole.output, rtol=1e-11, atol=1e-12)
    for i, expected in enumerate(whole.hidden):
        np.testing.assert_allclose(jnp.concatenate([x.hidden[i] for x in outs], 1), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(outs[0].weights[0].sum(-1), 1, rtol=1e-12)


@pytest.mark.whole
def test_prompts_padded_on_either_side_go_on_alike() -> None:
    model = models.TextDecoder(23, features=8, **MODELS["learned"], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.eval()
    text, lens = np.random.default_rng(0).integers(0, 23, (2, 9)), np.array([5, 3])
    right = np.arange(5) < lens[:, None]
    for real in (right, right[:, ::-1]):
        prompt = np.zeros((2, 5), int)
        for i, n in enumerate(lens):
            prompt[i, real[i]] = text[i, :n]
        begun = model(jnp.asarray(prompt), attention_mask=jnp.asarray(real), cache=model.new_cache(2, T))
        rest = jnp.asarray(np.stack([text[i, n : n + 2] for i, n in enumerate(lens)]))
        gone_on = model(rest, cache=begun.cache).output
        for i, n in enumerate(lens):
            alone = model(jnp.asarray(text[i : i + 1, : n + 2]))[0]
            np.testing.assert_allclose(begun.output[i][real[i]], alone[:n], rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(gone_on[i], alone[n:], rtol=1e-11, atol=1e-12)


@pytest.mark.whole
def test_an_encoder_decoder_goes_on() -> None:
    side = {"layers": [{"num_heads": 2, "feedforward_features": 12}] * 2, "relative_buckets": 4, "relative_distance": 8}
    model = models.EncoderDecoder(23, features=8, encoder=side, decoder=side, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.eval()
    source, target = (jnp.asarray(np.random.default_rng(i).integers(0, 23, (2, n))) for i, n in ((0, 6), (1, 5)))
    memory, cache, outputs = model.project(model.encode(source)), model.new_cache(2, 5), []
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        out = model.decode(target[:, part], memory, cache=cache)
        cache = out.cache
        outputs.append(out.output)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), model(source, target), rtol=1e-11, atol=1e-12)


def test_donated_and_taken_apart() -> None:
    layer = TransformerBlock(2, 8, 12, causal=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    step = jax.jit(lambda state, x, cache: nnx.merge(graph, state)(x, cache=cache), donate_argnums=2)
    x, cache = drawn(1, 4, 8), new_cache(layer.attention, (1,), 4)
    outputs = []
    for i in range(4):
        out = step(state, x[:, i : i + 1], cache)
        leaves, structure = jax.tree.flatten(out.cache)
        cache = jax.tree.unflatten(structure, leaves)
        outputs.append(out.output)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), layer(x), rtol=1e-11, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes.


def _layer(**arguments: Any) -> Any:
    layer = MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    return layer(jnp.ones((1, 2, 8)), **{"cache": new_cache(layer, (1,), 4), **arguments})


def _append(shape: tuple[int, ...] = (1, 2, 2, 4), batch: int | None = None, **arguments: Any) -> Any:
    x = jnp.ones(shape)
    batch = shape[0] if batch is None else batch
    return Cache.empty((batch,), room=4, num_heads=2, features=4).append(x, x, **arguments)


def _model(**arguments: Any) -> Any:
    model = models.TextDecoder(23, features=8, layers=[BLOCK, BLOCK], rngs=nnx.Rngs(0))
    cache = model.new_cache(2, 4)
    changed = {"cache": cache, **{name: f(cache) for name, f in arguments.items()}}
    return model(jnp.ones((2, 3), int), **changed)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _append((1, 5, 2, 4)), "cache must have room for 5 tokens. Got one of 4 slots. Make it larger by"),
        (
            lambda: _append((1, 2, 3, 4)),
            "keys must have the axes (1, 't', 2, 4) of this cache. Got shape (1, 2, 3, 4).",
        ),
        (lambda: _append((3, 2, 2, 4), batch=1), "keys must have the axes (1, 't', 2, 4) of this cache."),
        (
            lambda: _append(real=jnp.ones((1, 3), bool)),
            "real must have one entry for each of 2 tokens, (1, 2). Got shape (1, 3).",
        ),
        (
            lambda: _append(positions=jnp.zeros((2, 2), int)),
            "positions must have one entry for each of 2 tokens, (1, 2). Got shape (2, 2).",
        ),
        (
            lambda: _append((1, 2, 2, 5)),
            "keys must have the axes (1, 't', 2, 4) of this cache. Got shape (1, 2, 2, 5).",
        ),
        (
            lambda: _append().cache.append(jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4))),
            "cache must have room for 5 tokens. Got one of 4 slots. Make it larger by cache.grown(5).",
        ),
        (
            lambda: _append().cache.append(jnp.ones((1, 1, 2, 4)), jnp.ones((1, 2, 2, 4))),
            "values must have the axes (1, 't', 2, 4) of this cache. Got shape (1, 2, 2, 4).",
        ),
        (
            lambda: _append().cache.append(jnp.ones((1, 1, 2, 4), int), jnp.ones((1, 1, 2, 4))),
            "keys must be floating point. Got int",
        ),
        (
            lambda: _append().cache.cropped(-1),
            "length must lie between 0 and 2, what the example has been given. Got -1.",
        ),
        (
            lambda: _append((2, 2, 2, 4)).cache.cropped(np.array([2, 3])),
            "length must lie between 0 and 2, what the example has been given. Got 3.",
        ),
        (
            lambda: _append().cache.cropped(jnp.array([1, 1])),
            "length must be one number for each example, (1,). Got shape (2,).",
        ),
        (lambda: _append().cache.cropped(jnp.array([1.0])), "length must be integers. Got float"),
        (lambda: jax.jit(lambda cache: cache.cropped(-2))(_append().cache), "length must be 0 or more. Got -2."),
        (
            lambda: _append((3, 2, 2, 4)).cache.reordered(jnp.array([0, 3])),
            "examples must lie between 0 and 2, the examples' numbers. Got 3.",
        ),
        (
            lambda: _append().cache.reordered(jnp.array([-1])),
            "examples must lie between 0 and 0, the examples' numbers.",
        ),
        (
            lambda: _append().cache.reordered(jnp.int32(0)),
            "examples must be integers on one axis. Got int32 of shape ().",
        ),
        (
            lambda: _append().cache.reordered(jnp.array([True])),
            "examples must be integers on one axis. Got bool of shape (1,).",
        ),
        (
            lambda: Cache.empty((), room=2, num_heads=1, features=4).reordered(jnp.array([0])),
            "cache must have a batch axis to be reordered. Got one of a single example.",
        ),
        (lambda: Cache.empty(2, room=2, num_heads=1, features=4), "batch must be a tuple, the lengths of the axes *b."),
        (
            lambda: Cache.empty((1,), room=2, num_heads=1, features=4, dtype=jnp.uint8),
            "dtype must be floating point or int8. Got uint8.",
        ),
        (lambda: _append().cache.grown(3), "room must be an integer in [4, inf). Got 3."),
        (
            lambda: Cache.empty((1,), room=2, num_heads=1, features=4, ring=True).grown(3),
            "cache must not be a ring to grow. Got one.",
        ),
        (lambda: Cache.empty((1,), room=0, num_heads=1, features=4), "room must be"),
        (
            lambda: (lambda ring: ring.rewound(ring, 0, since=4))(
                Cache.empty((1,), room=3, num_heads=1, features=4, ring=True)
            ),
            "since must be at most the 3 slots of a ring. Got 4.",
        ),
        (lambda: _layer(key=jnp.ones((1, 2, 8))), "key must be None where there is a cache"),
        (lambda: _layer(valid_lens=jnp.array([1])), "valid_lens must be None where there is a cache"),
        (lambda: _layer(cache=None, real=jnp.ones((1, 2), bool)), "real must be None without a cache"),
        (lambda: _model(cache=lambda cache: cache[:1]), "cache must be one for each of 2 blocks. Got 1."),
        (lambda: _model(cache=lambda cache: cache[0]), "cache must be what new_cache or an earlier call returned."),
        (
            lambda: _model(cache=lambda cache: tuple(one.reordered(jnp.array([0])) for one in cache)),
            "cache must be of 2 examples. Got one of shape (1,).",
        ),
    ],
)
def test_mistakes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
