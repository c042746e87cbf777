"""A decoder of many layers, compiled as one, and four decoders, trained as one: Flax's transforms over jattn's block.

    python -m examples.many_layers [--layers 2 8 32] [--steps 150] [--out figures/many_layers] [--seed 0]

1. ``nnx.scan`` goes over the layers, so that the block is compiled once however many there are; beside it a Python loop
   over the same layers. ``nnx.remat`` computes a layer again in the backward pass instead of keeping what was inside.
2. ``nnx.vmap`` trains an ensemble of four decoders, each with its own parameters and its own dropout
   (``nnx.split_rngs``), on the characters of Python's documentation: loss of each, and of their averaged probabilities.

About two minutes on 2 cores. Expected: the loop takes longer to compile with each layer, the scan does not; both
give the same loss to rounding; remat needs a fraction of the memory; the ensemble's loss is below that of its members.
"""

import argparse
import time
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from rich.console import Console
from rich.table import Table

from examples import options
from jattn.nn import Embed, Norm, Rotary, TransformerBlock

console = Console()


class Decoder(nnx.Module):
    """Characters in, logits of the next one out. All layers are one block, whose parameters have an axis of layers."""

    def __init__(self, v: int, layers: int, features: int, *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                num_heads=4,
                features=features,
                feedforward_features=4 * features,
                norm="pre",
                activation="gelu",
                causal=True,
                rotary=Rotary(),
                residual_dropout_rate=dropout,
                rngs=rngs,
            )

        self.embedding = Embed(v, features, rngs=rngs)
        self.blocks = stacked(rngs)
        self.norm = Norm("rms")(features, rngs=rngs)
        self.layers = layers

    def __call__(
        self, tokens: Int[Array, "b t"], rng: PRNGKeyArray, *, loop: bool = False, remat: bool = False
    ) -> Float[Array, "b t v"]:
        def run(block: TransformerBlock, x: Array, rng: PRNGKeyArray) -> Array:
            return block(x, rng=rng)

        one = nnx.remat(run) if remat else run
        x, each = self.embedding(tokens), jax.random.split(rng, self.layers)
        if loop:
            graph, state = nnx.split(self.blocks)
            for i in range(self.layers):
                x = one(nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state)), x, each[i])
        else:
            x = nnx.scan(one, in_axes=(0, nnx.Carry, 0), out_axes=nnx.Carry)(self.blocks, x, each)
        return self.embedding.attend(self.norm(x))


def loss_of(model: Decoder, tokens: Int[Array, "b t"], rng: PRNGKeyArray, **how: bool) -> Float[Array, ""]:
    """The mean cross-entropy of each next character, in nats."""
    logits = model(tokens[:, :-1], rng, **how)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def compare(layers: int, seed: int) -> dict[str, Any]:
    """Seconds to compile a loss with its gradients, bytes of scratch, and the loss: by a loop, by scan, with remat."""
    graph, state = nnx.split(Decoder(64, layers, 32, rngs=nnx.Rngs(seed)))
    tokens = jax.random.randint(jax.random.key(seed), (4, 129), 0, 64)
    found = {}
    for name, how in (("loop", {"loop": True}), ("scan", {}), ("scan, remat", {"remat": True})):

        def loss(state: Any, how: dict[str, bool] = how) -> Array:
            return loss_of(nnx.merge(graph, state), tokens, jax.random.key(seed), **how)

        start = time.perf_counter()
        program = jax.jit(jax.value_and_grad(loss)).lower(state).compile()
        seconds = time.perf_counter() - start
        memory: Any = program.memory_analysis()
        found[name] = (seconds, memory.temp_size_in_bytes, float(program(state)[0]))
    return found


def ensemble(steps: int, seed: int, members: int = 4) -> tuple[Float[Array, "n"], float]:
    """The loss on unseen text of several decoders that are trained together, and that of their mean probabilities."""
    tokens, v = documentation()
    rows = tokens[: tokens.size // 65 * 65].reshape(-1, 65)
    seen, unseen = rows[:-64], rows[-64:]

    @nnx.split_rngs(splits=members)
    @nnx.vmap
    def made(rngs: nnx.Rngs) -> Decoder:
        return Decoder(v, 2, 32, dropout=0.1, rngs=rngs)

    models = made(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(models, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(models: Decoder, optimizer: nnx.Optimizer, rng: PRNGKeyArray) -> None:
        of_rows, *of_members = jax.random.split(rng, members + 1)
        batch = seen[jax.random.randint(of_rows, (16,), 0, len(seen))]

        def total_loss(models: Decoder) -> Array:
            each = nnx.vmap(loss_of, in_axes=(0, None, 0))(models, batch, jnp.stack(of_members))
            return each.sum()  # each depends on its own parameters alone

        optimizer.update(models, nnx.grad(total_loss)(models))

    for rng in jax.random.split(jax.random.key(seed), steps):
        step(models, optimizer, rng)
    models.eval()

    @nnx.vmap(in_axes=(0, None))
    def log_probabilities(model: Decoder, tokens: Array) -> Array:
        return jax.nn.log_softmax(model(tokens[:, :-1], jax.random.key(0)))

    each = jnp.take_along_axis(log_probabilities(models, unseen), unseen[None, :, 1:, None], -1)[..., 0]
    averaged = jax.nn.logsumexp(each, axis=0) - jnp.log(members)
    return -each.mean((1, 2)), -float(averaged.mean())


def documentation() -> tuple[Int[Array, "n"], int]:
    """The characters of Python's own documentation as numbers, and how many different ones there are."""
    text = "".join(topics.values())[:100_000]
    characters = sorted(set(text))
    numbers = {character: i for i, character in enumerate(characters)}
    return jnp.array([numbers[character] for character in text]), len(characters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", type=options.count, default=[2, 8, 32], help="how many, one row each")
    parser.add_argument("--steps", type=options.count, default=150, help="of the ensemble's training")
    parser.add_argument("--out", type=options.folder, default="figures/many_layers", help="folder for the figure")
    parser.add_argument("--seed", type=options.seed, default=0, help="of parameters, batches and dropout")
    arguments = parser.parse_args()

    console.rule("1. One compiled block for all layers")
    found = {layers: compare(layers, arguments.seed) for layers in arguments.layers}
    table = Table("layers", "", "to compile", "scratch", "loss")
    for layers, ways in found.items():
        for name, (seconds, scratch, loss) in ways.items():
            table.add_row(str(layers), name, f"{seconds:.1f} s", f"{scratch / 2**20:.1f} MiB", f"{loss:.6f}")
    console.print(table)
    path = arguments.out / "compiling.png"
    plot({name: [ways[name][0] for ways in found.values()] for name in found[arguments.layers[0]]}, list(found), path)

    console.rule("2. Four decoders, trained as one")
    each, averaged = ensemble(arguments.steps, arguments.seed)
    console.print(f"Loss of each on what none has seen: {', '.join(f'{x:.3f}' for x in each)} nats a character.")
    console.print(f"Of their averaged probabilities: {averaged:.3f}. The figure is in {arguments.out}.")


def plot(seconds: dict[str, list[float]], layers: list[int], path: Any) -> None:
    """How long each way takes to compile."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in seconds.items():
        axes.plot(layers, values, marker="o", label=name)
    axes.set(xlabel="layers", ylabel="seconds to compile", xticks=layers, ylim=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
