# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on many devices
#
# A model trains on several devices by the lines that train it on one, plus two arguments: the devices, and how the
# model lies on them. Here are the layouts, one after the other: what each device holds, that the losses are those of
# one device, and how a run goes on under another layout than the one it was begun with.
#
# No accelerator is needed for that. JAX takes one processor for eight devices if it is told so before it computes
# anything. Such devices are as slow as the processor is, so nothing here is about speed.

# %%
import functools
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

import jattn
from jattn import masks, models, sharding, training

# %matplotlib inline

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

close = np.testing.assert_allclose
assert len(jax.devices()) == 8

# %% [markdown]
# ## One device
#
# The task is small, and its best loss is known. A walker goes around a ring of 256 houses and takes 0, 1 or 2 steps at
# a time, each as likely. Who knows the house but not the steps can do no better than $\log 3$ for the next one.

# %%
generator = np.random.default_rng(0)
steps = np.cumsum(generator.integers(0, 3, (256, 33)), axis=1)
walks = ((generator.integers(0, 256, (256, 1)) + steps) % 256).astype(np.int32)  # n t
print(walks[0])


def new_model():
    return models.GPT2(256, features=64, num_heads=8, num_layers=1, max_length=32, rngs=nnx.Rngs(0))


def loss(model, batch, rng):
    log_p = jax.nn.log_softmax(model(batch[:, :-1], rng=rng))
    return -jnp.take_along_axis(log_p, batch[:, 1:, None], -1).mean()


fit = functools.partial(
    training.fit, train=walks, loss=loss, optimizer=training.adam(1e-2), batch_size=32, progress=False
)
alone = fit(new_model(), epochs=6)
print(f"loss {alone.step_losses[0]:.2f} before, {alone.losses[-1]:.2f} in the last epoch, log 3 is {np.log(3):.2f}")
assert np.log(3) < alone.losses[-1] < 1.5

# %% [markdown]
# ## Four layouts
#
# A mesh is the devices with names for the axes along which something may be divided. The layouts of `jattn.sharding` go
# by the names of these axes:
#
# | layout | divided over the devices | whole on each |
# |---|---|---|
# | `"data"` | the examples of a batch | parameters |
# | `"fsdp"` | the examples, and each parameter along the model's width | nothing but small vectors |
# | `"tensor"` | heads, inner widths, the vocabulary | examples |
# | `"sequence"` | the tokens that attention sees | parameters, examples |

# %%
meshes = {name: jax.make_mesh((8,), (name,)) for name in ("data", "fsdp", "tensor", "sequence")}
trained, histories = {}, {}
for name, mesh in meshes.items():
    trained[name] = new_model()
    histories[name] = fit(trained[name], epochs=6, mesh=mesh, rules=name)
    difference = abs(histories[name].step_losses - alone.step_losses).max()
    print(f"{name:9} last loss {histories[name].losses[-1]:.5f}, at most {difference:.0e} from one device in any step")
    close(histories[name].step_losses, alone.step_losses, rtol=1e-4)

# %% [markdown]
# The differences are rounding: sums of numbers on eight devices are taken in another order.
#
# ## Who holds what
#
# Afterwards the parameters stay where they were trained, and every array knows which part of it is on which device
# (`jax.debug.visualize_array_sharding` draws one in a terminal). The first linear layer of the network in the block,
# 64 × 256, under two layouts:

# %%
for name in ("fsdp", "tensor"):
    kernel = trained[name].blocks[0].feed_forward.linear1.kernel[...]
    print(f"{name}: {kernel.sharding.spec}, a device has {kernel.addressable_shards[0].data.shape}")

# %% [markdown]
# Where does that come from? Each axis of a parameter has a name, and a layout is a table from these names to axes of
# the mesh. A table of your own goes in the place of the layout's name.

# %%
names = sharding.axes(new_model())
for path in ("embedding.embedding", "blocks.0.attention.query.kernel", "blocks.0.feed_forward.linear1.kernel"):
    print(f"{path:38} {names[path]}")
for name in ("fsdp", "tensor"):
    print(f"{name:38} {sharding.layout(meshes[name], name)}")

# %% [markdown]
# ## Memory
#
# Adam keeps two numbers for each parameter, which lie where the parameter does. So the first device holds three times
# its shards of the parameters between two steps:


# %%
def bytes_of_a_device(model):
    """Of its parameters, and of what Adam keeps for them, on the first device."""
    return 3 * sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


held = {name: bytes_of_a_device(model) for name, model in trained.items()}
for name, n in held.items():
    print(f"{name:9} {n / 1024:6.0f} KiB on each device, {n / held['data']:4.0%}")
assert held["sequence"] == held["data"]
assert held["fsdp"] < held["data"] / 7
assert held["tensor"] < held["data"] / 5

# %% [markdown]
# Under `"fsdp"` little more than an eighth is left, under `"tensor"` somewhat more, as vectors along the model's width
# stay whole, and so do the positions. The others spare nothing of this. What they divide is what a step computes on
# its way: examples, or tokens.
#
# ## Begun under one layout, ended under another
#
# Checkpoints hold whole arrays, so they know of no devices. This run is trained for three epochs under `"fsdp"`. Then
# somebody turns it off, and it goes on with another mesh, of 4 × 2 devices, under `"fsdp+tensor"`: parameters are
# divided along both of their axes. In the end it has the losses of the run that never stopped.

# %%
grid = jax.make_mesh((4, 2), ("fsdp", "tensor"))
with tempfile.TemporaryDirectory() as folder:
    fit(new_model(), epochs=3, mesh=meshes["fsdp"], rules="fsdp", checkpoints=folder)
    trained["fsdp+tensor"] = new_model()  # as another process would make it
    resumed = fit(trained["fsdp+tensor"], epochs=6, mesh=grid, rules="fsdp+tensor", checkpoints=folder)

close(resumed.losses, alone.losses, rtol=1e-4)
kernel = trained["fsdp+tensor"].blocks[0].feed_forward.linear1.kernel[...]
print(f"{kernel.sharding.spec}, a device has {kernel.addressable_shards[0].data.shape}")
print("resumed", resumed.losses.round(4))
print("alone  ", alone.losses.round(4))
held["fsdp+tensor"] = bytes_of_a_device(trained["fsdp+tensor"])

# %% [markdown]
# ## A sequence too long for one device
#
# `"sequence"` had attention divide 32 tokens, which nobody needs. Attention can be called so directly, too:
# `sequence_axis` names the mesh's axis that divides queries and keys. Each device keeps its queries, and the keys and
# values go around a ring, from a device to its neighbour, until each has seen all. Without `implementation`, what sends
# the least is chosen. `explain` says what that is, and why others could not be.

# %%
ring = meshes["sequence"]
tokens = [jnp.asarray(generator.normal(size=(4096, 4, 16)), jnp.float32) for _ in range(3)]  # t h d


def attend(query, key, value, **options):
    return jattn.attention(query, key, value, mask=masks.causal(), **options)


with jax.set_mesh(ring):
    print(jattn.explain(*tokens, mask=masks.causal(), sequence_axis="sequence"))


# %% [markdown]
# What does a device need for 4,096 tokens and their gradients? The compiler knows, without running anything:


# %%
def compiled(n):
    """The gradients of causal attention, compiled for n devices."""
    mesh = jax.make_mesh((n,), ("sequence",), devices=jax.devices()[:n])
    options = dict(sequence_axis="sequence", implementation="ring") if n > 1 else {}

    def gradients(*tokens):
        return jax.grad(lambda *x: attend(*x, **options).sum(), argnums=(0, 1, 2))(*tokens)

    divided = jax.sharding.NamedSharding(mesh, PartitionSpec("sequence"))
    with jax.set_mesh(mesh):
        lies = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=divided) for x in tokens]
        return jax.jit(gradients, out_shardings=divided).lower(*lies).compile()


memory, programs = {}, {}
for n in (1, 8):
    programs[n] = compiled(n)
    need = programs[n].memory_analysis()
    memory[n] = need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes
    print(f"on {n}: {memory[n] / 2**20:5.1f} MiB on each device")
matrix = 4 * 4 * 4096**2
print(f"the weights as a matrix: {matrix / 2**20:.0f} MiB")
assert memory[8] < memory[1] / 3
assert memory[1] < matrix / 4

# %% [markdown]
# And the numbers are those of one device:

# %%
divided = jax.device_put(tokens, jax.sharding.NamedSharding(ring, PartitionSpec("sequence")))
one = jax.device_put(tokens, jax.devices()[0])
for x, y in zip(programs[8](*divided), programs[1](*one), strict=True):
    close(x, y, atol=1e-4)

# %% [markdown]
# With a causal mask the last tokens are more work than the first. `jattn.sequence` has the zigzag order of tokens, in
# which each device has as much to do.
#
# ## All of it in one picture
#
# Four parameters, and which part of each lies on which of the eight devices: a colour for each device. What
# all of them hold whole is grey. Below, what a device holds, and the losses of all layouts, which lie on top of one
# another.

# %%
parameters = {
    "embedding\nvocabulary × width": lambda model: model.embedding.embedding,
    "query\nwidth × heads": lambda model: model.blocks[0].attention.query.kernel,
    "network, in\nwidth × inner": lambda model: model.blocks[0].feed_forward.linear1.kernel,
    "network, out\ninner × width": lambda model: model.blocks[0].feed_forward.linear2.kernel,
}
colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, 8))


def draw(axis, x):
    """A rectangle for each part of an array, of the first two of its axes."""
    at = x.sharding.devices_indices_map(x.shape)
    for i, device in enumerate(jax.devices()):
        (top, bottom, _), (left, right, _) = (
            part.indices(n) for part, n in zip(at[device][:2], x.shape[:2], strict=True)
        )
        whole = (bottom - top, right - left) == x.shape[:2]
        corner, size = (left / x.shape[1], top / x.shape[0]), ((right - left) / x.shape[1], (bottom - top) / x.shape[0])
        axis.add_patch(plt.Rectangle(corner, *size, facecolor="0.85" if whole else colours[i], edgecolor="white"))
    axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])


layouts = ["data", "sequence", "fsdp", "tensor", "fsdp+tensor"]
figure = plt.figure(figsize=(11, 9), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1.7, 1])
axes = above.subplots(len(parameters), len(layouts))
for row, (what, of) in zip(axes, parameters.items(), strict=True):
    for axis, name in zip(row, layouts, strict=True):
        draw(axis, of(trained[name])[...])
    row[0].set_ylabel(what, rotation=0, ha="right", va="center")
for axis, name in zip(axes[0], layouts, strict=True):
    axis.set_title(name)
above.legend(
    handles=[plt.Rectangle((0, 0), 1, 1, color="0.85"), *(plt.Rectangle((0, 0), 1, 1, color=c) for c in colours)],
    labels=["whole on all", *(f"device {i}" for i in range(8))],
    loc="outside lower center",
    ncols=9,
    frameon=False,
)

left, right = below.subplots(1, 2)
left.barh(layouts[::-1], [held[name] / 1024 for name in layouts[::-1]], color="0.5")
left.set(xlabel="KiB", title="parameters and Adam's state on a device")
for i, name in enumerate(layouts):
    history = resumed if name == "fsdp+tensor" else histories[name]
    right.plot(history.step_losses, lw=11 - 2 * i, alpha=0.5, label=name)
right.plot(alone.step_losses, color="black", lw=0.8, label="one device")
right.axhline(np.log(3), color="0.6", ls=":", label="log 3")
right.set(xlabel="step", title="loss")
right.legend(fontsize="small")
plt.show()
