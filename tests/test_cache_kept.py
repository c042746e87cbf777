"""Caches whose memory is used again, that lie on several devices, and that are written to disk: decoding goes on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import Cache, masks
from jattn.training.checkpoints import numbered_leaves, with_leaves
from tests import processes
from tests.test_cache import drawn

KINDS: dict[str, dict[str, Any]] = {
    "a ring of int8": {"ring": True, "dtype": jnp.int8},
    "all, in bfloat16": {"dtype": jnp.bfloat16},
    "a ring": {"ring": True},
    "int8": {"dtype": jnp.int8},
}


def empty(**kind: Any) -> Cache:
    return Cache.empty((2,), room=5, num_heads=2, features=4, value_features=3, **kind)


def step(cache: Cache, x: Any) -> tuple[Any, Cache]:
    """Attention of one further token, whose vectors are x."""
    now = cache.append(x, x[..., :3])
    positions = {"query_positions": now.query_positions, "key_positions": now.positions}
    return jattn.attention(x, now.keys, now.values, mask=masks.causal() & now.used, **positions), now.cache


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_donated_cache_is_written_in_place(kind: dict[str, Any]) -> None:
    x, cache = drawn(2, 1, 2, 4).astype(jnp.float32), jax.tree.map(jnp.array, empty(**kind))
    run = jax.jit(step, donate_argnums=0)
    memory = run.lower(cache, x).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    for _ in range(2):
        before = jax.tree.leaves(cache)
        where = sorted(leaf.unsafe_buffer_pointer() for leaf in before)
        _, cache = run(cache, x)
        assert all(leaf.is_deleted() for leaf in before)
        assert sorted(leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)) == where


@pytest.mark.whole
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_saved_and_restored(tmp_path: Path, kind: dict[str, Any], used: bool) -> None:
    """By orbax as it is, and as checkpoints number its leaves; one without tokens is still known to be empty."""
    import orbax.checkpoint as ocp

    x, cache = drawn(2, 3, 2, 4).astype(jnp.float32), empty(**kind)
    if used:
        cache = cache.append(x[:, :2], x[:, :2, :, :3]).cache
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "cache", cache)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "cache", empty(**kind))
    assert restored == cache
    assert restored.is_known_empty is not used
    assert with_leaves(empty(**kind), numbered_leaves(cache)) == cache
    output, after = step(restored, x[:, 2:])
    expected, expected_after = step(cache, x[:, 2:])
    np.testing.assert_array_equal(output, expected)
    assert after == expected_after


@pytest.mark.whole
def test_on_four_devices() -> None:
    """By examples and heads: no device waits for another, every array stays where it is, and is written in place."""
    assert len(processes.lines_of("tests.sharded_cache")) == 6
