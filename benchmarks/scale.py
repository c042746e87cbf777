"""Programs for many TPU chips, compiled here by the TPU's own compiler and never run.

    python -m benchmarks scale [--cases NAME ...] [--largest CHIPS] [--json FILE]

It needs the extra ``targets`` (libtpu, Linux), no TPU, about a minute a row. Per chip:

- GiB: arguments, results and scratch, as the compiler says; a dash where they don't fit, with its words above.
- Tflop: of the program's matrix products, with what is computed again, divided by the chips; of branches that data
  choose the longest, so that a causal ring counts as its last device, which attends to all.
- sent: what a chip sends over each axis of the mesh, by the collectives of the compiled program, loops counted.
- ms: the longest of flops, of reading the arguments once and of sending, at the published rates, as if all went on side
  by side; then the sum, as if nothing did.
- of peak: needed flops at the published rate, as a share of that time. Needed is what the mathematics asks for: 6 flops
  a parameter and token in training, and half of the pairs under a causal mask.

Published rates are those of Google Cloud's pages on v5e, v5p and v6e, and below; a mesh axis has the links of one
dimension of the torus. Nothing here is a measurement: what XLA's kernels reach of the peak is not in it.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from rich import box
from rich.table import Table

from benchmarks.comparison import print_table, write
from benchmarks.programs import flops_of, sent_by, start_tpu_compiler
from jattn import attention, masks, training
from jattn.nn import Embed, Linear, Norm, Rotary, TransformerBlock
from jattn.training.placement import placement_of
from jattn.training.steps import Recipe, State, _run_steps

GIB = 2**30


class Chip(NamedTuple):
    """What is published of one."""

    flops: float  # a second, bfloat16
    read: float  # bytes of memory a second
    link: float  # bytes that one sends in a second over both links of a dimension of the torus


CHIPS = {
    "v5e": Chip(197e12, 819e9, 100e9),
    "v5p": Chip(459e12, 2765e9, 200e9),
    "v6e": Chip(918e12, 1638e9, 200e9),
}


class Program(NamedTuple):
    """One to be compiled, and the flops that the mathematics needs."""

    jitted: Any
    arguments: tuple[Any, ...]
    needed: float


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: on which chips, and what."""

    name: str
    what: str
    chip: str
    topology: str
    mesh: dict[str, int]
    program: Callable[[Mesh], Program]

    @property
    def chips(self) -> int:
        return math.prod(self.mesh.values())


class Decoder(nnx.Module):
    """Of Llama 3's 8 billion parameters: float32 parameters, bfloat16 products; a layer is computed again backward."""

    v, m, layers, heads, kv_heads, inner = 128_256, 4096, 32, 32, 8, 14_336

    def __init__(self, rngs: nnx.Rngs) -> None:
        types: dict[str, Any] = dict(dtype=jnp.bfloat16, rngs=rngs)

        @nnx.split_rngs(splits=self.layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                num_heads=self.heads,
                num_kv_heads=self.kv_heads,
                features=self.m,
                feedforward_features=self.inner,
                gated=True,
                activation="silu",
                norm="pre",
                norm_kind="rms",
                causal=True,
                rotary=Rotary(500_000.0),
                use_bias=False,
                feedforward_bias=False,
                dtype=jnp.bfloat16,
                rngs=rngs,
            )

        self.embedding = Embed(self.v, self.m, **types)
        self.blocks = stacked(rngs)
        self.norm = Norm("rms")(self.m, **types)
        self.output = Linear(self.m, self.v, use_bias=False, **types)
        self.output.kernel.set_metadata("out_sharding", ("embed", "vocab"))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        one = nnx.remat(lambda block, x: block(x))
        x = nnx.scan(one, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, self.embedding(tokens))
        return self.output(self.norm(x))


def training_step(sequences: int, t: int) -> Callable[[Mesh], Program]:
    """A step of `jattn.training.fit`, with Adam, under its layout "fsdp+tensor"."""

    def loss(model: Decoder, batch: Any, rng: Any) -> Array:
        logits = model(batch[:, :-1]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def program(mesh: Mesh) -> Program:
        model = nnx.eval_shape(lambda: Decoder(nnx.Rngs(0)))
        graph, *variables = nnx.split(model, nnx.Param, ...)
        place: Any = placement_of(model, mesh, "fsdp+tensor")
        optimizer = training.adam(1e-4)
        recipe = Recipe(graph, graph, nnx.Param, loss, (), optimizer, False, place)
        step, failed = (jax.eval_shape(lambda dtype=dtype: jnp.zeros((), dtype)) for dtype in (jnp.int32, jnp.bool_))
        state: Any = State((variables[0], variables[1]), jax.eval_shape(optimizer.init, variables[0]), step, failed)
        state = jax.tree.map(_placed, state, place._shardings(state))
        split = NamedSharding(mesh, PartitionSpec(None, place.over))
        order = jax.ShapeDtypeStruct((1, sequences, t + 1), jnp.int32, sharding=split)
        rng = _placed(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
        multiplied = sum(x.size for x in jax.tree.leaves(variables[0])) - Decoder.v * Decoder.m
        of_pairs = 12 * Decoder.layers * Decoder.m * t / 2
        arguments = (state.variables, state[1:], None, order, rng, recipe)
        return Program(_run_steps, arguments, sequences * t * (6 * multiplied + of_pairs))

    return program


def ring(t: int) -> Callable[[Mesh], Program]:
    """Attention of one sequence with its gradients, causal, by a ring: 32 heads of 128, 8 of keys."""

    def program(mesh: Mesh) -> Program:
        along = NamedSharding(mesh, PartitionSpec(None, "seq"))
        query, key = (jax.ShapeDtypeStruct((1, t, h, 128), jnp.bfloat16, sharding=along) for h in (32, 8))

        def total(query: Array, key: Array, value: Array) -> Array:
            options: dict[str, Any] = dict(sequence_axis="seq", implementation="ring")
            return attention(query, key, value, mask=masks.causal(), **options).astype(jnp.float32).sum()

        return Program(jax.jit(jax.grad(total, (0, 1, 2))), (query, key, key), 6 * t**2 * 32 * 128)

    return program


def decoding(t: int, batch: int) -> Callable[[Mesh], Program]:
    """Attention of one new token to a cache that lies over the mesh: 32 heads of 128, 8 of keys."""

    def program(mesh: Mesh) -> Program:
        query = jax.ShapeDtypeStruct((batch, 1, 32, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
        along = NamedSharding(mesh, PartitionSpec(None, "seq"))
        key = jax.ShapeDtypeStruct((batch, t, 8, 128), jnp.bfloat16, sharding=along)
        lens = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))

        def step(query: Array, key: Array, value: Array, lens: Array) -> Array:
            return attention(query, key, value, mask=masks.lengths(lens), sequence_axis=(None, "seq"))

        return Program(jax.jit(step), (query, key, key, lens), 4 * batch * t * 32 * 128)

    return program


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


TITLES = {
    "training": "a step of training 8 billion parameters, fsdp+tensor",
    "ring": "causal attention with its gradients by a ring, 32 heads of 128, 8 of keys",
    "decoding": "attention of a new token to a cache that is divided, likewise",
}


def _cases() -> Iterator[Case]:
    for chip, topology, mesh, sequences, t in (
        ("v5e", "8x8", {"fsdp": 16, "tensor": 4}, 16, 4096),
        ("v5e", "16x16", {"fsdp": 64, "tensor": 4}, 64, 4096),
        ("v5p", "2x2x1", {"fsdp": 4, "tensor": 1}, 16, 4096),
        ("v5p", "4x4x4", {"fsdp": 16, "tensor": 4}, 16, 4096),
        ("v5p", "4x8x8", {"fsdp": 64, "tensor": 4}, 64, 4096),
        ("v6e", "16x16", {"fsdp": 256, "tensor": 1}, 256, 8192),
    ):
        yield Case("training", f"{sequences} x {t:,}", chip, topology, mesh, training_step(sequences, t))
    t = 2**20
    for topology, n in (("2x2", 4), ("4x4", 16), ("8x8", 64), ("16x16", 256)):
        yield Case("ring", f"1 x {t:,}", "v5e", topology, {"seq": n}, ring(t))
    for topology, n in (("2x2", 4), ("4x4", 16), ("16x16", 256)):
        yield Case("decoding", f"8 x {t:,}", "v5e", topology, {"seq": n}, decoding(t, 8))


def compiled(case: Case) -> dict[str, Any]:
    """The figures of a row."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{case.chip}:{case.topology}").devices
    mesh = jax.make_mesh(
        tuple(case.mesh.values()), tuple(case.mesh), devices=devices, axis_types=(AxisType.Auto,) * len(case.mesh)
    )
    program = case.program(mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = program.jitted.trace(*program.arguments)
        try:
            done = traced.lower(lowering_platforms=("tpu",)).compile()
        except jax.errors.JaxRuntimeError as error:
            return {"refused": str(error).splitlines()[0]}
    memory: Any = done.memory_analysis()
    return {
        "seconds to compile": time.perf_counter() - start,
        "arguments": memory.argument_size_in_bytes,
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "flops": flops_of(traced.jaxpr, "tpu") / case.chips,
        "needed flops": program.needed / case.chips,
        "sent": [dataclasses.asdict(sent) for sent in sent_by(done.as_text())],
    }


def estimated(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """Seconds at the published rates, and what they make of the peak."""
    chip = CHIPS[case.chip]
    parts = {
        "flops": row["flops"] / chip.flops,
        "memory": row["arguments"] / chip.read,
        # A ring has the links to one side.
        "links": sum(x["bytes"] * (2 if x["kind"] == "collective-permute" else 1) for x in row["sent"]) / chip.link,
    }
    least, most = max(parts.values()), sum(parts.values())
    return {
        "seconds": parts,
        "time": [least, most],
        "share": [row["needed flops"] / chip.flops / x for x in (most, least)],
    }


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    start_tpu_compiler()
    rows = []
    for case in _cases():
        if case.name in options.cases and case.chips <= options.largest:
            row = compiled(case)
            if "refused" not in row:
                row |= estimated(case, row)
            names = {name: getattr(case, name) for name in ("name", "what", "chip", "topology", "mesh", "chips")}
            rows.append(names | row)
            print(f"{case.name}, {case.what}, {case.chips} {case.chip}: {row.get('refused', 'compiled')}", flush=True)
    write(options.json, rows=rows, rates={name: chip._asdict() for name, chip in CHIPS.items()})
    for name in options.cases:
        print_table(_table(TITLES[name], [row for row in rows if row["name"] == name]), width=150)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{title}; per chip", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("tokens", "mesh", "GiB", "Tflop", "sent GiB", "flops ms", "links ms", "ms", "of peak", "compiled"):
        table.add_column(name, justify="left" if name in ("tokens", "mesh") else "right", no_wrap=True)
    for row in rows:
        mesh = ", ".join(f"{name} {n}" for name, n in row["mesh"].items())
        first = (row["what"], f"{row['chips']} {row['chip']}: {mesh}")
        if "refused" in row:
            table.add_row(*first, *"-" * 8)
            continue
        table.add_row(
            *first,
            f"{row['memory'] / GIB:.1f}",
            _short(row["flops"] / 1e12),
            _sent(row),
            _short(row["seconds"]["flops"] * 1e3),
            _short(row["seconds"]["links"] * 1e3),
            " - ".join(_short(x * 1e3) for x in row["time"]),
            " - ".join(f"{x:.0%}" for x in row["share"]),
            f"{row['seconds to compile']:.0f} s",
        )
    return table


def _sent(row: dict[str, Any]) -> str:
    """GiB over each axis of the mesh, whose sizes differ."""
    names = {n: name for name, n in row["mesh"].items()}
    over: dict[str, float] = {}
    for sent in row["sent"]:
        name = "permute" if sent["kind"] == "collective-permute" else names.get(sent["group"], "all")
        over[name] = over.get(name, 0.0) + sent["bytes"] / GIB
    return ", ".join(f"{name} {_short(x)}" for name, x in sorted(over.items()) if x > 1e-3 * sum(over.values()))


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}"


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({case.name for case in _cases()})
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="of these only")
    parser.add_argument("--largest", type=int, default=256, metavar="CHIPS", help="no more chips than these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(arguments)
