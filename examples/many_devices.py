"""The same lines on one device, on several, and in several processes; and what the devices send one another.

    python -m examples.many_devices                    on the devices that are here
    python -m examples.many_devices --simulate 4       on four of one processor
    python -m examples.many_devices --processes 2      in two processes, which meet on this machine

1. Attention on arrays divided by examples and heads, and over a sequence that is divided: the collectives of the
   compiled program, and how far its numbers are from those of one device.
2. ``fit(mesh=, rules=)``: a small decoder under each layout that the mesh has axes for, and its losses beside those of
   one device.

Half a minute. Expected: no collective for examples and heads; keys that go around, or heads that are exchanged, for a
sequence; differences of rounding alone.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from examples import options
from jattn import attention, masks, models, training

COLLECTIVE = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
ADDRESS, PROCESSES, NUMBER = "MANY_DEVICES_ADDRESS", "MANY_DEVICES_PROCESSES", "MANY_DEVICES_NUMBER"


def causal(query: jax.Array, key: jax.Array, value: jax.Array, implementation: Any = None) -> jax.Array:
    """The line that stays as it is."""
    return attention(query, key, value, mask=masks.causal(), implementation=implementation)


def attention_rows(rng: np.random.Generator) -> list[tuple[str, str, str, float]]:
    """How arrays are divided, what the devices send, and the largest difference from one device."""
    n = jax.device_count()
    two = (n // 2, 2) if n % 2 == 0 else (n, 1)
    mesh = jax.make_mesh(two, ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    sequence = PartitionSpec(None, ("data", "model"))
    ways: dict[str, tuple[PartitionSpec, Any]] = {
        "examples and heads": (PartitionSpec("data", None, "model"), None),
        "the sequence": (sequence, None),
        "the sequence, by a ring": (sequence, "ring" if n > 1 else None),
    }
    tokens = [rng.standard_normal((n, 64 * n, 4, 16), np.float32) for _ in range(3)]
    expected = jax.jit(causal)(*map(jnp.asarray, tokens))
    rows = []
    for name, (spec, implementation) in ways.items():
        lies = NamedSharding(mesh, spec)
        given = [jax.make_array_from_callback(x.shape, lies, lambda at, x=x: x[at]) for x in tokens]
        program = jax.jit(causal, static_argnums=3).lower(*given, implementation).compile()
        output = program(*given)
        parts = [(shard.data, expected[shard.index]) for shard in output.addressable_shards]
        difference = max(float(abs(x - y).max()) for x, y in parts)
        rows.append((name, str(dict(mesh.shape)), sent(program.as_text() or ""), difference))
    return rows


def sent(program: str) -> str:
    """The collectives in the text of a compiled program."""
    found = Counter(COLLECTIVE.findall(program))
    return ", ".join(f"{n} {name}" for name, n in found.items()) or "nothing"


def layouts() -> dict[str, Mesh]:
    """The layouts of `jattn.sharding` on all devices; in pairs where there are several."""
    n = jax.device_count()
    sizes: dict[str, dict[str, int]] = {"data": {"data": n}, "fsdp": {"fsdp": n}, "tensor": {"tensor": n}}
    if n % 2 == 0:
        sizes["fsdp+tensor"] = {"fsdp": n // 2, "tensor": 2}
    return {name: jax.make_mesh(tuple(axes.values()), tuple(axes)) for name, axes in sizes.items()}


def losses(text: np.ndarray, seed: int, epochs: int, **where: Any) -> np.ndarray:
    """Of a small decoder's steps, next token by next token."""

    def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(model(batch[:, :-1], rng=rng))
        return -jnp.take_along_axis(log_p, batch[:, 1:, None], -1).mean()

    model = models.GPT2(64, features=32, num_heads=4, num_layers=2, max_length=32, rngs=nnx.Rngs(seed))
    options: dict[str, Any] = dict(optimizer=training.adam(1e-2), epochs=epochs, batch_size=32, progress=False)
    return training.fit(model, text, loss=loss, **options, **where).step_losses


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "many_devices", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulate", type=options.count, metavar="N", help="devices that one processor stands for")
    parser.add_argument("--processes", type=options.count, metavar="N", help="start so many, which work together")
    parser.add_argument("--epochs", type=options.count, default=2, help="of the decoder's training")
    parser.add_argument("--seed", type=options.seed, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.processes and ADDRESS not in os.environ:
        sys.exit(together(chosen.processes, arguments))
    if chosen.simulate:
        jax.config.update("jax_num_cpu_devices", chosen.simulate)
    if ADDRESS in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ[ADDRESS], int(os.environ[PROCESSES]), int(os.environ[NUMBER]))

    rng = np.random.default_rng(chosen.seed)
    console = Console(quiet=jax.process_index() != 0)
    console.print(f"{jax.device_count()} devices in {jax.process_count()} processes")
    text = np.cumsum(rng.integers(0, 3, (64, 17)), axis=1) % 64
    table = Table("divided", "mesh", "sent", "difference", title="causal attention")
    for *cells, difference in attention_rows(rng):
        table.add_row(*cells, f"{difference:.1e}")
    console.print(table)

    alone = losses(text, chosen.seed, chosen.epochs)
    table = Table("layout", "mesh", "last loss", "difference", title="fit")
    table.add_row("one device", "", f"{alone[-1]:.4f}", "")
    for name, mesh in layouts().items():
        found = losses(text, chosen.seed, chosen.epochs, mesh=mesh, rules=name)
        table.add_row(name, str(dict(mesh.shape)), f"{found[-1]:.4f}", f"{abs(found - alone).max():.1e}")
    console.print(table)


def together(count: int, arguments: list[str]) -> int:
    """Run this module in so many processes; the exit status of the first that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {ADDRESS: f"127.0.0.1:{free.getsockname()[1]}", PROCESSES: str(count)}
    command = [sys.executable, "-m", "examples.many_devices", *arguments]
    started = [subprocess.Popen(command, env=os.environ | shared | {NUMBER: str(i)}) for i in range(count)]
    try:
        return next((status for one in started if (status := one.wait())), 0)
    finally:
        for one in started:
            one.kill()
            one.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
