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
# # Write a mask nobody has
#
# Payments, readings of a patient, requests to a server: events that come when they come. The question about each is
# often one of the last 24 hours: how many, how much, is this usual? A window of so many *events* is not that. On a busy
# day 24 hours are twenty events, on a quiet one none. What is asked for is a mask by time stamps,
#
# $$\text{query } i \text{ may attend to key } j \Leftrightarrow |\tau_i - \tau_j| \le 24\,\text{h} ,$$
#
# and no library has it. Here it is written first in a line, then as a class that skips the keys out of reach, held to
# NumPy and to PyTorch, and used to train a model that needs it.

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from flax import nnx

import jattn
from jattn import masks
from jattn.masks import Mask, causal, over
from jattn.training import adam, fit, one_cycle_lr

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)  # float32
same = np.testing.assert_array_equal


def time_stamps(shape, seed):
    """In hours, ascending: bursts of events two hours apart, and now and then a day or more without any."""
    generator = np.random.default_rng(seed)
    within_a_burst = generator.random(shape) < 0.8
    gaps = np.where(within_a_burst, generator.exponential(2, shape), generator.exponential(24, shape))
    return np.cumsum(gaps, axis=-1).astype(np.float32)


times = time_stamps((3, 40), seed=0)  # b t: three customers, 40 payments of each

figure, axis = plt.subplots(figsize=(9, 1.8), layout="constrained")
axis.eventplot(times / 24, colors=["C0", "C1", "C2"], linelengths=0.7)
axis.set(yticks=range(3), yticklabels=["A", "B", "C"], xlabel="day", title="Three customers, 40 payments of each")
plt.show()

# %% [markdown]
# ## In a line
#
# `masks.where` takes a function of the positions of query and key. An array that has an entry for each example and
# query, or example and key, is given by name with its axes, and arrives ready to broadcast:

# %%
in_a_line = masks.where(
    lambda q, k, query_time, key_time: abs(query_time - key_time) <= 24.0,
    query_time=("bt", jnp.asarray(times)),
    key_time=("bs", jnp.asarray(times)),
)
matrices = in_a_line.as_array(40, 40)  # b h t s
assert matrices.shape == (3, 1, 40, 40)
print(matrices[0, 0, :8, :8].astype(int))

# %% [markdown]
# This is a complete mask: it goes into every function and layer, and its arrays are data, so that other time stamps do
# not compile anything again. One thing it cannot do is to say which keys are out of reach. `where` has `span=` for
# that, a function of positions alone, but the reach of this mask depends on the time stamps. So all keys are computed,
# and ruled out afterwards.
#
# ## As a class
#
# A subclass of `Mask` declares the axes of its fields with `over`, and its `formula` sees them with the axes
# `b h t s`, of length 1 where they have none. From the declaration follow the checks of shapes, the part for a block of
# queries, for a head, for a device.
#
# Two methods more make it fast. They are asked about a block of queries at a time:
#
# - `reachable`: the keys that *some* query of the block may see. It may say yes too often, never no wrongly.
# - `whole`: the keys that *every* query of the block may see. It may say no too often, never yes wrongly. The negation
#   of a mask needs it: what is out of reach for `~mask` is what all may see in `mask`.


# %%
class WithinHours(Mask):
    """Keys at most so many hours before or after the query; one number of hours, or one for each example."""

    query_times: jax.Array = over("bt", remedy="Give a time stamp for each query.")
    key_times: jax.Array = over("bs", remedy="Give a time stamp for each key.")
    hours: jax.Array | float = over("b")

    def formula(self, grid):
        return abs(self.query_times - self.key_times) <= self.hours

    def reachable(self, grid):
        first, last = self.ends()
        return (first - self.hours <= self.key_times) & (self.key_times <= last + self.hours)

    def whole(self, grid):
        first, last = self.ends()
        return (last - self.hours <= self.key_times) & (self.key_times <= first + self.hours)

    def ends(self):
        """The first and the last time stamp of the queries at hand, whose axis is the last but one."""
        return (end(self.query_times, axis=-2, keepdims=True) for end in (jnp.min, jnp.max))


def within(times, hours=24.0):
    """Self-attention: queries and keys are the same events."""
    return WithinHours(jnp.asarray(times), jnp.asarray(times), hours)


day = within(times)
same(day.as_array(40, 40), matrices)

# %% [markdown]
# ## Is it right?
#
# The plainest statement of it is a loop over all pairs.

# %%
expected = np.zeros((3, 1, 40, 40), bool)
for b, t, s in np.ndindex(3, 40, 40):
    expected[b, 0, t, s] = -24 <= times[b, t] - times[b, s] <= 24
same(day.as_array(40, 40), expected)

# %% [markdown]
# PyTorch takes the same matrix as a boolean mask, in which `True` means as here that a query may attend. Outputs agree,
# and so do the gradients of query, key and value.

# %%
normal = np.random.default_rng(1).normal
query, key, value, cotangent = (normal(size=(3, 40, 2, 8)).astype(np.float32) for _ in range(4))  # b t h d

ours, pull_back = jax.vjp(lambda q, k, v: jattn.attention(q, k, v, mask=day), query, key, value)
gradients = pull_back(cotangent)

tensors = [torch.from_numpy(x).requires_grad_() for x in (query, key, value)]
theirs = torch.nn.functional.scaled_dot_product_attention(
    *(x.transpose(1, 2) for x in tensors), attn_mask=torch.from_numpy(expected)
).transpose(1, 2)
theirs.backward(torch.from_numpy(cotangent))

close(ours, theirs.detach())
for gradient, tensor in zip(gradients, tensors, strict=True):
    close(gradient, tensor.grad)

# %% [markdown]
# ## Each example its own
#
# `times` had a row for each customer, and so may `hours`. Nothing says how many examples there are: a single array of
# times stands for all of them. Arrays that do not fit are refused before anything is computed, with the remedy that the
# field declares.

# %%
own_hours = within(times, jnp.array([6.0, 24.0, 72.0]))
for b, hours in enumerate([6.0, 24.0, 72.0]):
    same(own_hours.as_array(40, 40)[b, 0], within(times[b], hours).as_array(40, 40))

try:
    jattn.attention(query, key, value, mask=within(times[:, :39]))
except ValueError as error:
    message = str(error)
print(message)
assert "Give a time stamp for each query" in message

# %% [markdown]
# ## With others
#
# `&`, `|` and `~` join it to any other mask, and the result is a mask again. Four questions, and their masks, of
# customer A:

# %%
kinds = np.random.default_rng(2).integers(0, 4, size=(3, 40))  # of what is bought
questions = {
    "the last 24 hours": causal() & day,
    "… without oneself": causal(offset=-1) & day,
    "… of one's own kind": causal() & day & masks.segments(jnp.asarray(kinds)),
    "longer ago": causal() & ~day,
}
answers = {name: np.asarray(mask.as_array(40, 40))[0, 0] for name, mask in questions.items()}

figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
for axis, (name, answer) in zip(axes, answers.items(), strict=True):
    axis.imshow(answer, cmap="Blues", vmax=1.3)
    axis.set(title=name, xlabel="key")
axes[0].set_ylabel("query")
plt.show()

same(answers["the last 24 hours"] | answers["longer ago"], np.tril(np.ones((40, 40))))
same(answers["the last 24 hours"] ^ answers["… without oneself"], np.eye(40))

# %% [markdown]
# Without oneself, some payments have nothing to attend to: there was none in the 24 hours before. Their weights are
# zeros, and so is their output. Not a NaN, and not the mean of everything.

# %%
output, weights = jattn.attention(query, key, value, mask=questions["… without oneself"], return_weights=True)
alone = ~answers["… without oneself"].any(axis=-1)  # t, of customer A
print(f"{alone.sum()} of 40 payments have none before them within 24 hours")
assert alone[0]
assert (output[0, alone] == 0).all()
assert (weights[0, :, alone] == 0).all()
close(weights[0, :, ~alone].sum(axis=-1), 1)

# %% [markdown]
# ## Only some of the queries
#
# A new payment comes in, and only the last queries are of interest. A field over `t` or `s` goes by the order in the
# arrays: it needs an entry for each query that is *there*. `causal` goes by positions, which are 0, 1, 2 ... unless the
# call says otherwise. Without `query_positions`, the first of the last five queries would stand at position 0.

# %%
last = slice(35, 40)
of_last = WithinHours(jnp.asarray(times[:, last]), jnp.asarray(times), 24.0)
whole_output = jattn.attention(query, key, value, mask=causal() & day)
last_output = jattn.attention(query[:, last], key, value, mask=causal() & of_last, query_positions=jnp.arange(40)[last])
close(last_output, whole_output[:, last])

# %% [markdown]
# ## What is skipped
#
# Long sequences are computed in blocks of queries, and for each block only the keys between the first and the last one
# that it can reach. `explain` says that it is done so:

# %%
many = time_stamps(8192, seed=3)
q, k, v = (normal(size=(8192, 1, 16)).astype(np.float32) for _ in range(3))  # t h d
long_day = within(many)
print(f"{len(many):,} payments in {many[-1] / 24 / 365:.1f} years\n")
print(jattn.explain(q, k, v, mask=long_day))

# %% [markdown]
# `reachable` says how much that spares. Asked about blocks of 128 queries, the part of the mask that is theirs:


# %%
def share_skipped(mask, n, rows=128):
    """Of all pairs of n queries and n keys, those outside of what each block of queries can reach."""
    computed, numbers = 0, np.arange(n)
    for start in range(0, n, rows):
        position, key = numbers[None, start : start + rows, None], numbers[None, None, :]  # h t s
        block = mask.aligned(0).rows(start, rows)
        reached = np.flatnonzero(block.reachable(masks.Grid(position, key, position, key)))
        computed += rows * (reached[-1] - reached[0] + 1) if reached.size else 0
    return 1 - computed / n**2


shares = {
    "within 24 hours": share_skipped(long_day, 8192),
    "causal": share_skipped(causal(), 8192),
    "causal and within": share_skipped(causal() & long_day, 8192),
    "more than a year ago": share_skipped(causal() & ~within(many, 24.0 * 365), 8192),
}
for name, share in shares.items():
    print(f"{name:22} skips {share:.1%}")
allowed = sum(int((abs(many[i : i + 512, None] - many) <= 24).sum()) for i in range(0, 8192, 512)) / 8192**2
print(f"\nof all pairs {allowed:.2%} are allowed within 24 hours")
assert shares["within 24 hours"] > 0.97
assert shares["more than a year ago"] > shares["causal"] + 0.1  # by `whole`

# %% [markdown]
# The same numbers come out of all three ways to compute it: skipping, blocks of all keys (the mask of a line, which
# says nothing of reach), and the whole matrix at once. The times are those of the machine that made this page.


# %%
def timed(mask, implementation):
    attend = jax.jit(lambda q, k, v, mask: jattn.attention(q, k, v, mask=mask, implementation=implementation))
    jax.block_until_ready(attend(q, k, v, mask))  # compiles
    start = time.perf_counter()
    result = jax.block_until_ready(attend(q, k, v, mask))
    return result, time.perf_counter() - start


def in_a_line_of(times):
    query_time, key_time = (("t", jnp.asarray(times)), ("s", jnp.asarray(times)))
    return masks.where(lambda q, k, a, b: abs(a - b) <= 24.0, a=query_time, b=key_time)


skipping, seconds = timed(long_day, "streaming")
print(f"{'class, streaming':22} {1000 * seconds:7.1f} ms")
for name, mask, implementation in (
    ("line, streaming", in_a_line_of(many), "streaming"),
    ("class, whole matrix", long_day, "dense"),
):
    result, seconds = timed(mask, implementation)
    close(result, skipping, atol=1e-4)
    print(f"{name:22} {1000 * seconds:7.1f} ms")

# %% [markdown]
# Could `reachable` be wrong? Then keys are skipped that count, without an error, and the result depends on how it is
# computed. So hold a mask of your own to the whole matrix once, with more queries than a block has, as above. A mask
# that forgets half of the hours does not pass:


# %%
class Forgetful(WithinHours):
    def reachable(self, grid):
        first, last = self.ends()
        return (first - self.hours / 2 <= self.key_times) & (self.key_times <= last + self.hours / 2)


forgetful = Forgetful(long_day.query_times, long_day.key_times, 24.0)
wrong, _ = timed(forgetful, "streaming")
right, _ = timed(forgetful, "dense")
close(right, skipping, atol=1e-4)
print(f"largest difference: {abs(wrong - right).max():.2f}")
assert abs(wrong - right).max() > 0.1

# %% [markdown]
# ## A model that needs it
#
# Each payment has a kind, of four, and an amount. To be predicted: the mean amount of the payments of the same kind in
# the 24 hours up to now, this one included. The model is as small as can be: embed both, attend once, read a number. It
# has to learn to attend to its own kind, and to copy amounts. It is not told the time, except by the mask.


# %%
def customers(n, seed):
    """Time stamps, kinds, amounts and targets, each n 64."""
    times, generator = time_stamps((n, 64), seed), np.random.default_rng(seed + 1)
    kinds = generator.integers(0, 4, (n, 64))
    amounts = generator.normal(size=(n, 64)).astype(np.float32)  # about the usual, in standard deviations
    ago = times[:, :, None] - times[:, None]
    counts = (ago >= 0) & (ago <= 24) & (kinds[:, :, None] == kinds[:, None])
    means = np.einsum("bts,bs->bt", counts, amounts) / counts.sum(-1)
    return times, kinds, amounts, means.astype(np.float32)


class Spending(nnx.Module):
    def __init__(self, *, rngs):
        self.kind = nnx.Embed(4, 32, rngs=rngs)
        self.amount = nnx.Linear(1, 32, rngs=rngs)
        self.attend = jattn.nn.MultiHeadAttention(1, 32, rngs=rngs)
        self.read = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, kinds, amounts, mask, return_weights=False):
        x = self.kind(kinds) + self.amount(amounts[..., None])
        x, weights = self.attend(x, mask=mask, return_weights=True)
        return (self.read(x)[..., 0], weights) if return_weights else self.read(x)[..., 0]


def trained(mask_of):
    """A model trained under the mask that ``mask_of`` makes of time stamps, and its error on other customers."""

    def loss(model, batch, rng):
        times, kinds, amounts, target = batch
        return jnp.mean((model(kinds, amounts, mask_of(times)) - target) ** 2)

    model = Spending(rngs=nnx.Rngs(0))
    optimizer = adam(one_cycle_lr(0.03, total_steps=320))
    fit(model, training_set, loss=loss, optimizer=optimizer, epochs=20, batch_size=32, clip_norm=1.0, progress=False)
    return model, float(nnx.jit(loss)(model, held_out, None)) / held_out[-1].var()


training_set, held_out = customers(512, seed=10), customers(256, seed=20)
ago = held_out[0][:, :, None] - held_out[0][:, None]
in_a_day = ((ago >= 0) & (ago <= 24)).sum(-1)
print(f"payments in 24 hours: {in_a_day.min()} to {in_a_day.max()}, {in_a_day.mean():.1f} in the mean\n")

ways = {
    "all before": lambda times: causal(),
    "the last 6": lambda times: masks.sliding_window(5, 0),
}
for hours in (6.0, 12.0, 24.0, 48.0, 96.0):
    ways[f"{hours:g} h"] = lambda times, hours=hours: causal() & within(times, hours)

models, errors = {}, {}
for name, mask_of in ways.items():
    models[name], errors[name] = trained(mask_of)
    print(f"{name:11} error {errors[name]:.5f} of the variance")
assert errors["24 h"] < 1e-3 < 0.05 < min(error for name, error in errors.items() if name != "24 h")

# %% [markdown]
# With the right mask almost nothing is left of the error. Any other number of hours is worse, and so is a number of
# events: the last six, which are as many as there are in 24 hours in the mean. The mask's hours have no gradient, as a
# mask says yes or no; they are found by trying, as here.
#
# ## What the mask looks like
#
# Below is one customer of those held out, twice: with a row and a column for each *payment*, where the mask has no
# simple shape, and with axes that are *time*, where it is a band of one width. Colour is the weight that the trained
# model gives. Which cells may have any, the mask says. That only those of the query's own kind do, is learned.

# %%
chosen = int(np.diff(held_out[0][:, :48]).max(axis=1).argmin())  # the one without long pauses
t, some_kinds, amounts = (x[chosen : chosen + 1, :48] for x in held_out[:3])
mask = causal() & within(t)
_, weights = models["24 h"](some_kinds, amounts, mask, return_weights=True)
weights, may = np.asarray(weights)[0, 0], np.asarray(mask.as_array(48, 48))[0, 0]
other_kind = some_kinds[0][:, None] != some_kinds[0]
print(f"weight on payments of another kind: {weights[other_kind].sum() / weights.sum():.4f}")
assert weights[other_kind].sum() < 0.02 * weights.sum()
assert (weights[~may] == 0).all()

figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=[1, 1, 0.9])
for axis in axes[:2]:
    axis.set_facecolor("0.93")
axes[0].imshow(np.where(may, weights, np.nan), vmin=0, vmax=1, interpolation="nearest")
axes[0].set(title="by payment", xlabel="key: number of the payment", ylabel="query: number of the payment")

hours = t[0] / 24
rows, columns = np.nonzero(may)
points = axes[1].scatter(hours[columns], hours[rows], c=weights[rows, columns], s=11, marker="s", vmin=0, vmax=1)
ends = np.array([hours[0] - 0.3, hours[-1] + 0.3])
axes[1].plot(ends, ends, color="tab:red", lw=0.8)
axes[1].plot(ends - 1, ends, color="tab:red", lw=0.8, ls="--", label="now, and 24 hours ago")
axes[1].set(title="by time", xlabel="key: day", ylabel="query: day", xlim=ends, ylim=ends[::-1], aspect="equal")
axes[1].legend(loc="upper right", fontsize="small")
figure.colorbar(points, ax=axes[:2], shrink=0.7, label="weight")

by_hours = {float(name.split()[0]): error for name, error in errors.items() if name.endswith(" h")}
axes[2].loglog(list(by_hours), list(by_hours.values()), "o-", label="so many hours")
for name, style in (("all before", "--"), ("the last 6", ":")):
    axes[2].axhline(errors[name], color="0.4", ls=style, label=name)
axes[2].set_xticks(list(by_hours), [f"{hours:g}" for hours in by_hours])
axes[2].minorticks_off()
axes[2].set(title="error", xlabel="hours that the mask allows", ylabel="share of the variance")
axes[2].legend(fontsize="small")
plt.show()
