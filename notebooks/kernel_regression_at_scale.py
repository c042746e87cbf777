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
# # Kernel regression on 100,000 points
#
# Nadaraya-Watson regression keeps its data, and each prediction looks at all of them. With 100,000 observations and as
# many places to predict, that is $10^{10}$ weights, as a matrix 40 GB in float32. Here is a map made of 100,000
# measurements in a few dozen MB: with a bandwidth for each feature, found by gradient, with an uncertainty for each
# place, and with the places named about which the data say nothing.

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.patches import Ellipse
from sklearn.neighbors import RadiusNeighborsRegressor

from jattn import attention_statistics, masks, nadaraya_watson, scores
from jattn.training import adam

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)  # float32, sums of 100,000 numbers
n = 100_000
noise = 0.5
generator = np.random.default_rng(0)


def height(place):
    """Dunes: the crests run from west to east, bend, and lie close behind one another."""
    east, north = place[..., 0], place[..., 1]
    return np.sin(2 * np.pi * (7 * north + 0.35 * np.sin(2 * np.pi * east))) + 1.5 * np.exp(
        -8 * ((east - 0.7) ** 2 + (north - 0.3) ** 2)
    )


def in_lake(place):
    """Where nobody measures."""
    return ((place[..., 0] - 0.3) / 0.16) ** 2 + ((place[..., 1] - 0.62) / 0.11) ** 2 < 1


camps = generator.normal((0.75, 0.7), 0.13, size=(n, 2))
anywhere = generator.uniform(size=(2 * n, 2))
places = np.where(generator.random((2 * n, 1)) < 0.3, np.tile(camps, (2, 1)), anywhere)  # many around the camp
places = places[~in_lake(places) & ((places > 0) & (places < 1)).all(-1)][:n]
hour = generator.uniform(size=(n, 1))  # of the measurement, as a share of the day; the dunes don't care
x = jnp.asarray(np.concatenate([places, hour], axis=1), jnp.float32)  # s d: east, north, hour; in no order
y = jnp.asarray(height(places) + noise * generator.normal(size=n), jnp.float32)  # s
assert x.shape == (n, 3)
print(f"{n:,} measurements of heights between {height(places).min():.1f} and {height(places).max():.1f}, noise {noise}")

# %% [markdown]
# ## Memory and time
#
# How much memory does a prediction at 4,096 places take? The compiler says so before anything is computed. It is what
# the data take and a few blocks of weights, and it does not grow with the number of places:

# %%
bandwidth = jnp.array([0.05, 0.05, 0.5])
predict = jax.jit(lambda places, bandwidth: nadaraya_watson(places, x, y, bandwidth=bandwidth))

for t in (1024, 4096):
    program = predict.lower(x[:t], bandwidth).compile()
    jax.block_until_ready(program(x[:t], bandwidth))
    start = time.perf_counter()
    jax.block_until_ready(program(x[:t], bandwidth))
    seconds = time.perf_counter() - start
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{t} places: {memory:.0f} MiB (as a matrix {4 * t * n / 2**20:,.0f}), {seconds:.2f} s on this machine")
    assert memory < 4 * 1024 * n / 2**20 / 4

# %% [markdown]
# The time does grow with them: every pair is computed, one place takes about as long as another. That is why the
# bandwidth below is chosen on a few thousand places and not on all.
#
# ## Is it right?
#
# The formula in NumPy, in float64, at 50 places:

# %%
few = np.asarray(x[:50], np.float64)
distance = (few[:, None] - np.asarray(x, np.float64)) / np.asarray(bandwidth, np.float64)  # t s d
kernel = np.exp(-(distance**2).sum(-1) / 2)
close(predict(x[:50], bandwidth), kernel @ np.asarray(y, np.float64) / kernel.sum(-1))

# %% [markdown]
# And scikit-learn, which has no Gaussian kernel regression, but a mean of all neighbours within a radius. That is the
# boxcar kernel:

# %%
neighbours = RadiusNeighborsRegressor(radius=0.05).fit(places, y)
boxcar = nadaraya_watson(x[:500, :2], x[:, :2], y, bandwidth=0.05, kernel="boxcar")
close(boxcar, neighbours.predict(np.asarray(x[:500, :2])), atol=1e-2)  # who is on the edge, rounding decides

# %% [markdown]
# ## Bandwidths by gradient
#
# A bandwidth is good if it predicts well what was not used. Leave each observation out when it is predicted itself:
#
# $$\operatorname{error}(h) = \frac{1}{n} \sum_i \big(f_{h,-i}(x_i) - y_i\big)^2 .$$
#
# Leaving oneself out is a mask. Of a batch of consecutive observations from `start` on, query 0 is key `start`, which
# `offset` says, so that `~sliding_window(0, 0, offset=start)` allows all keys but one's own. The observations are in no
# order, so any such batch is a random one. The error has a gradient with respect to each bandwidth, here to its
# logarithm, which keeps it positive:

# %%
batch = 256


def error(log_bandwidth, start):
    """Of a batch of observations, each predicted from all the others."""
    query, observed = (jax.lax.dynamic_slice_in_dim(array, start, batch) for array in (x, y))
    others = ~masks.sliding_window(0, 0, offset=start)
    predicted = nadaraya_watson(query, x, y, bandwidth=jnp.exp(log_bandwidth), mask=others)
    return jnp.mean((predicted - observed) ** 2)


@jax.jit
def step(log_bandwidth, state, start):
    loss, gradient = jax.value_and_grad(error)(log_bandwidth, start)
    update, state = optimizer.update(gradient, state, log_bandwidth)
    return log_bandwidth + update, state, loss


steps = 40
optimizer = adam(optax.cosine_decay_schedule(0.25, steps), b1=0.8, b2=0.9)  # soon forgets the steep beginning
log_bandwidth = jnp.log(jnp.full(3, 0.1))  # the same for each feature
state = optimizer.init(log_bandwidth)
path, losses = [log_bandwidth], []
for i in range(steps):
    log_bandwidth, state, loss = step(log_bandwidth, state, jnp.int32(i * batch))
    path.append(log_bandwidth)
    losses.append(float(loss))
path = np.exp(path)
bandwidth = jnp.asarray(path[-1])

for name, h in zip(("east", "north", "hour"), bandwidth, strict=True):
    print(f"bandwidth {name:5} {h:.3f}")
print(f"error {np.mean(losses[:5]):.3f} at first, {np.mean(losses[-10:]):.3f} in the end; of the noise {noise**2:.3f}")
assert bandwidth[1] < bandwidth[0] / 1.5
assert bandwidth[2] > 10 * bandwidth[0]
assert noise**2 < np.mean(losses[-10:]) < 0.29 < np.mean(losses[:5])

# %% [markdown]
# Across the crests, to the north, heights change fast, and the bandwidth is short. Along them it is longer. For the
# hour it is many times as long, and the longer it is, the less the average takes notice of the hour. Nobody had to
# choose features: the gradient has found which of them matter.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].semilogy(path, label=["east", "north", "hour"])
axes[0].axhline(1, color="0.7", lw=0.8, ls=":")
axes[0].set(xlabel="step", title="bandwidth")
axes[0].legend()
axes[1].semilogy(losses, color="0.3")
axes[1].axhline(noise**2, color="0.6", ls=":", label="variance of the noise")
axes[1].set(xlabel="step", title="leave-one-out error of a batch")
axes[1].legend()
plt.show()

# %% [markdown]
# ## The map, and how sure it is
#
# A value may have several columns. With $y$ and $y^2$ side by side, one pass gives the mean at each place and the mean
# square, and so the variance of the observations around it, $s^2$. The estimate is a weighted mean of independent
# observations, so its own variance is
#
# $$\operatorname{var} f(x) = s^2(x) \sum_i \alpha_i(x)^2 .$$
#
# The sum of the squared weights is the square of `norm` in `attention_statistics`, which looks at each row of weights
# and never keeps their matrix. Its inverse is the number of observations that a place effectively has.

# %%
side = 64
axis_of_map = (np.arange(side) + 0.5) / side
east, north = np.meshgrid(axis_of_map, axis_of_map)
grid = jnp.asarray(np.stack([east, north, np.full_like(east, 0.5)], axis=-1).reshape(-1, 3), jnp.float32)  # t d
truth = height(np.asarray(grid)[:, :2])
lake = in_lake(np.asarray(grid)[:, :2])


@jax.jit
def mean_and_deviation(places):
    mean, square = nadaraya_watson(places, x, jnp.stack([y, y**2], axis=-1), bandwidth=bandwidth).T
    score = scores.Gaussian(bandwidth=bandwidth)
    norm = attention_statistics(places[:, None], x[:, None], score=score).norm[0]  # of the one head
    return mean, jnp.sqrt(square - mean**2) * norm, 1 / norm**2


mean, deviation, effective = (np.asarray(result) for result in mean_and_deviation(grid))
land = ~lake
covered = (abs(mean - truth) < 2 * deviation)[land].mean()
print(f"effective observations: {effective[land].min():.0f} to {effective[land].max():.0f} on land")
print(
    f"rms error on land {np.sqrt(np.mean((mean - truth)[land] ** 2)):.3f}, mean deviation {deviation[land].mean():.3f}"
)
print(f"the truth is within two deviations at {covered:.0%} of the places on land")
assert np.sqrt(np.mean((mean - truth)[land] ** 2)) < 0.2
assert 0.7 < covered < 0.98

# %% [markdown]
# Were it for the noise alone, two deviations would hold the truth at about 95% of the places. They know nothing of the
# bias: a weighted mean over a crest is lower than the crest, however many observations there are. A longer bandwidth
# has less noise and more bias, and the leave-one-out error counts both.
#
# ## Where there is nothing
#
# On the lake nobody has measured. The Gaussian kernel answers there, too, by the nearest observations, as its weights
# are a softmax, which sees differences only. A kernel that ends gives no weight at all there, and the estimate is zero.
# A zero could be a height, so how is one to know? By a column of ones: its estimate is 1 where there is an observation
# within reach, and 0 where there is none.

# %%
ones = jnp.stack([y, jnp.ones_like(y)], axis=-1)
ends, reached = np.asarray(nadaraya_watson(grid[:, :2], x[:, :2], ones, bandwidth=0.03, kernel="boxcar")).T
empty = reached == 0
assert (ends[empty] == 0).all()
assert lake[empty].mean() > 0.95
close(reached[~empty], 1)
print(f"{empty.sum()} of {len(grid)} places have no observation within 0.03: {empty[lake].mean():.0%} of the lake's")
print(f"the Gaussian's error on the lake: {np.sqrt(np.mean((mean - truth)[lake] ** 2)):.2f}")
print(f"its observations there: {effective[lake].min():.0f} to {effective[lake].max():.0f}")

# %% [markdown]
# ## The picture
#
# Above: the truth, 3,000 of the measurements, and the map. Below: the deviation that the noise leaves, how far the map
# is from the truth, and the boxcar's map, with white where it has nothing to go by.

# %%
shown = {
    "the truth": truth,
    "measurements": None,
    "Gaussian, learned bandwidths": mean,
    "deviation": deviation,
    "distance from the truth": abs(mean - truth),
    "boxcar, radius 0.03": np.where(empty, np.nan, ends),
}
figure, axes = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained", sharex=True, sharey=True)
heights = dict(cmap="terrain", vmin=-1.3, vmax=2.4)
for axis, (title, values) in zip(axes.flat, shown.items(), strict=True):
    if values is None:
        picture = axis.scatter(*places[:3000].T, c=y[:3000], s=4, **heights)
    else:
        options = heights if values.min() < 0 or title.startswith("boxcar") else dict(cmap="magma", vmin=0)
        picture = axis.imshow(values.reshape(side, side), origin="lower", extent=(0, 1, 0, 1), **options)
    axis.add_patch(Ellipse((0.3, 0.62), 0.32, 0.22, fill=False, lw=0.8))  # the lake
    axis.set(title=title, aspect="equal")
    if axis in axes[:, 2] or title in ("deviation", "distance from the truth"):
        figure.colorbar(picture, ax=axis, shrink=0.8)
for axis in axes[1]:
    axis.set_xlabel("east")
for axis in axes[:, 0]:
    axis.set_ylabel("north")
plt.show()
