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
# # Find and cut the heads you don't need
#
# A trained transformer often has more heads than it needs. Which ones can go, and how many? Looking at their weights
# does not say: a head may look sharply at something that the rest of the model ignores. Here the heads of a small
# vision transformer are looked at, measured, and switched off, in order of importance and at random. Then the decision
# is made, and what is left is an ordinary model with fewer parameters.

# %%
import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jattn
from jattn import heads
from jattn.models import DigitsClassifier
from jattn.training import adamw, fit, one_cycle_lr

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)  # float32

# %% [markdown]
# ## Three parts of the data
#
# scikit-learn's digits, in three parts, each for one purpose:
#
# - half of them train the model, and measure its heads;
# - a quarter decides by which measure heads are cut, and how many: the *validation* data;
# - a quarter says what that decision is worth: the *test* data. They are not looked at before it is made.
#
# Whoever chooses the best of many candidates also chooses the luckiest, so the validation data flatter what they have
# chosen. The test data don't.

# %%
digits = load_digits()
images, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int32)
split = functools.partial(train_test_split, test_size=0.5, random_state=0)
train_x, rest_x, train_y, rest_y = split(images, labels, stratify=labels)
validation_x, test_x, validation_y, test_y = split(rest_x, rest_y, stratify=rest_y)
train, validation, test = (train_x, train_y), (validation_x, validation_y), (test_x, test_y)
print(f"{len(train_x)} images train, {len(validation_x)} validate, {len(test_x)} test")

# %% [markdown]
# The model sees an image as 16 patches of 2 × 2 pixels. It has two layers of eight heads.


# %%
def loss(model, batch, rng):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images, rng=rng), labels).mean()


def accuracy(model, data):
    images, labels = data
    return (model(images).argmax(-1) == labels).mean()


epochs, batch_size = 40, 64
model = DigitsClassifier(num_heads=8, num_layers=2, rngs=nnx.Rngs(0))
optimizer = adamw(one_cycle_lr(3e-3, epochs * (len(train_x) // batch_size)), weight_decay=0.3)
options = dict(epochs=epochs, batch_size=batch_size, drop_last=True, progress=False)
fit(model, train, loss=loss, optimizer=optimizer, **options)
model.eval()

n_heads = sum(heads.counts(model).values())
whole = float(accuracy(model, validation))
print(heads.counts(model))
print(f"validation accuracy {whole:.3f}, standard error {np.sqrt(whole * (1 - whole) / len(validation_x)):.3f}")
assert n_heads == 16
assert whole > 0.9

# %% [markdown]
# ## Look
#
# Everything that attends returns its weights. Their mean over the validation images, for each head:

# %%
predict = nnx.jit(lambda model, images: model(images, return_weights=True))
_, weights = predict(model, validation_x)  # of each layer, b h t s
mean_weights = np.stack([layer.mean(axis=0) for layer in weights])  # l h t s
close(mean_weights.sum(axis=-1), 1)

jattn.plots.heatmaps(
    mean_weights,
    row_titles=["layer 0", "layer 1"],
    column_titles=[f"head {i}" for i in range(8)],
    xlabel="key patch",
    ylabel="query patch",
    size=1.4,
)

# %% [markdown]
# The patches are numbered row by row, so a vertical stripe is a place that all patches look at. Some heads are
# sharp, others look almost everywhere. Which of them matter?
#
# ## Measure
#
# `importance` has nine measures. Four of them here, from the cheapest to the exact one:
#
# - `entropy` is how widely a head looks around; low is held to be important;
# - `output_variance` is how much what the head adds changes from patch to patch and image to image;
# - `gradient` is how steeply the loss changes with a factor on the head's output, at the factor 1;
# - `leave_one_out` is how much the loss rises without the head.
#
# `heads.METRICS` says of each where it misleads.

# %%
task = heads.Task(
    loss=loss,
    score=accuracy,
    score_name="accuracy",
    batch_size=len(train_x),
    metrics=("entropy", "output_variance", "gradient", "leave_one_out"),
    random_draws=30,
    progress=False,
)
measured = task.importance(model, train)
agreement = measured.agreement()
for metric, correlation in agreement.items():
    print(f"rank correlation of {metric:15} with leave_one_out: {correlation:5.2f}")
    print(f"    misleads: {heads.METRICS[metric].misleads}")
assert agreement["gradient"] > 0.7
assert agreement["output_variance"] < agreement["gradient"]

# %%
heads.plot_importance(measured)

# %% [markdown]
# `output_variance` and `leave_one_out` contradict each other. What the heads of layer 1 add varies most, but the model
# hardly misses most of them. The gradient, which needs one pass forward and back for all heads together, ranks them
# nearly as leaving each of them out does.
#
# ## One by one is not together
#
# Each rise of the loss above is that of one head switched off, while all others are there to stand in for it.
# `gated` puts a factor on each head's output, 0 to switch it off. Switch off half of the heads, those whose rises are
# smallest:


# %%
def gates_without(removed):
    """1 for each head, 0 for those removed, by layer."""
    gates = {layer: np.ones(h, np.float32) for layer, h in heads.counts(model).items()}
    for layer, numbers in removed.items():
        gates[layer][numbers] = 0
    return gates


half = measured.lowest(0.5, "leave_one_out")
rises = dict(zip(measured.heads, measured.values("leave_one_out"), strict=True))
separately = sum(rises[layer, i] for layer, numbers in half.items() for i in numbers)
together = float(loss(heads.gated(model, gates_without(half)), train, None) - loss(model, train, None))
print(f"loss rises by {separately:.3f}, if the rises are added, and by {together:.3f} without all eight")
assert together > 2 * separately

# %% [markdown]
# So a ranking says in which order to cut, and not how far one can go. That has to be tried.
#
# ## Try without
#
# `try_out` switches heads off in the order of each measure, from one head to all but two, as each layer keeps its last
# head. Besides, for each number of heads, 30 sets drawn at random: without them, one would not know whether an order is
# any good, or the model has heads to spare in any order. All on the validation data.

# %%
kept = np.arange(n_heads - 1, 1, -1)
candidates = heads.try_out(model, validation, measured, task=task, shares=1 - kept / n_heads)


def scores_of(candidates, by):
    """The accuracies with each number of heads kept, a row for each."""
    return np.array(
        [[c.score for c in candidates if c.by == by and np.isclose(c.share, 1 - k / n_heads)] for k in kept]
    )


def draw_curves(axis, candidates, metrics, score_of_whole):
    """Accuracy over heads kept: by each metric, and the mean and range of the random sets."""
    random, at = scores_of(candidates, "random"), [n_heads, *kept]
    for level, style in ((0, 0.16), (25, 0.26)):
        low, high = np.percentile(random, [level, 100 - level], axis=1)
        label = "random: all 30 draws" if level == 0 else "random: middle half"
        axis.fill_between(kept, low, high, color="0.4", alpha=style, lw=0, label=label)
    axis.plot(at, [score_of_whole, *random.mean(axis=1)], color="0.35", ls="--", label="random: mean")
    for metric in metrics:
        color, marker = f"C{task.metrics.index(metric)}", "osD^"[task.metrics.index(metric)]
        axis.plot(
            at, [score_of_whole, *scores_of(candidates, metric)[:, 0]], marker + "-", ms=4, color=color, label=metric
        )
    axis.set(xlabel="heads kept", ylabel="accuracy", ylim=(0, 1.02), xticks=range(2, n_heads + 1, 2))
    axis.invert_xaxis()


figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
draw_curves(axis, candidates, task.metrics, whole)
axis.set_title("Validation: heads cut by each measure, and at random")
axis.legend(loc="lower left", fontsize=9, framealpha=1)
plt.show()

# %% [markdown]
# A measure that sounds reasonable can be worse than chance: cutting by `output_variance` first takes heads of layer 0,
# on which all that follows builds.

# %%
middle = np.flatnonzero((kept >= 6) & (kept <= 10))
random_mean = scores_of(candidates, "random")[middle].mean()
for metric in task.metrics:
    print(f"mean accuracy with 6 to 10 heads, by {metric:15} {scores_of(candidates, metric)[middle].mean():.3f}")
print(f"mean accuracy with 6 to 10 heads, at random          {random_mean:.3f}")
assert scores_of(candidates, "leave_one_out")[middle].mean() > random_mean + 0.05
assert scores_of(candidates, "output_variance")[middle].mean() < random_mean
assert {layer for layer, _ in measured.ranking("output_variance")[:5]} == {"blocks.0.attention"}

# %% [markdown]
# ## Decide
#
# By a rule, on the validation data alone: the measure with the highest mean accuracy over all numbers of heads, and as
# few heads as lose no more than one percentage point, with no larger number losing more. The last clause keeps a single
# lucky point of the curve from deciding.

# %%
allowed_drop = 0.01
chosen_metric = heads.best_metric(candidates)
enough = scores_of(candidates, chosen_metric)[:, 0] >= whole - allowed_drop
n_kept = int(kept[np.argmin(enough) - 1])
assert enough[0]
assert not enough.all()
assert n_kept < n_heads

removed = measured.lowest(n_heads - n_kept, chosen_metric)
print(f"by {chosen_metric}, keep {n_kept} of {n_heads} heads and cut", removed)

# %% [markdown]
# ## Cut
#
# `prune` takes the parameters of these heads out: their columns of the query, key and value projections, and their rows
# of the output projection. The result has the same class and an ordinary forward pass, and its outputs are those of the
# whole model with the heads switched off.

# %%
smaller = heads.prune(model, removed)
print("heads left:", heads.counts(smaller))
assert sum(heads.counts(smaller).values()) == n_kept

masked = heads.gated(model, gates_without(removed))
close(smaller(test_x), masked(test_x))
kept_numbers = {layer: np.flatnonzero(gates) for layer, gates in gates_without(removed).items()}
first_layer = kept_numbers["blocks.0.attention"]
_, smaller_weights = predict(smaller, validation_x)
close(smaller_weights[0], weights[0][:, first_layer])  # heads of the first layer see the same input as before


def size(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def in_attention(model):
    return sum(size(block.attention) for block in model.blocks)


for name, count in (("in attention", in_attention), ("in all", size)):
    print(
        f"parameters {name:12} {count(model):6,} before, {count(smaller):6,} after: {count(smaller) / count(model):.0%}"
    )
assert size(model) - size(smaller) == in_attention(model) - in_attention(smaller) > 0

seconds = heads.speed({"whole": model, "smaller": smaller}, test_x, predict=lambda model, x: model(x), rounds=5)
for name, rounds in seconds.items():
    print(f"{name:7} {1000 * min(rounds):5.1f} ms for {len(test_x)} images, on the machine that made this page")

# %% [markdown]
# ## What is it worth?
#
# Now the test data, for the first time. Both models see the same images, so what counts are those on which they differ:
# if the models were equally good, an image on which just one is right would be as likely lost as gained. The standard
# error of the difference follows from their number.

# %%
right_whole, right_smaller = (np.asarray(m(test_x).argmax(-1)) == test_y for m in (model, smaller))
lost, gained = (right_whole & ~right_smaller).sum(), (~right_whole & right_smaller).sum()
difference = (gained - lost) / len(test_y)
error = np.sqrt((gained + lost) / len(test_y) ** 2 - difference**2 / len(test_y))
chosen_on_validation = float(accuracy(smaller, validation))
print(f"validation: {whole:.3f} whole, {chosen_on_validation:.3f} smaller")
print(f"test:       {right_whole.mean():.3f} whole, {right_smaller.mean():.3f} smaller")
print(
    f"of {len(test_y)} test images {lost} are lost and {gained} gained: {difference:+.3f}, standard error {error:.3f}"
)
close(right_smaller.mean() - right_whole.mean(), difference)
assert chosen_on_validation >= whole - allowed_drop - 1e-6
assert difference > -0.05

# %% [markdown]
# If the fall is larger here than on the validation data, that is the flattery of having chosen there, and chance. A
# stricter rule, or more validation data, is the remedy. Choosing again by the test data is not: they would be
# validation data from then on.
#
# And the whole curve on the test data, for the picture only: nothing is chosen by it. The random sets are drawn anew.
# How many of them are as good as the chosen set of the same size?

# %%
test_task = heads.Task(loss=loss, score=accuracy, batch_size=len(train_x), random_draws=30, seed=1, progress=False)
shares = 1 - kept / n_heads
on_test = heads.try_out(model, test, measured, task=test_task, shares=shares, metrics=[chosen_metric])
by_importance, at_random = scores_of(on_test, chosen_metric)[:, 0], scores_of(on_test, "random")

at = int(np.flatnonzero(kept == n_kept)[0])
as_good = (at_random[at] >= by_importance[at]).sum()
print(
    f"{n_kept} heads: {by_importance[at]:.3f} as chosen, {at_random[at].mean():.3f} at random; {as_good} of 30 as good"
)
print(f"8 heads: {by_importance[kept == 8][0]:.3f} by importance, {at_random[kept == 8].mean():.3f} at random")
close(by_importance[at], right_smaller.mean())
assert by_importance[at] > at_random[at].mean()
assert by_importance[kept == 8][0] > at_random[kept == 8].mean() + 0.05

# %% [markdown]
# ## The picture
#
# On the left, what cutting costs. On the right, all heads on one test image: how much attention each patch receives,
# on average over the patches that look. The kept heads are in colour, the cut ones in grey.

# %%
example = int(np.flatnonzero(test_y == 0)[0])
_, of_example = predict(model, test_x[example : example + 1])
received = np.stack([layer[0].mean(axis=1) for layer in of_example]).reshape(2, 8, 4, 4)  # l h, and rows and columns
close(received.sum(axis=(2, 3)), 1)

outline = np.arange(-1, 9), np.arange(-1, 9), np.pad(test_x[example], 1)  # padded, so that its lines close

figure = plt.figure(figsize=(13, 4.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25], wspace=0.03)
axis = left.subplots()
draw_curves(axis, on_test, [chosen_metric], right_whole.mean())
axis.axvline(n_kept, color="C3", lw=1, ls=":")
axis.plot(
    n_kept, right_smaller.mean(), "o", ms=11, mfc="none", mec="C3", mew=1.8, label=f"the decision: {n_kept} heads"
)
axis.set_title("Test accuracy")
axis.legend(loc="lower left", fontsize=9, framealpha=1)

axes = right.subplots(4, 4)
for axis, (layer, head) in zip(axes.flat, np.ndindex(2, 8), strict=True):
    stays = head in kept_numbers[f"blocks.{layer}.attention"]
    extent = (-0.5, 7.5, 7.5, -0.5)  # in pixels of the image
    cmap, line = ("viridis", "white") if stays else ("Greys", "0.45")
    picture = axis.imshow(received[layer, head], cmap=cmap, vmin=0, vmax=received.max(), extent=extent)
    axis.contour(*outline, levels=[0.5], colors=line, linewidths=1.3)
    axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    axis.set_title(f"layer {layer}, head {head}", fontsize=9, color="black" if stays else "0.5")
    if stays:
        shown = picture
right.suptitle(f"{n_kept} heads kept, in colour, and {n_heads - n_kept} cut, in grey")
right.colorbar(shown, ax=axes, shrink=0.7, label="mean weight that a patch receives")
plt.show()

# %% [markdown]
# This is one model, trained once; another seed makes other heads, and they are worth other measures.
# `heads.cross_validate` repeats the comparison over folds with models trained anew. And nothing was trained after the
# cut: `heads.refine` cuts in rounds and trains in between, which allows to go further. Both, and a report with the
# decision, are in `heads.study`.
