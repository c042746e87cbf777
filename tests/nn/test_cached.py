"""Layers and models from an empty cache on, where they attend among the new tokens alone, and from a shared prefix."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import biases, decoding, masks, models
from jattn.nn import MultiHeadAttention, Rotary, new_cache
from tests.test_cache import BLOCK, MODELS, drawn

T = 5
LEFT = np.arange(T) >= T - np.array([[5], [2], [0]])  # padding in front of 5, 2 and no tokens
RIGHT = LEFT[:, ::-1]


@pytest.fixture
def layer() -> MultiHeadAttention:
    return MultiHeadAttention(4, 8, num_kv_heads=2, rotary=Rotary(50.0), param_dtype=jnp.float64, rngs=nnx.Rngs(0))


PROMPTS: dict[str, dict[str, Any]] = {
    "padding on the left": {"real": LEFT},
    "padding on the right, a ring, int8": {"real": RIGHT, "window": 3, "dtype": jnp.int8},
    "for all examples, at positions given": {"real": RIGHT[1], "positions": np.arange(3, 3 + T)},
    "at positions given": {"positions": np.array([[0, 2, 4, 6, 8], [0, 1, 2, 3, 4], [3, 4, 5, 6, 9]])},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_an_empty_cache_is_not_looked_at(prompt: dict[str, Any], layer: MultiHeadAttention) -> None:
    """The same as from all slots, as when it isn't known to be empty: outputs, caches and gradients; without NaN for an
    example that has no token at all.
    """
    prompt = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in prompt.items()}
    window = prompt.pop("window", None)
    empty = new_cache(layer, (3,), 11, window=window, dtype=prompt.pop("dtype", jnp.float64))
    rule = {"mask": masks.causal(), "bias": biases.alibi(4)}
    if window is not None:
        rule["mask"] &= masks.sliding_window(window - 1, 0)
    x = drawn(3, T, 8)

    def run(x: Any, cache: Any) -> Any:
        def loss(x: Any) -> Any:
            out = layer(x, cache=cache, return_weights=True, **rule, **prompt)
            return (out.output**2).sum(), out

        return jax.grad(loss, has_aux=True)(x)

    gradient, known = jax.jit(lambda x: run(x, empty))(x)
    gradient_looked, looked = jax.jit(run)(x, empty)
    assert known.weights.shape == (3, 4, T, T)
    assert looked.weights.shape == (3, 4, T, 11 if window is None else window + T)
    np.testing.assert_allclose(known.output, looked.output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, gradient_looked, rtol=1e-12, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, known.cache, looked.cache)
    assert np.isfinite(known.output).all()
    assert np.isfinite(gradient).all()


@pytest.mark.whole
@pytest.mark.usefixtures("x64")
def test_a_prefix_is_read_once() -> None:
    """Three texts share four tokens, of which a window of three sees no more than the last two."""
    model = models.TextDecoder(23, features=8, **MODELS["rotary, a window"], param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.eval()
    texts = np.random.default_rng(0).integers(0, 23, (3, 8))
    texts[:, :4] = texts[0, :4]
    prefix = model(jnp.asarray(texts[:1, :4]), cache=model.new_cache(1, 8)).cache
    cache = tuple(one.reordered(jnp.zeros(3, int)) for one in prefix)
    assert decoding.reordered(prefix, jnp.zeros(3, int)) == cache
    step, outputs = jax.jit(lambda tokens, cache: model(tokens, cache=cache)), []
    for part in (slice(4, 6), slice(6, 8)):
        out = step(jnp.asarray(texts[:, part]), cache)
        cache = out.cache
        outputs.append(out.output)
    whole = jax.jit(model)(jnp.asarray(texts))[:, 4:]
    assert not np.allclose(whole[0], whole[1])
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, rtol=1e-11, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes.


def _layer(cache: Any = None, **arguments: Any) -> Any:
    """Of four heads of two features, two pairs of keys and values."""
    layer = MultiHeadAttention(4, 8, num_kv_heads=2, rngs=nnx.Rngs(0))
    return layer(jnp.ones((1, 2, 8)), cache=new_cache(layer, (1,), 4) if cache is None else cache, **arguments)


def _of_other(batch: tuple[int, ...] = (1,), features: int = 8, **other: Any) -> Any:
    return new_cache(MultiHeadAttention(4, features, rngs=nnx.Rngs(0), **other), batch, 4)


def _model(change: Callable[[Any], Any]) -> Any:
    """Of two blocks, the first of which sees three tokens."""
    model = models.TextDecoder(23, features=8, layers=[{**BLOCK, "window": 3}, BLOCK], rngs=nnx.Rngs(0))
    return model(jnp.ones((2, 3), int), cache=change(model))


THEIRS = "cache must hold keys (1, 2, 'n', 2) and values (1, 2, 'n', 2) of this layer and batch. Got "


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _layer(_of_other((3,), num_kv_heads=2)), THEIRS + "(3, 2, 'n', 2) and (3, 2, 'n', 2). Make it by"),
        (lambda: _layer(_of_other((), num_kv_heads=2)), THEIRS + "(2, 'n', 2) and"),
        (lambda: _layer(_of_other()), THEIRS + "(1, 4, 'n', 2) and (1, 4, 'n', 2). Make it by jattn.nn.new_cache."),
        (lambda: _layer(_of_other(features=12, num_kv_heads=2)), THEIRS + "(1, 2, 'n', 3) and"),
        (
            lambda: _layer(_of_other(num_kv_heads=2, value_head_features=5)),
            THEIRS + "(1, 2, 'n', 2) and (1, 2, 'n', 5).",
        ),
        (
            lambda: _layer((jnp.ones((1, 4, 2, 2)),) * 2),
            "cache must be a jattn.Cache, such as jattn.nn.new_cache makes.",
        ),
        (
            lambda: _layer(positions=jnp.array([0.5, 1.5])),
            "positions must be integers where there is a cache. Got float32.",
        ),
        (lambda: _layer(positions=jnp.array([[0], [1], [2]])), "positions must broadcast to (1, 2), the axes *b and"),
        (lambda: _layer(positions=jnp.array([-1, 0])), "positions must be 0 or more. Got -1."),
        (
            lambda: _layer(real=jnp.array([1, 0])),
            "real must be boolean, True where a token is no padding. Got int32.",
        ),
        (
            lambda: _layer(real=jnp.ones((2, 2), bool)),
            "real must have one entry for each of 2 tokens, (1, 2). Got shape (2, 2).",
        ),
        (
            lambda: _model(lambda model: model.new_cache(2, 9)[::-1]),
            "cache must keep what each block sees, all tokens in block 1. Got a ring of 3 slots there. Pass them in "
            "the order of new_cache.",
        ),
        (
            lambda: _model(lambda model: (new_cache(model.blocks[0].attention, (2,), 9, window=2),) * 2),
            "cache must keep what each block sees, 3 tokens in block 0. Got a ring of 2 slots there.",
        ),
        (
            lambda: _model(lambda model: model.new_cache(2, 2)),
            "cache must have room for 3 tokens. Got one of 2 slots. Make it larger by cache.grown(3).",
        ),
        (
            lambda: _model(lambda model: model.new_cache(2, 9, dtype=jnp.int32)),
            "dtype must be floating point or int8. Got int32.",
        ),
        (lambda: new_cache(MultiHeadAttention(2, 8, rngs=nnx.Rngs(0)), (1,), 4, window=0), "window must be an integer"),
    ],
)
def test_mistakes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
