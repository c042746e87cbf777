"""Attention that goes on where a cache ends, chunk by chunk, beside one that keeps all in one tensor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jattn
import torch_ref
from jattn import Cache, masks, nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both
from torch_ref.cache import Cache as TorchCache

RNG = np.random.default_rng(0)
ARRAYS = {name: RNG.normal(size=(2, 7, h, d)) for name, h, d in (("query", 4, 6), ("key", 2, 6), ("value", 2, 5))}
CHUNKS = (3, 1, 1, 2)
FLOAT64 = ("float64",)


def ours(query: Any, key: Any, value: Any, *, window: int | None, int8: bool = False) -> Any:
    sizes = dict(room=window or 7, num_heads=2, features=6, value_features=5, dtype=jnp.int8 if int8 else key.dtype)
    cache, outputs, start = Cache.empty((2,), ring=window is not None, **sizes), [], 0
    rule = masks.causal() if window is None else masks.causal() & masks.sliding_window(window - 1, 0)
    for n in CHUNKS:
        part = slice(start, start + n)
        now = cache.append(key[:, part], value[:, part])
        positions = {"query_positions": now.query_positions, "key_positions": now.positions}
        outputs.append(jattn.attention(query[:, part], now.keys, now.values, mask=rule & now.used, **positions))
        cache, start = now.cache, start + n
    return jnp.concatenate(outputs, axis=1)


def theirs(query: Any, key: Any, value: Any, *, window: int | None, int8: bool = False) -> Any:
    cache, outputs, start = TorchCache(window, int8), [], 0
    for n in CHUNKS:
        part = slice(start, start + n)
        keys, values, t, s = cache.append(key[:, part], value[:, part])
        back = t[:, None] - s
        mask = (back >= 0) & (back < (window or 7))
        outputs.append(torch_ref.attention(query[:, part], keys, values, mask=mask))
        start += n
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("window", [None, 3])
def test_cache(parity: Parity, window: int | None) -> None:
    parity("Cache", ours, theirs, ARRAYS, {"window": window}, dtypes=DTYPES)


@pytest.mark.parametrize("window", [3, None])
def test_int8(parity: Parity, window: int | None) -> None:
    """No gradient comes back to keys and values on either side."""
    parity("Cache, int8", ours, theirs, ARRAYS, {"window": window, "int8": True}, dtypes=DTYPES)


@pytest.mark.parametrize("window", [4, None])
def test_int8_codes(window: int | None) -> None:
    """Bit for bit, of keys with a vector of zeros, and their scales."""
    keys, values = ARRAYS["key"].copy(), ARRAYS["value"]
    keys[1, 5, 0] = 0
    kept = TorchCache(window, int8=True)
    with jax.enable_x64(True):
        sizes = dict(room=window or 7, num_heads=2, features=6, value_features=5)
        cache = Cache.empty((2,), dtype=jnp.int8, ring=window is not None, **sizes)
        for i in range(7):
            cache = cache.append(*(jnp.asarray(x[:, i : i + 1]) for x in (keys, values))).cache
            kept.append(*(torch.as_tensor(x[:, i : i + 1]) for x in (keys, values)))
    order = np.argsort(cache.positions[0])
    found = [
        x.swapaxes(1, 2) for x in (cache.keys, cache.key_scales[..., None], cache.values, cache.value_scales[..., None])
    ]
    assert kept.kept is not None
    for mine, true in zip(found, kept.kept, strict=True):
        assert mine.dtype == true.numpy().dtype
        np.testing.assert_allclose(np.asarray(mine)[:, order], true, rtol=0 if mine.dtype == jnp.int8 else 1e-12)


def in_steps(module: Any, x: Any) -> Any:
    cache, outputs = nn.new_cache(module.attention, (2,), 7, dtype=x.dtype), []
    for i in range(7):
        out = module(x[:, i : i + 1], cache=cache)
        cache = out.cache
        outputs.append(out.output)
    return jnp.concatenate(outputs, axis=1)


def at_once(module: Any, x: Any) -> Any:
    return module(x)


def test_a_block_token_by_token(parity: Parity) -> None:
    """Beside the whole sequence at once; gradients of all parameters go through the cache."""
    modules = both(nn.TransformerBlock, 4, 8, 12, causal=True, norm="pre", num_kv_heads=2, rotary_base=50.0)
    parity("Cache", in_steps, at_once, {"x": RNG.normal(size=(2, 7, 8))}, **modules, dtypes=FLOAT64)
