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
# # Attention pooling
#
# Attention is a weighted average whose weights come from comparing a *query* with *keys*. The oldest example is a
# regression from 1964 by Nadaraya and by Watson, and all of attention is in it: queries, keys, values, a score and a
# softmax. This notebook goes from weights that are all the same to weights that are learned.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

import jattn
from jattn import nadaraya_watson
from jattn.masks import sliding_window
from jattn.training import adam, fit

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # float32


def truth(x):
    return 2 * np.sin(x) + x**0.8


generator = np.random.default_rng(0)
key = np.sort(generator.uniform(0, 5, size=50)).astype(np.float32)  # s: where the curve was observed
value = (truth(key) + 0.5 * generator.normal(size=50)).astype(np.float32)  # s: what was observed there
query = np.linspace(0, 5, 50, dtype=np.float32)  # t: where we want to know it

q, k, v = torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(value)
torch_output = torch.softmax(-((q[:, None] - k) ** 2) / 2, dim=-1) @ v
jattn_output = nadaraya_watson(query, key, value)

close(jattn_output, torch_output)

# %% [markdown]
# ## Cues
#
# The words are borrowed from psychology. Two things steer attention: what stands out by itself, and what one is looking
# for.
#
# | in psychology | in attention | here |
# |---|---|---|
# | volitional cue: what you are looking for | query | a place on the axis |
# | nonvolitional cue: how a thing presents itself | key | the place of an observation |
# | sensory input: what there is to be perceived | value | the observed number |
#
# A linear layer or a mean has only the last two, so it treats its inputs the same way whatever is asked. Attention
# pooling has all three,
#
# $$f(x) = \sum_{i} \alpha(x, x_i)\, y_i, \qquad \alpha(x, x_i) \ge 0, \qquad \sum_{i} \alpha(x, x_i) = 1 ,$$
#
# and lies somewhere between two things that everybody knows: a mean, and a dictionary. With one-hot keys, one factor on
# the score leads from the one to the other.

# %%
scales = [0.0, 3.0, 30.0]
words = jnp.eye(10)[:, None, :]  # t h d and s h d: ten keys, and each of them as a query
lookups = jnp.stack([jattn.attention_weights(words, words, scale=scale)[0] for scale in scales])  # scales t s

close(lookups[0], 1 / 10)  # a mean: every key counts the same
close(lookups[2], jnp.eye(10))  # a dictionary: each query finds its key, and nothing else
jattn.plots.heatmaps(lookups, column_titles=["mean (scale 0)", "scale 3", "dictionary (scale 30)"])

# %% [markdown]
# ## Average pooling
#
# The task: 50 noisy observations of the curve $2 \sin x + x^{0.8}$. The simplest estimate takes no notice of the query,
#
# $$f(x) = \frac{1}{n} \sum_{i=1}^{n} y_i ,$$
#
# so it is the same everywhere.

# %%
average = nadaraya_watson(query, key, value, kernel="constant")
close(average, value.mean())

# %% [markdown]
# ## Nadaraya-Watson
#
# Let observations count by their distance to the query, through a kernel $K$. With the Gaussian,
# $K(u) = e^{-u^2/2} / \sqrt{2\pi}$, the quotient is a softmax, and its constant cancels:
#
# $$f(x) = \sum_{i} \frac{K(x - x_i)}{\sum_j K(x - x_j)}\, y_i
# = \sum_{i} \operatorname{softmax}_i\!\left(-\tfrac{1}{2} (x - x_i)^2\right) y_i .$$

# %%
estimate, weights = nadaraya_watson(query, key, value, return_weights=True)  # t, and t s

kernel = np.exp(-((query[:, None] - key) ** 2) / 2) / np.sqrt(2 * np.pi)
close(weights, kernel / kernel.sum(axis=1, keepdims=True))  # no softmax in sight
close(estimate, weights @ value)
close(weights.sum(axis=1), 1)
assert (weights >= 0).all()


# %%
def error(estimate):
    """The root mean square distance from the true curve."""
    return float(np.sqrt(np.mean((np.asarray(estimate) - truth(query)) ** 2)))


def draw(axis, curves):
    axis.plot(key, value, "o", color="0.75", label="observations")
    axis.plot(query, truth(query), color="black", label="truth")
    for label, curve in curves.items():
        axis.plot(query, curve, "--", label=label)
    axis.set(xlabel="$x$", ylabel="$y$")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))


figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
draw(axis, {"average pooling": average, "Nadaraya-Watson": estimate})
axis.set_title("The estimate is right about the shape, and too flat")
plt.show()

assert error(estimate) < error(average)
assert np.ptp(estimate) < np.ptp(truth(query))  # too flat: every value is a mean over its surroundings

# %% [markdown]
# The weights, one row for each query and one column for each observation. The nearest observation gets the most. The
# band is broad, which is why the estimate is flat.

# %%
nearest = np.abs(query[:, None] - key).argmin(axis=1)
np.testing.assert_array_equal(weights.argmax(axis=1), nearest)
jattn.plots.heatmaps(weights, xlabel="key (observation)", ylabel="query", size=3.5)

# %% [markdown]
# ## Learning the width
#
# Parametric attention pooling puts a learned factor on the difference,
#
# $$f(x) = \sum_{i} \operatorname{softmax}_i\!\left(-\tfrac{1}{2} \big((x - x_i)\, w\big)^2\right) y_i .$$
#
# Which $w$ gives the smallest error on the observations themselves? An infinite one: each observation then attends to
# itself alone, the error is zero, and nothing has been learned.

# %%
model = jattn.nn.NadarayaWatson(factor=1e6)
memory, itself = model(key, key, value, return_weights=True)
close(itself, np.eye(50))
close(memory, value)

# %% [markdown]
# So an observation must not see itself. That is a mask: every key but one's own. What is left to minimise is
#
# $$\frac{1}{n} \sum_{i} \big(f_{-i}(x_i) - y_i\big)^2 ,$$
#
# where $f_{-i}$ leaves observation $i$ out.


# %%
def leave_one_out(model, batch, rng):
    key, value = batch
    return jnp.mean((model(key, key, value, leave_one_out=True) - value) ** 2)


model = jattn.nn.NadarayaWatson(factor=1.0)  # plain Nadaraya-Watson
others = model(key, key, value, leave_one_out=True)
close(others, nadaraya_watson(key, key, value, mask=~sliding_window(0, 0)))

options = dict(optimizer=adam(0.3), epochs=300, batch_size=50, progress=False)
history = fit(model, (key, value), loss=leave_one_out, **options)
factor = float(model.factor[...])
learned, sharp_weights = model(query, key, value, return_weights=True)

print(f"w = {factor:.2f}, error {error(learned):.2f} instead of {error(estimate):.2f}")
assert history.losses[-1] < history.losses[0]
assert error(learned) < error(estimate)

# %% [markdown]
# Is it the best one? With a single number there is no need to trust an optimiser: try them all.

# %%
factors = jnp.geomspace(0.2, 30, 200)
losses = jax.vmap(lambda w: leave_one_out(jattn.nn.NadarayaWatson(factor=w), (key, value), None))(factors)
assert history.losses[-1] <= losses.min() * 1.001

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.semilogx(factors, losses, label="leave-one-out error")
axis.plot(factor, history.losses[-1], "o", color="tab:red", label="learned")
axis.axhline(0.5**2, color="0.6", ls=":", label="variance of the noise")
axis.set(xlabel="factor $w$", ylabel="mean squared error")
axis.set_title("Too flat on the left, too restless on the right")
axis.legend()
plt.show()

# %% [markdown]
# Learning has made the weights *sharper*. To measure that, count how many observations a query really uses:
# $1 / \sum_i \alpha_i^2$ is $n$ for $n$ equal weights, and 1 when one observation has all the weight.


# %%
def keys_in_use(weights):
    return 1 / (weights**2).sum(axis=1)


close(keys_in_use(np.full((1, 50), 1 / 50)), 50)
before, after = keys_in_use(weights), keys_in_use(sharp_weights)
print(f"observations in use by a query, in the mean: {before.mean():.1f} before, {after.mean():.1f} after")
assert (after < before).all()
jattn.plots.heatmaps(
    jnp.stack([weights, sharp_weights]),
    column_titles=["$w = 1$", f"learned, $w = {factor:.2f}$"],
    xlabel="key (observation)",
    ylabel="query",
    size=3,
)

# %%
figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
draw(axis, {"$w = 1$": estimate, f"learned, $w = {factor:.2f}$": learned})
axis.set_title("The learned width follows the curve")
plt.show()

# %% [markdown]
# ## Kernels and bandwidths
#
# The bandwidth is $1 / w$: the unit in which distance is measured. The kernel says how weight falls off with it. Some
# kernels reach to infinity, others end.
#
# | | $K(u)$, up to a constant | ends |
# |---|---|---|
# | Gaussian | $e^{-u^2/2}$ | never |
# | Epanechnikov | $\max(0, 1 - u^2)$ | at 1 |
# | boxcar | 1 where $u \le 1$, else 0 | at 1 |

# %%
kernels, bandwidths = ["gaussian", "epanechnikov", "boxcar"], [0.25, 0.5, 1.0]
distance = np.abs(query[:, None] - key)  # t s
curves, pictures = {}, []
for name in kernels:
    for h in bandwidths:
        curve, alpha = nadaraya_watson(query, key, value, kernel=name, bandwidth=h, return_weights=True)
        assert name == "gaussian" or (alpha[distance > h] == 0).all()
        curves[name, h] = curve
        pictures.append(alpha / alpha.max(axis=1, keepdims=True))

figure = jattn.plots.heatmaps(
    np.reshape(pictures, (3, 3, 50, 50)),  # kernels bandwidths t s
    row_titles=kernels,
    column_titles=[f"bandwidth {h}" for h in bandwidths],
    xlabel="key (observation)",
    ylabel="query",
)
figure.axes[-1].set_ylabel("weight, as a share of the query's largest")
display(figure)

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
for axis, name in zip(axes, kernels, strict=True):
    axis.plot(key, value, "o", color="0.85")
    axis.plot(query, truth(query), color="black", lw=1)
    for h in bandwidths:
        axis.plot(query, curves[name, h], label=f"bandwidth {h}")
    axis.set(xlabel="$x$", title=name)
axes[0].set_ylabel("$y$")
axes[0].legend(fontsize="small")
plt.show()

# %% [markdown]
# What of a query far from everything? A kernel that ends gives weight to nothing, and the estimate is zero: *I don't
# know*. The Gaussian always answers, and with full confidence, by the nearest observation alone. A softmax sees
# differences of scores only, and can't tell that *all* of them are bad.

# %%
far = jnp.array([100.0])
answer, no_weights = nadaraya_watson(far, key, value, kernel="boxcar", return_weights=True)
assert answer == 0
assert (no_weights == 0).all()

answer, far_weights = nadaraya_watson(far, key, value, return_weights=True)
assert far_weights.argmax() == key.argmax()
assert far_weights.max() > 0.9

# %% [markdown]
# ## From a kernel to a dot product
#
# How is this related to the attention of transformers? Multiply the square out:
#
# $$-\tfrac{1}{2} (x - x_i)^2 = x\,x_i - \tfrac{1}{2} x_i^2 - \tfrac{1}{2} x^2 .$$
#
# The last term is the same for every key, so the softmax doesn't see it. What is left is the dot product of
# $(x, 1)$ and $(x_i, -\tfrac{1}{2} x_i^2)$. Gaussian kernel regression *is* dot-product attention, with two features.

# %%
queries = jnp.stack([query, jnp.ones_like(query)], axis=-1)  # t d
keys = jnp.stack([key, -(key**2) / 2], axis=-1)  # s d
dot_product = jattn.attention(queries[:, None], keys[:, None], value[:, None, None], scale=1.0)  # t h e

close(dot_product[:, 0, 0], estimate)
