"""A sequence over several devices beside one: python -m tests.divided_sequence SECTION. Says what is wrong.

Float64, so that what differs is a mistake. Each section is a function.
"""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__" and sys.argv[1] not in ("traffic", "memory"):
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # each program runs once

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn import attention, attention_statistics, attention_weights, biases, explain, masks
from jattn._mask import as_mask
from jattn.biases import as_bias
from jattn.sequence import reorder, restore, zigzag
from tests.collectives import collectives
from tests.ingredients import each_bias, each_mask, each_score, integers, normal

B, T, S, H, K, D, E = 2, 16, 24, 4, 2, 6, 5
METHODS = ("ring", "all_gather", "ulysses")  # python -m tests.divided_sequence SECTION METHOD tries one of them
ALONG, OF_ROWS = PartitionSpec(None, "seq"), PartitionSpec(None, None, "seq")
Options = dict[str, Any]


def mesh_of(kind: str, devices: int = 4, **others: int) -> Mesh:
    axis = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    shape = {**others, "seq": devices}
    count = int(np.prod([*shape.values()]))
    return jax.make_mesh(
        tuple(shape.values()), tuple(shape), axis_types=(axis,) * len(shape), devices=jax.devices()[:count]
    )


def tensors(t: int = T, s: int = S, k: int = K) -> Options:
    return {"query": normal(0, B, t, H, D), "key": normal(1, B, s, k, D), "value": normal(2, B, s, k, E)}


def specs_of(options: Options) -> Options:
    """How a device's part lies in the caller's own shard_map."""
    of: Options = dict.fromkeys(("query", "key", "value"), ALONG)
    of |= {"sinks": PartitionSpec(), "head_gates": PartitionSpec(), "score": PartitionSpec()}
    of |= {"query_positions": ALONG, "key_positions": ALONG, "dropout_rng": PartitionSpec()}

    def spec(name: str, x: Any) -> Any:
        if name in ("mask", "bias"):
            return x.partition_specs(batch=1, t="seq", s="seq")
        if name.endswith("positions") and x.ndim == 1:
            return PartitionSpec("seq")
        return jax.tree.map(lambda x: of[name], x)

    return {name: spec(name, x) for name, x in options.items()}


def is_learned(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)


def with_gradients(run: Any, arrays: Options, cotangent: Any) -> Any:
    """The output, and the gradients of all floating-point arrays."""
    leaves, structure = jax.tree.flatten(arrays)
    learned = {i: x for i, x in enumerate(leaves) if is_learned(x)}

    def of(learned: Any) -> Any:
        output = run(**jax.tree.unflatten(structure, [learned.get(i, x) for i, x in enumerate(leaves)]))
        return (output * cotangent).sum(), output

    (_, output), gradients = jax.value_and_grad(of, has_aux=True)(learned)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(arrays)]
    return {"output": output} | {names[i]: x for i, x in gradients.items()}


def split(options: Options) -> tuple[Options, Options]:
    """The arrays, and what is known."""
    given = {name: x for name, x in options.items() if x is not None}
    for name, as_rule in (("mask", as_mask), ("bias", as_bias)):
        if name in given:
            given[name] = as_rule(given[name])
    known = {name: x for name, x in given.items() if isinstance(x, str | int | float)}
    return {name: x for name, x in given.items() if name not in known}, known


@functools.cache
def _alone(known: tuple[Any, ...]) -> Any:
    return jax.jit(
        lambda arrays, cotangent: with_gradients(functools.partial(attention, **dict(known)), arrays, cotangent)
    )


def alone(options: Options, cotangent: Any) -> Any:
    """On one device."""
    arrays, known = split(options)
    return _alone(tuple(known.items()))(arrays, cotangent)


def divided(how: str, mesh: Mesh, implementation: str | None, options: Options, cotangent: Any, axis: Any) -> Any:
    """On the devices of a mesh."""
    arrays, known = split(options)
    known = known | {"implementation": implementation}
    if how == "explicit":
        tokens = {name: jax.device_put(arrays[name], NamedSharding(mesh, ALONG)) for name in ("query", "key", "value")}
        cotangent = jax.device_put(cotangent, NamedSharding(mesh, ALONG))
        run = functools.partial(attention, **known)
        with jax.set_mesh(mesh):
            return jax.jit(functools.partial(with_gradients, run))(arrays | tokens, cotangent)
    if how == "automatic":
        run = functools.partial(attention, **known, sequence_axis=axis)
        with jax.set_mesh(mesh):
            return jax.jit(functools.partial(with_gradients, run))(arrays, cotangent)

    def run_parts(**arrays: Any) -> Any:
        part = functools.partial(attention, **known, sequence_axis=axis)
        specs = specs_of(arrays)
        return jax.shard_map(lambda x: part(**x), mesh=mesh, in_specs=(specs,), out_specs=ALONG)(arrays)

    return jax.jit(functools.partial(with_gradients, run_parts))(arrays, cotangent)


def same(what: str, found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        scale = 1 + np.abs(x).max()
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-12 * scale, err_msg=f"{what}: {name}")


def compare(
    what: str,
    options: Options,
    *,
    hows: tuple[str, ...] = ("automatic",),
    methods: tuple[Any, ...] | None = None,
    devices: int = 4,
    tokens: Options | None = None,
    **others: int,
) -> None:
    options = (tensors() if tokens is None else tokens) | options
    cotangent = normal(9, *options["query"].shape[:-1], E)
    expected = alone(options, cotangent)
    for how in hows:
        mesh = mesh_of(how, devices, **others)
        for method in METHODS if methods is None else methods:
            same(f"{what}, {how}, {method}", divided(how, mesh, method, options, cotangent, "seq"), expected)
    print(what, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# Sections.

ALL_WAYS = ("automatic", "explicit", "shard_map")


def packed(seed: int, n: int) -> jax.Array:
    return jnp.sort(integers(seed, 4, B, n))


def of_everything() -> Options:
    """Fields of every kind: of pairs, of queries, of keys, of heads, of examples; and all else that there is."""
    mask = masks.segments(packed(4, T), packed(5, S)) | masks.lengths(jnp.array([3, 20])) & masks.causal(offset=6)
    return {
        "mask": mask & (normal(7, T, S) > -1.5),
        "bias": biases.alibi(normal(26, H) ** 2) + normal(20, B, H, T, S) + normal(23, B, 1, 1, S),
        "sinks": normal(12, B, H),
        "head_gates": normal(13, H),
        "logits_soft_cap": 3.0,
        "dropout_rate": 0.3,
        "dropout_rng": jax.random.key(0),
    }


def ways() -> None:
    """Each method, each way to say what is divided, two devices and four."""
    for devices in (4, 2):
        compare(f"everything on {devices}", of_everything(), hows=ALL_WAYS, devices=devices)
    compare("what is chosen", {"mask": masks.causal()}, hows=ALL_WAYS, methods=(None, "dense"))


def every_mask() -> None:
    for name, mask in each_mask(B, H, T, S).items():
        compare(f"mask {name}", {"mask": mask})


def every_bias() -> None:
    for name, bias in each_bias(B, H, T, S).items():
        compare(f"bias {name}", {"bias": bias, "mask": masks.sliding_window(5, 3)})


def every_score() -> None:
    for name, score in each_score(D).items():
        compare(f"score {name}", {"score": score, "mask": masks.causal(offset=9)})


def more() -> None:
    """Blocks, positions, heads, dropout, meshes of two axes."""
    compare("streaming", of_everything(), methods=("streaming",))
    compare("a key head for each", {"mask": masks.causal()}, tokens=tensors(k=4))
    compare("one key head", {"mask": masks.causal()}, tokens=tensors(k=1))
    compare("broadcast dropout", {"dropout_rate": 0.3, "dropout_rng": jax.random.key(1), "broadcast_dropout": True})
    positions = {"query_positions": packed(14, T), "key_positions": packed(15, S)}
    compare("positions", positions | {"mask": masks.causal()}, hows=("automatic", "shard_map"))
    compare("positions for all", {"query_positions": jnp.arange(T) + 3, "mask": masks.causal()}, hows=("shard_map",))
    compare("beside another axis", of_everything(), devices=2, data=2)


def both_axes() -> None:
    """Examples, or heads, over one explicit axis, the sequence over the other: each stays where it is."""
    mesh = mesh_of("explicit", 2, other=2)
    options = tensors() | of_everything()
    cotangent = normal(9, B, T, H, E)
    expected = alone(options, cotangent)
    arrays, known = split(options)
    for spec in (PartitionSpec("other", "seq"), PartitionSpec(None, "seq", "other")):
        for method in METHODS:
            tokens = {name: jax.device_put(arrays[name], NamedSharding(mesh, spec)) for name in tensors()}
            run = functools.partial(attention, **known, implementation=method)
            with jax.set_mesh(mesh):
                found = jax.jit(functools.partial(with_gradients, run))(
                    arrays | tokens, jax.device_put(cotangent, NamedSharding(mesh, spec))
                )
            assert tuple(found["output"].sharding.spec)[: len(spec)] == tuple(spec), found["output"].sharding
            same(f"{spec}, {method}", found, expected)
    print("both axes", flush=True)


def beside_automatic() -> None:
    """Examples, or heads, over another automatic axis: they are not brought together, but where heads are exchanged."""
    mesh, given = mesh_of("automatic", 2, other=2), tensors(S, S)
    expected = attention(**given)
    for spec in (PartitionSpec("other", "seq"), PartitionSpec(None, "seq", "other")):
        for method in METHODS:
            placed = {name: jax.device_put(x, NamedSharding(mesh, spec)) for name, x in given.items()}
            run = jax.jit(functools.partial(attention, sequence_axis="seq", implementation=method))
            with jax.set_mesh(mesh):
                found = collectives(run.lower(**placed).compile())
                output = run(**placed)
                chosen = explain(**placed, sequence_axis="seq").implementation
            kinds = {"all-gather"} if method == "ulysses" and len(spec) == 3 else set()
            assert set(found) == kinds | {"collective-permute"}, (spec, method, found)
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12)
            assert chosen == "ring"
    print("beside automatic", flush=True)


def order() -> None:
    """The zigzag order: the same numbers, back in their places."""
    given, mask = tensors(S, S), masks.causal() & masks.sliding_window(9, 0)
    expected = jax.jit(functools.partial(attention, mask=mask))(*given.values())
    for n in (2, 4):
        positions = zigzag(S, n)
        options = {name: reorder(x, n) for name, x in given.items()} | {"mask": mask}
        with jax.set_mesh(mesh_of("automatic", n)):
            run = functools.partial(attention, sequence_axis="seq", implementation="ring")
            output = jax.jit(run)(**options, query_positions=positions, key_positions=positions)
        np.testing.assert_allclose(restore(output, n), expected, rtol=0, atol=1e-12)
    print("order", flush=True)


def derivatives() -> None:
    """Second order with each, forward mode with all but the ring."""
    given = tensors()
    tangents = {name: normal(30 + i, *x.shape) for i, (name, x) in enumerate(given.items())}

    def of(how: Options, given: Options) -> Any:
        return (attention(**given, mask=masks.causal(offset=4), **how) ** 2).sum()

    def forward(how: Options) -> Any:
        return jax.jit(lambda given: jax.jvp(functools.partial(of, how), (given,), (tangents,))[1])(given)

    def second(how: Options) -> Any:
        def slope(given: Options) -> Any:
            gradient = jax.grad(functools.partial(of, how))(given)
            return sum(jnp.vdot(gradient[name], tangents[name]) for name in given)

        return jax.jit(jax.grad(slope))(given)

    expected, expected_second = forward({}), second({})
    with jax.set_mesh(mesh_of("automatic", 2)):
        for method in METHODS:
            how = {"sequence_axis": "seq", "implementation": method}
            same(method, second(how), expected_second)
            if method != "ring":
                np.testing.assert_allclose(forward(how), expected, rtol=1e-11)
            else:
                with pytest.raises(TypeError, match="forward-mode"):
                    forward(how)
            print(method, flush=True)


def _parts_of_keys(options: Options, mesh: Mesh, **arrays: Any) -> Any:
    part = functools.partial(attention, **options, sequence_axis=(None, "seq"))
    specs: Options = dict.fromkeys(arrays, PartitionSpec()) | {"key": ALONG, "value": ALONG}
    specs |= {x: arrays[x].partition_specs(batch=1, s="seq") for x in ("mask", "bias")}
    return jax.shard_map(lambda x: part(**x), mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec())(arrays)


def decoding() -> None:
    """Queries that each device has, and keys that are divided: what travels is the size of the output."""
    for t in (1, 3):
        given = tensors(t)
        rest = {
            "mask": masks.causal(offset=S - 4) & masks.lengths(jnp.array([3, 20])),
            "bias": normal(24, B, 1, t, S),
            "sinks": normal(12, H),
            "head_gates": normal(13, H),
            "dropout_rate": 0.3,
            "dropout_rng": jax.random.key(0),
        }
        cotangent = normal(9, B, t, H, E)
        expected = alone(given | rest, cotangent)
        arrays, known = split(given | rest)
        for how in ALL_WAYS:
            mesh = mesh_of(how)
            for method in (None, "merge", "all_gather"):
                options = known | {"implementation": method}
                placed = arrays
                if how == "explicit":
                    placed = arrays | {
                        x: jax.device_put(arrays[x], NamedSharding(mesh, ALONG)) for x in ("key", "value")
                    }
                    run = functools.partial(attention, **options)
                elif how == "automatic":
                    run = functools.partial(attention, **options, sequence_axis=(None, "seq"))
                else:
                    run = functools.partial(_parts_of_keys, options, mesh)

                with jax.set_mesh(mesh):
                    found = jax.jit(functools.partial(with_gradients, run))(placed, cotangent)
                    if method is None:
                        sent = collectives(jax.jit(run).lower(**placed).compile())
                        assert set(sent) == {"all-reduce"}, sent
                same(f"{t} tokens, {how}, {method}", found, expected)
        print(t, flush=True)


def weights_and_statistics() -> None:
    """The weights and what is said of them."""
    given = {name: x for name, x in tensors().items() if name != "value"}
    rest = {"mask": masks.causal(offset=4) & masks.lengths(jnp.array([3, 20])), "sinks": normal(12, H)}
    expected = attention_weights(**given, **rest), attention_statistics(**given, **rest)
    output, expected_weights = attention(**tensors(), **rest, return_weights=True)
    for how in ALL_WAYS:
        mesh = mesh_of(how)

        def both(given: Options, value: Any, axis: Options) -> Any:
            return (
                attention_weights(**given, **axis),
                attention_statistics(**given, **axis),
                attention(**given, value=value, **axis, return_weights=True),
            )

        arrays = given | rest
        if how == "shard_map":
            out = (OF_ROWS, jax.tree.map(lambda x: OF_ROWS, expected[1]), (ALONG, OF_ROWS))
            specs = specs_of(arrays)
            run = jax.shard_map(
                functools.partial(both, axis={"sequence_axis": "seq"}),
                mesh=mesh,
                in_specs=(specs, ALONG),
                out_specs=out,
            )
        else:
            run = functools.partial(both, axis={"sequence_axis": "seq"} if how == "automatic" else {})
        value = tensors()["value"]
        if how == "explicit":
            arrays = arrays | {x: jax.device_put(arrays[x], NamedSharding(mesh, ALONG)) for x in given}
            value = jax.device_put(value, NamedSharding(mesh, ALONG))
        with jax.set_mesh(mesh):
            found = jax.jit(run)(arrays, value)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves((*expected, (output, expected_weights))), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)
        print(how, flush=True)


def sends(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Each message along a ring: its bytes on each device over all turns of its loop, and from whom to whom."""
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "ppermute":
            size = sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
            yield times * size, tuple(params["perm"])
        inner = times * params["length"] if equation.primitive.name == "scan" else times
        for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            part = getattr(value, "jaxpr", value)
            if hasattr(part, "eqns"):
                yield from sends(part, inner)


def traffic() -> None:
    """What the devices send: of each method its own kind of message, and no more bytes than it needs."""
    given, mesh = tensors(S, S), mesh_of("automatic")
    with jax.set_mesh(mesh):
        own = sum(given[name].nbytes for name in ("key", "value")) // 4
        kinds = {"ring": {"collective-permute"}, "all_gather": {"all-gather"}, "ulysses": {"all-to-all"}}
        for method, kind in kinds.items():
            run = jax.jit(functools.partial(attention, sequence_axis="seq", implementation=method))
            placed = {name: jax.device_put(x, NamedSharding(mesh, ALONG)) for name, x in given.items()}
            found = collectives(run.lower(**placed).compile())
            assert set(found) == kind, (method, found)
            print(method, len(found), flush=True)
        for name, mask, turns, to in (
            ("all", None, 3, {1}),
            ("causal", masks.causal(), 3, {1}),
            ("past", masks.sliding_window(5, 0), 1, {1}),
            ("future", masks.sliding_window(0, 6), 1, {3}),
            ("both sides", masks.sliding_window(6, 6), 2, {1, 3}),
            ("far past", masks.sliding_window(7, 0), 2, {1}),
            ("itself", masks.sliding_window(0, 0), 0, set()),
        ):
            run = functools.partial(attention, mask=mask, sequence_axis="seq", implementation="ring")
            messages = list(sends(jax.make_jaxpr(run)(*given.values()).jaxpr))
            assert sum(size for size, _ in messages) == turns * own, (name, messages)
            distances = {(b - a) % 4 for _, pairs in messages for a, b in pairs}
            assert distances == to, (name, distances)
            print(name, flush=True)


def memory() -> None:
    """The gradient's: that of a device's part, however many there are of it."""

    def scratch(devices: int, part: int, method: str) -> int:
        x = jax.ShapeDtypeStruct((1, devices * part, 2, 32), jnp.float32)
        mesh = mesh_of("automatic", devices)
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, ALONG))

        def loss(query: Any, key: Any, value: Any) -> Any:
            options: Options = {"sequence_axis": "seq", "implementation": method, "mask": masks.causal()}
            return (attention(query, key, value, **options) ** 2).sum()

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    part = 512
    four, eight, twice = (scratch(n, length, "ring") for n, length in ((4, part), (8, part), (4, 2 * part)))
    gathered = scratch(8, part, "all_gather") - scratch(4, part, "all_gather")
    print("four", four, "eight", eight, "twice the part", twice, "gathered", gathered, flush=True)
    assert eight < 1.05 * four, "it grows with the whole sequence"
    assert twice < 2.1 * four, "it grows faster than the part"
    assert gathered >= 4 * 2 * part * 2 * 32 * 4  # four more parts of the keys and of the values


SECTIONS = {
    f.__name__: f
    for f in (
        ways,
        every_mask,
        every_bias,
        every_score,
        more,
        both_axes,
        beside_automatic,
        order,
        derivatives,
        decoding,
        weights_and_statistics,
        traffic,
        memory,
    )
}

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", sys.argv[1] != "memory")
    METHODS = tuple(sys.argv[2:]) or METHODS
    SECTIONS[sys.argv[1]]()
