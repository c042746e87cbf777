"""Attention whose arrays lie in several processes, for `tests.processes.run`: its numbers, and what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn import attention, masks
from tests import processes
from tests.collectives import collectives
from tests.ingredients import normal


def main() -> None:
    processes.join()
    jax.config.update("jax_enable_x64", True)
    n = jax.device_count()
    tokens = [normal(i, n, 20, 4, 6) for i in range(3)]
    lens = jnp.arange(n) + 5

    def f(query: jax.Array, key: jax.Array, value: jax.Array, lens: jax.Array) -> jax.Array:
        return attention(query, key, value, mask=masks.causal() & masks.lengths(lens), implementation="streaming")

    def both(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        output, pull = jax.vjp(f, *arrays)
        return output, *pull(jnp.cos(output))[:3]

    expected = jax.jit(both)(*tokens, lens)
    for axis_type in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((n,), ("data",), axis_types=(axis_type,))
        by_example = NamedSharding(mesh, PartitionSpec("data"))
        # Each process has its own part of what all of them know.
        given = [jax.make_array_from_callback(x.shape, by_example, lambda i, x=x: x[i]) for x in (*tokens, lens)]
        compiled = jax.jit(both).lower(*given).compile()
        assert not collectives(compiled)
        for x, y in zip(compiled(*given), expected, strict=True):
            assert not x.is_fully_addressable or jax.process_count() == 1
            for shard in x.addressable_shards:
                np.testing.assert_allclose(shard.data, y[shard.index], rtol=1e-10)
        print(axis_type.name, n, "devices")


if __name__ == "__main__":
    main()
