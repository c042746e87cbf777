"""Parameters on eight devices, by named layouts: python -m tests.sharded_models. Says what is not as it should be."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn import models, nn, sharding

MOVED = re.compile(r"= (\w+)\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(")
TOKENS = np.arange(24).reshape(8, 3) % 16
MESHES: dict[str, dict[str, int]] = {
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "fsdp+tensor": {"fsdp": 2, "tensor": 4},
}


def mesh_of(axes: dict[str, int], kind: AxisType) -> Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def check_lookups(kind: str, mesh: Mesh) -> None:
    """Lookups and tied logits: the same numbers, and what is split over "tensor" is never brought together."""
    embed = nn.Embed(16, 8, padding_idx=3, scale=2.0, rngs=nnx.Rngs(0))
    expected = embed(jnp.asarray(TOKENS))
    expected_logits = embed.attend(expected)
    sharding.shard(embed, mesh, kind)
    over = sharding.mesh_axes_of("batch", mesh, kind)
    tokens = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec(over)))
    graph, state = nnx.split(embed)

    def run(state: Any, tokens: Any) -> tuple[Any, Any]:
        embed = nnx.merge(graph, state)
        x = embed(tokens)
        return x, embed.attend(x)

    compiled = jax.jit(run).lower(state, tokens).compile()
    for ours, theirs in zip(compiled(state, tokens), (expected, expected_logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    moved = [
        tuple(map(int, shape.split(","))) for dtype, shape in MOVED.findall(compiled.as_text() or "") if dtype == "f32"
    ]
    whole = [shape for shape in moved if set(shape) == {16, 8}]
    if "tensor" in kind:
        assert not whole, f"the table was brought together: {moved}"
    if kind == "tensor":
        assert not moved, f"something was moved: {moved}"
    if AxisType.Explicit in mesh.axis_types:
        x, logits = run(state, tokens)  # also outside of jit
        assert jax.typeof(logits).sharding.spec == PartitionSpec(over[0], None, "tensor" if "tensor" in kind else None)
        assert jax.typeof(x).sharding.spec[0] == over[0]


def check_model(kind: str, mesh: Mesh) -> None:
    """Two key and value heads on four devices stay whole; the model's logits are as on one device."""
    sizes: dict[str, Any] = dict(
        features=16, num_heads=4, num_kv_heads=2, num_layers=1, feedforward_features=32, tied=True
    )
    model: Any = models.Llama(16, **sizes, rngs=nnx.Rngs(0))
    graph = nnx.graphdef(model)
    expected = model(jnp.asarray(TOKENS))
    sharding.shard(model, mesh, kind)
    attention, network = model.blocks[0].attention, model.blocks[0].feed_forward
    split = {"fsdp": (8, 1), "tensor": (1, 4), "fsdp+tensor": (2, 4)}[kind]
    parameters: tuple[tuple[Any, int | None, int | None], ...] = (
        (attention.query.kernel, 0, 1),
        (attention.key.kernel, 0, None),
        (attention.out.kernel, 2, 0),
        (network.gate.kernel, 0, 1),
        (network.linear2.kernel, 1, 0),
        (model.embedding.embedding, 1, 0),
        (model.norm.scale, None, None),
    )
    for parameter, by_fsdp, by_tensor in parameters:
        here = list(parameter.shape)
        for axis, n in zip((by_fsdp, by_tensor), split, strict=True):
            if axis is not None:
                here[axis] //= n
        assert parameter.addressable_shards[0].data.shape == tuple(here), (parameter.shape, here, parameter.sharding)
    tokens = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec(sharding.mesh_axes_of("batch", mesh, kind))))
    run = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))
    np.testing.assert_allclose(run(nnx.state(model), tokens), expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    for kind, sizes in MESHES.items():
        for axis_type in (AxisType.Auto, AxisType.Explicit):
            check_lookups(kind, mesh_of(sizes, axis_type))
            print("lookups", kind, axis_type)
        check_model(kind, mesh_of(sizes, AxisType.Auto))
        print("model", kind)
