"""Attention on arrays that lie on four devices: python -m tests.implementations.on_a_mesh. Says what is not right.

Every mask, bias and score, all in one program: compiled for four devices it must not have them talk to each other, and
must give the numbers of one device, divided as the arguments are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn import attention, attention_statistics, attention_weights, masks
from jattn._engine.rule import Rule
from jattn._mask import as_mask
from jattn.biases import as_bias
from jattn.bound import LogitsOptions
from tests.collectives import collectives
from tests.ingredients import each_bias, each_mask, each_score, normal

B, T, S, H, D, E = 4, 20, 24, 12, 6, 5
DIVIDED = PartitionSpec("data", None, "model")  # tokens, by examples and heads
WHOLE_HEADS = PartitionSpec("data")
BY_HEAD = PartitionSpec("data", "model")  # *b h ...
AXES: dict[str, Any] = {"batch": 1, "b": ("data",), "h": "model"}
# A program runs once, so the one that is compiled fastest will do.
COMPILED: dict[str, Any] = {"xla_backend_optimization_level": 0}

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit, "shard_map": AxisType.Auto}

Arguments = dict[str, Any]


def each_argument() -> dict[str, Arguments]:
    """What attention is called with, beside query, key and value."""
    given: dict[str, Arguments] = {}
    for name, mask in each_mask(B, H, T, S).items():
        given[f"mask, {name}"] = {} if mask is None else {"mask": as_mask(mask)}
    given |= {f"bias, {name}": {"bias": as_bias(bias)} for name, bias in each_bias(B, H, T, S).items()}
    given |= {f"score, {name}": {"score": score} for name, score in each_score(D).items()}
    given["sinks"] = {"sinks": normal(50, H), "mask": masks.causal()}
    given["sinks of examples"] = {"sinks": normal(51, B, H)}
    given["soft cap"] = {"logits_soft_cap": 3.0}
    given["gates"] = {"head_gates": normal(52, H)}
    given["gates of examples"] = {"head_gates": normal(53, B, H)}
    given["positions"] = {"key_positions": jnp.arange(S)[::-1] + jnp.arange(B)[:, None], "mask": masks.causal()}
    for broadcast in (False, True):
        dropout = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(1), "broadcast_dropout": broadcast}
        given[f"dropout, {'the same' if broadcast else 'its own'} in all heads"] = dropout
    return given


def spec_of(name: str, x: Any) -> Any:
    """How an argument lies on the mesh."""
    if isinstance(x, Rule):
        return x.partition_specs(**AXES)
    if name in ("sinks", "head_gates"):
        return PartitionSpec("model") if x.ndim == 1 else PartitionSpec("data", "model")
    if name == "key_positions":
        return WHOLE_HEADS
    return jax.tree.map(lambda leaf: PartitionSpec(), x)


def outputs(given: dict[str, Arguments], query: Any, key: Any, value: Any, how: Any) -> dict[str, Any]:
    """By the arguments' name."""
    return {name: attention(query, key, value, implementation=how, **options) for name, options in given.items()}


def gradients(given: dict[str, Arguments], *arrays: Any, how: Any) -> dict[str, Any]:
    """Likewise, and the gradients of query, key and value."""

    def of(options: Arguments) -> Any:
        output, pull = jax.vjp(lambda *x: attention(*x, implementation=how, **options), *arrays)
        return output, *pull(jnp.cos(jnp.arange(E)) * jnp.ones_like(output))

    return {name: of(options) for name, options in given.items()}


def insights(given: dict[str, Arguments], query: Any, key: Any, value: Any, how: Any) -> dict[str, Any]:
    """Likewise, what else can be asked for."""
    known = {name: {k: x for k, x in by.items() if k in LogitsOptions.__annotations__} for name, by in given.items()}
    return {
        name: (attention_weights(query, key, **by), *attention_statistics(query, key, **by))
        for name, by in known.items()
    }


def split(given: dict[str, Arguments]) -> tuple[Any, Callable[[Any], dict[str, Arguments]]]:
    """What is an array among the arguments, and how to put it back."""
    known = {name: {k: x for k, x in by.items() if isinstance(x, float | bool)} for name, by in given.items()}
    rest = {name: {k: x for k, x in by.items() if k not in known[name]} for name, by in given.items()}
    return rest, lambda arrays: {name: arrays[name] | known[name] for name in given}


def check(mesh: Mesh, how: str, key_heads: int, given: dict[str, Arguments], kind: str) -> None:
    """All of it beside one device."""
    shared = key_heads % mesh.shape["model"] != 0
    keys = WHOLE_HEADS if shared else DIVIDED
    tokens = [normal(1, B, T, H, D), normal(2, B, S, key_heads, D), normal(3, B, S, key_heads, E)]
    arrays, whole = split(given)
    specs = {name: {k: spec_of(k, x) for k, x in by.items()} for name, by in arrays.items()}, [DIVIDED, keys, keys]
    there = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), (arrays, tokens), specs)
    results: dict[Any, Any] = {gradients: (DIVIDED, DIVIDED, keys, keys)}
    if shared:
        results[outputs] = DIVIDED
    elif kind != "shard_map":
        results[insights] = (BY_HEAD,) * 5
    for f, spec in results.items():
        run: Any = functools.partial(lambda f, arrays, tokens: f(whole(arrays), *tokens, how=how), f)
        expected = jax.jit(run, compiler_options=COMPILED)(arrays, tokens)
        out = dict.fromkeys(given, spec)
        if kind == "shard_map":
            run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out)
        compiled = jax.jit(run).lower(*there).compile(COMPILED)
        found = collectives(compiled)
        summed = f is gradients and shared  # over the devices that read the same key
        assert summed or not found, f"{f.__name__}: the devices wait for each other, {found}"
        result = compiled(*there)
        jax.tree.map_with_path(functools.partial(close, f.__name__), result, expected)
        if not summed:
            jax.tree.map_with_path(functools.partial(in_its_place, f.__name__, mesh), result, expected, out)


def close(function: str, path: Any, x: Any, y: Any) -> None:
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11, err_msg=f"{function}{jax.tree_util.keystr(path)}")


def in_its_place(function: str, mesh: Mesh, path: Any, x: Any, y: Any, spec: PartitionSpec) -> None:
    if np.all(y == y[:1]):  # what is the same for all examples may be computed everywhere
        return
    found = f"{function}{jax.tree_util.keystr(path)} lies as {x.sharding.spec}, not {spec}"
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim), found


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    given = {name: x for name, x in each_argument().items() if "Gaussian" not in name}
    few = {name: given[name] for name in ("mask, causal and lengths", "bias, ALiBi", "sinks", "score, dot product")}
    for i, (kind, axis_type) in enumerate(KINDS.items()):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
        # In a `shard_map` each device numbers its own weights.
        own = {name: x for name, x in given.items() if kind != "shard_map" or "dropout" not in name}
        if kind != "auto":  # a part runs as on one device, so these share the arguments
            own = dict(list(own.items())[i % 2 :: 2])
        check(mesh, "streaming", 4, own, kind)
        print(kind, "every argument" if kind == "auto" else "every second argument")
        if kind != "shard_map":
            check(mesh, "dense", 4, few | {name: x for name, x in own.items() if "dropout" in name}, kind)
            for key_heads in (1, 3):
                check(mesh, "streaming", key_heads, few, kind)
            print(kind, "dense, few key heads")


if __name__ == "__main__":
    main()
