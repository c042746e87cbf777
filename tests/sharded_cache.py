"""Decoding with caches that lie on four devices: python -m tests.sharded_cache. Says what is not as it should be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jattn
from jattn import Cache, masks
from tests.collectives import collectives

BY_HEAD, BY_EXAMPLE = PartitionSpec("examples", None, "heads"), PartitionSpec("examples")  # of tokens
HELD = PartitionSpec("examples", "heads")
KINDS: dict[str, dict[str, Any]] = {"all": {}, "a ring": {"ring": True}, "int8": {"dtype": jnp.int8}}


def step(cache: Cache, query: Any, keys: Any, values: Any) -> tuple[Any, Cache]:
    now = cache.append(keys, values)
    positions = {"query_positions": now.query_positions, "key_positions": now.positions}
    rule = masks.causal() & masks.sliding_window(3, 0) & now.used
    return jattn.attention(query, now.keys, now.values, mask=rule, **positions), now.cache


def specs_of(cache: Cache) -> Any:
    """By examples, and by heads what has them."""
    return jax.tree.map(lambda x: HELD if x.ndim > 2 else BY_EXAMPLE, cache)


def placed(x: Any, spec: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), x, spec)


def check(how: str, mesh: Mesh, **kind: Any) -> None:
    """Two tokens, then one and one more, beside one device."""
    alone = Cache.empty((4,), room=4, num_heads=2, features=6, value_features=5, **kind)
    specs = specs_of(alone)
    cache, run = placed(alone, specs, mesh), step
    if how == "shard_map":
        arrays = (BY_HEAD,) * 3
        run = jax.shard_map(step, mesh=mesh, in_specs=(specs, *arrays), out_specs=(BY_HEAD, specs))
    run = jax.jit(run, donate_argnums=0)
    numbers = np.random.default_rng(0)
    for t in (2, 1, 1):
        new = [jnp.asarray(numbers.standard_normal((4, t, h, d)), jnp.float32) for h, d in ((4, 6), (2, 6), (2, 5))]
        output, alone = jax.jit(step)(alone, *new)
        arguments = (cache, *(placed(x, BY_HEAD, mesh) for x in new))
        found = collectives(run.lower(*arguments).compile())
        assert not found, f"the devices wait for each other: {found}"
        on_devices, after = run(*arguments)
        assert all(x.is_deleted() for x in jax.tree.leaves(cache)), "a cache that was donated is still there"
        for x, spec in zip(jax.tree.leaves((on_devices, after)), jax.tree.leaves((BY_HEAD, specs)), strict=True):
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim), f"{x.sharding}, not {spec}"
        np.testing.assert_allclose(on_devices, output, rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, alone)
        cache = after


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    grid = jax.make_mesh((2, 2), ("examples", "heads"), axis_types=(AxisType.Auto, AxisType.Auto))
    for how in ("jit", "shard_map"):
        for name, kind in KINDS.items():
            check(how, grid, **kind)
            print(how, name)
