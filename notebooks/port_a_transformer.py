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
# # Port your PyTorch transformer in an hour
#
# You have a transformer in PyTorch and want it in JAX. Writing it down again is the short part. The long part is what
# comes after: the weights load, the shapes are right, the numbers look like numbers, and somewhere a layer norm has
# another epsilon. Here is a whole port with all of that. A small PyTorch model is trained, ported line by line, and the
# port has five mistakes that ports really have. `jattn.parity` finds them one after another, until outputs, gradients
# and a training run agree.

# %%
import copy
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
from flax import nnx
from matplotlib.ticker import NullLocator
from sklearn.datasets import load_digits
from torch import nn

import jattn
from jattn.parity import compare, trajectory
from jattn.training import adamw
from jattn.weights import Table, load_state_dict, rename, split, state_dict

# %matplotlib inline

torch.set_num_threads(1)  # for matrices as small as these, more only wait for one another

# %% [markdown]
# ## The original
#
# The data are scikit-learn's digits, as a scanner sends them: row by row, each of 8 pixels. A row is a token, and what
# comes in breaks off after five to eight rows. The rest is padding, and `real` is `True` where a row has come in.

# %%
images, digits = load_digits(return_X_y=True)
rows = (images.reshape(-1, 8, 8) / 16).astype(np.float32)  # b t pixel
lengths = np.random.default_rng(0).integers(5, 9, size=len(rows))
real = np.arange(8) < lengths[:, None]  # b t
rows = rows * real[..., None]
order = np.random.default_rng(1).permutation(len(rows))
held_out, training = order[:297], order[297:]

figure, axes = plt.subplots(1, 10, figsize=(10, 1.5), layout="constrained")
for digit, axis in enumerate(axes):
    i = np.flatnonzero(digits == digit)[3]
    axis.imshow(np.where(real[i, :, None], rows[i], np.nan), cmap="Blues", vmin=-0.15)
    axis.set_facecolor("0.85")  # not there
    axis.set(title=digit, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# The model, as such models are written: the projections of queries, keys and values in one `Linear`, norms before the
# sublayers with an epsilon of $10^{-6}$, learned positions, and the mean over the rows that are real.

# %%
width, heads, depth = 48, 4, 2
layer_norm = functools.partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, real=None):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, heads, 3 * width // heads).transpose(1, 2).chunk(3, dim=-1)  # b h t d
        logits = q @ k.transpose(-2, -1) / math.sqrt(width // heads)
        if real is not None:
            logits = logits.masked_fill(~real[:, None, None], float("-inf"))
        return self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, width))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, real=None):
        x = x + self.attn(self.norm1(x), real)
        return x + self.mlp(self.norm2(x))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.pos = nn.Embedding(8, width)
        self.layers = nn.ModuleList([Layer() for _ in range(depth)])
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, rows, real=None):
        x = self.embed(rows) + self.pos.weight
        for layer in self.layers:
            x = layer(x, real)
        x = self.norm(x)
        if real is None:
            return self.head(x.mean(dim=1))
        real = real[..., None].to(x.dtype)
        return self.head((x * real).sum(dim=1) / real.sum(dim=1))


# %%
def torch_loss(model, batch):
    rows, real, digits = batch
    return nn.functional.cross_entropy(model(rows, real), digits)


def batches(seed, size=50):
    order = np.random.default_rng(seed).permutation(training)
    return [(rows[i], real[i], digits[i]) for i in np.split(order, len(order) // size)]


torch.manual_seed(0)
original = Reader()
optimizer = torch.optim.AdamW(original.parameters(), lr=2e-3)
for epoch in range(12):
    for batch in batches(seed=epoch):
        optimizer.zero_grad()
        torch_loss(original, map(torch.from_numpy, batch)).backward()
        optimizer.step()
original.eval().requires_grad_(False)


def accuracy(logits):
    return float((np.asarray(logits).argmax(axis=-1) == digits[held_out]).mean())


torch_accuracy = accuracy(original(torch.from_numpy(rows[held_out]), torch.from_numpy(real[held_out])))
print(f"the original: {torch_accuracy:.1%} of {len(held_out)} digits held out")
assert torch_accuracy > 0.85

# %% [markdown]
# ## The port, as first written
#
# Line by line. [From PyTorch](../from_pytorch.md) has a table of what is what. The attention and the feed-forward
# network are jattn's, so there is less to write than there was. Three lines stand apart in front, as they will change.

# %%
norm = jattn.nn.LayerNorm
activation = jax.nn.gelu


def may_attend(real):
    return ~real[:, None, None]  # b h t s


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = norm(width, rngs=rngs), norm(width, rngs=rngs)
        self.attention = jattn.nn.MultiHeadAttention(heads, width, use_bias=True, rngs=rngs)
        self.feed_forward = jattn.nn.FeedForward(width, 4 * width, activation=activation, rngs=rngs)

    def __call__(self, x, real=None):
        x = x + self.attention(self.norm1(x), mask=None if real is None else may_attend(real))
        return x + self.feed_forward(self.norm2(x))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed = jattn.nn.Linear(8, width, rngs=rngs)
        self.positions = jattn.nn.LearnedPositions(8, width, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
        self.norm = norm(width, rngs=rngs)
        self.head = jattn.nn.Linear(width, 10, rngs=rngs)

    def __call__(self, rows, real=None):
        x = self.positions(self.embed(rows))
        for block in self.blocks:
            x = block(x, real)
        return self.head(self.norm(x).mean(axis=1, where=None if real is None else real[..., None]))


# %% [markdown]
# The weights need a table: what is called otherwise here, and that `qkv` is three projections. It is gone through
# forwards when they are loaded and backwards when they are saved.

# %%
names = [
    rename("pos", "positions.embedding"),
    rename("layers.#", "blocks.#"),
    rename("blocks.#.attn.proj", "blocks.#.attention.out"),
    rename("blocks.#.mlp.0", "blocks.#.feed_forward.linear1"),
    rename("blocks.#.mlp.2", "blocks.#.feed_forward.linear2"),
]
three = [f"blocks.#.attention.{part}" for part in ("query", "key", "value")]
table = Table([*names, split("blocks.#.attn.qkv", three)])


def ported(weights=original):
    """The port as its lines are now, with the original's weights."""
    return load_state_dict(Port(nnx.Rngs(0)), weights.state_dict(), rename=table)


def port_accuracy():
    return accuracy(ported()(rows[held_out], real[held_out]))


accuracies = {"as first written": port_accuracy()}
print(f"the port: {accuracies['as first written']:.1%} of the same digits")
assert accuracies["as first written"] < 0.5

# %% [markdown]
# Every weight found its place and every shape was right, yet this is another function. What is wrong? `compare` loads
# the weights, runs both sides on the same numbers in float64, and says where they first part.

# %%
sample = np.concatenate([held_out[lengths[held_out] == n][:2] for n in (5, 6, 7)])  # that broke off
complete = {"rows": load_digits().data[sample].reshape(-1, 8, 8) / 16}
padded = {"rows": rows[sample], "real": real[sample]}


def compared(inputs, **options):
    return compare(original, ported(), inputs, rename=table, **options)


report = compared(padded, dtypes=["float64"])
print(report)
assert report.parting.diagnosis.cause == "layer-norm epsilon"

# %% [markdown]
# The outputs are far apart, but that is not where it begins. It begins in the first layer norm, with an error so small
# that nobody would see it in a loss. The original's `layer_norm` has an `eps`, the port's `norm` has none. Mend the
# line. For a picture at the end, keep the errors of all layers before and after each mend, too.

# %%
wide = copy.deepcopy(original).double()
parts = ("norm1", "attn", "norm2", "mlp")
modules = [wide.embed, *(getattr(layer, part) for layer in wide.layers for part in parts), wide.norm, wide.head]
places = ["embed", *(f"{i}.{part}" for i in range(depth) for part in parts), "norm", "head"]


def torch_layers(inputs):
    """What each module of the original gives, in order."""
    found = []
    hooks = [module.register_forward_hook(lambda module, given, output: found.append(output)) for module in modules]
    wide(
        **{name: torch.from_numpy(x).to(torch.float64 if name == "rows" else torch.bool) for name, x in inputs.items()}
    )
    for hook in hooks:
        hook.remove()
    return found


def jax_layers(port, rows, real=None):
    """The same of the port."""
    mask = None if real is None else may_attend(real)
    found = [port.embed(rows)]
    x = port.positions(found[0])
    for block in port.blocks:
        found += [block.norm1(x), block.attention(block.norm1(x), mask=mask)]
        x = x + found[-1]
        found += [block.norm2(x), block.feed_forward(block.norm2(x))]
        x = x + found[-1]
    return [*found, port.norm(x), port(rows, real)]


def by_layer(inputs):
    """The largest difference of each layer, relative to the largest entry."""
    with jax.enable_x64(True):
        given = {name: jnp.asarray(x, jnp.float64 if name == "rows" else bool) for name, x in inputs.items()}
        ours = [np.asarray(x) for x in jax_layers(ported(wide), **given)]
    theirs = [x.numpy() for x in torch_layers(inputs)]
    return [abs(x - y).max() / abs(y).max() for x, y in zip(ours, theirs, strict=True)]


errors = {"as first written": by_layer(complete)}
norm = functools.partial(jattn.nn.LayerNorm, epsilon=1e-6)  # mended
errors["epsilon mended"] = by_layer(complete)

# %% [markdown]
# ## Two mistakes in one place
#
# Run it again.

# %%
report = compared(padded, dtypes=["float64"])
print(report.finding)
assert report.parting.torch_name == "layers.0.attn"
assert report.parting.diagnosis is None

# %% [markdown]
# The place is found, but no cause. Each known cause is tried by itself, and is named only if with it *all* of the
# difference vanishes. So there may be two, or one that nobody thought of. Then ask a simpler question. Attention is a
# projection, a mask and a softmax, and without padding there is no mask. So take the same digits whole.

# %%
report = compared(complete, dtypes=["float64"])
print(report.finding)
assert report.parting.diagnosis.cause == "order in a packed projection"

# %% [markdown]
# That is it. The original views what `qkv` gives as heads first, and cuts each head in three: `(h 3 d)`. The table
# splits it as three parts with all heads in each: `(3 h d)`. Both have the same shape, so nothing complained. In the
# table this is a number:

# %%
table = Table([*names, split("blocks.#.attn.qkv", three, num_heads=heads)])  # mended
errors["order mended"] = by_layer(complete)

report = compared(complete, dtypes=["float64"])
print(report)
assert report.parting.diagnosis.cause == "exact or tanh GELU"

# %% [markdown]
# The attention agrees, and now it is the activation. `nn.GELU()` is the exact one, `jax.nn.gelu` is an approximation
# unless told otherwise.

# %%
activation = functools.partial(jax.nn.gelu, approximate=False)  # mended
errors["GELU mended"] = by_layer(complete)

report = compared(complete)
print(report)
report.assert_equal()

# %% [markdown]
# Equal, for whole digits: the outputs, the gradients of the input and of every parameter, in float64 and in float32,
# where what is allowed goes by PyTorch's own distance from float64. Now with padding again:

# %%
errors["mask inverted"] = by_layer(padded)
report = compared(padded, dtypes=["float64"])
print(report.finding)
assert report.parting.diagnosis.cause == "inverted mask"

# %% [markdown]
# The `~` came over with the line. `masked_fill` wants to know what is to be *hidden*, a mask says who *may attend*.


# %%
def may_attend(real):  # noqa: F811
    return real[:, None, None]  # mended


errors["mask mended"] = by_layer(padded)

report = compared(padded)
print(report)
report.assert_equal()

# %% [markdown]
# The port is right. Two of its mistakes no test set would have found: put the epsilon and the GELU back, and it reads
# the digits as well as before.

# %%
accuracies["mended"] = port_accuracy()
mended, norm, activation = (norm, activation), jattn.nn.LayerNorm, jax.nn.gelu
accuracies["with the first epsilon and GELU"] = port_accuracy()
norm, activation = mended

print(f"{'the original':42} {torch_accuracy:.1%}")
for name, share in accuracies.items():
    print(f"{'the port, ' + name:42} {share:.1%}")
assert accuracies["mended"] == torch_accuracy
assert abs(accuracies["with the first epsilon and GELU"] - torch_accuracy) < 0.01

# %% [markdown]
# ## Does it train alike?
#
# Equal gradients are not yet equal training. `trajectory` trains both from the same parameters on the same batches and
# compares every loss, every gradient and every update. A new model, six epochs, and on either side AdamW with the same
# learning rate:


# %%
def loss(model, batch, rng):
    rows, real, digits = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(rows, real), digits).mean()


torch.manual_seed(1)
untrained = Reader()
train = functools.partial(
    trajectory,
    untrained,
    ported(untrained),
    [batch for seed in range(6) for batch in batches(seed)],
    loss=loss,
    torch_loss=torch_loss,
    torch_optimizer=functools.partial(torch.optim.AdamW, lr=2e-3),
    steps=180,
    rename=table,
)

with_optax = train(optimizer=optax.adamw(2e-3))
print(with_optax)
assert with_optax.first == (1, "update")

# %% [markdown]
# The first loss and its gradients are equal, and the first update is not. So it is not the model, it is the optimiser,
# which has the same name on both sides. What it does unless told otherwise is not the same:

# %%
for name, kind in {"torch.optim": torch.optim.AdamW, "optax": optax.adamw, "jattn.training": adamw}.items():
    print(f"{name:15} weight_decay={inspect.signature(kind).parameters['weight_decay'].default}")

# %% [markdown]
# The optimisers of `jattn.training` have PyTorch's meanings and defaults.

# %%
with_ours = train(optimizer=adamw(2e-3))  # mended
print(with_ours)
with_ours.assert_equal()

# %% [markdown]
# Every loss is the same but for rounding, and so is every parameter after the last step.
#
# ## And back
#
# What you train here, others may want in PyTorch. The same table leads back, to the original's names and layouts, bit
# for bit.

# %%
back = state_dict(ported(), rename=table)
original.load_state_dict(back)
assert all(torch.equal(back[name], x) for name, x in original.state_dict().items())
print(f"{len(back)} tensors, {sum(x.numel() for x in back.values()):,} numbers, all the same")

# %% [markdown]
# ## The picture
#
# Above, the difference of each layer between the original and the port. Each mend moves the place where they part
# to the right, until what is left is rounding. Below, the training: the losses of both sides, of which one covers the
# other, and their differences. By the losses alone either optimiser could be called right. (Differences of exactly zero
# are drawn at $10^{-17}$.)

# %%
figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", height_ratios=[1.15, 1])
panels = {
    "Layers, whole digits": ["as first written", "epsilon mended", "order mended", "GELU mended"],
    "Layers, with padding": ["mask inverted", "mask mended"],
}
for axis, (title, names_of_lines) in zip(axes[0], panels.items(), strict=True):
    for name, marker, line in zip(names_of_lines, "os^D", (4, 1.5, 1.5, 1.5), strict=False):
        colour = "C2" if name == names_of_lines[-1] else {"o": "C3", "s": "C1", "^": "C0"}[marker]
        axis.semilogy(np.maximum(errors[name], 1e-17), marker + "-", color=colour, lw=line, ms=6, label=name)
    axis.axhline(1e-10, color="0.5", ls=":", lw=1.2)
    axis.text(len(places) - 0.7, 6e-11, "allowed", color="0.4", ha="right", va="top", fontsize="small")
    axis.set(title=title, ylim=(3e-18, 30), ylabel="largest difference, relative")
    axis.set_xticks(range(len(places)), places, rotation=40, ha="right", rotation_mode="anchor")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.41), fontsize="small")

runs = {"optax.adamw": (with_optax, "C3"), "jattn.training.adamw": (with_ours, "C2")}
steps = np.arange(1, 181)
left, right = axes[1]
left.plot(steps, [step.torch_loss for step in with_ours.steps], color="0.75", lw=5, label="PyTorch")
for name, (run, colour) in runs.items():
    losses = np.array([(step.torch_loss, step.flax_loss) for step in run.steps]).T
    left.plot(steps, losses[1], color=colour, lw=1.1, label=f"port, {name}")
    right.semilogy(steps, np.maximum(abs(losses[0] - losses[1]), 1e-17), color=colour, lw=1.2, label=name)
left.set(title="Training: the losses", xlabel="step", ylabel="cross-entropy", ylim=0)
right.set(
    title="Training: their difference from PyTorch's", xlabel="step", ylabel="difference of the loss", ylim=(3e-18, 30)
)
left.legend(fontsize="small")
right.legend(loc="center right", bbox_to_anchor=(1, 0.4), fontsize="small")
for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
for axis in (*axes[0], right):
    axis.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axis.yaxis.set_minor_locator(NullLocator())
plt.show()

parts_at = [int(np.argmax(np.array(errors[name]) > 1e-10)) for name in panels["Layers, whole digits"][:-1]]
print("without padding they part first in", ", ".join(places[i] for i in parts_at))
assert parts_at == sorted(set(parts_at))
assert max(errors["GELU mended"] + errors["mask mended"]) < 1e-10

# %% [markdown]
# ## What stays
#
# A test, in your own repository: `compare(...).assert_equal()`, with padding and without. It fails with the place and
# the cause, as above. [What the debugger finds](../planted_mistakes.md) is counted on mistakes planted in other ports.
