"""The masks, biases and scores that every implementation is tried with, whatever the lengths.

Whoever adds one to jattn adds a line here, and all that take one try it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jattn import biases, masks, scores
from jattn._engine.axes import over

Masks = dict[str, masks.Mask | jax.Array | None]


def integers(seed: int, high: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape))


def booleans(seed: int, *shape: int) -> jax.Array:
    return integers(seed, 2, *shape) > 0


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Checkered(masks.Mask):
    """A user's own, which has nothing but its formula."""

    def formula(self, grid):
        return (grid.query + grid.key) % 2 == 0


class Below(masks.Mask):
    """A user's own with one number for each example and head."""

    most: jax.Array = over("bh")

    def formula(self, grid):
        return grid.key < self.most


def of_two_axes(x: jax.Array) -> jax.Array:
    """Without the axes of examples and heads, where nothing differs among them."""
    return x.reshape(x.shape[-2:]) if x.size == np.prod(x.shape[-2:]) else x


class OfTwoAxes(masks.Mask):
    """A user's own whose formula gives ``t s``."""

    def formula(self, grid):
        return of_two_axes(grid.query >= grid.key)


class BiasOfTwoAxes(biases.Bias):
    """Likewise."""

    rate: jax.Array

    def formula(self, grid):
        return of_two_axes(-self.rate * abs(grid.query - grid.key))


class Cosine(scores.Score):
    """A user's own that streams."""

    by_pair = True

    def __call__(self, query, key):
        query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
        return scores.DotProduct(1.0)(query, key)


def each_mask(b: int, h: int, t: int, s: int) -> Masks:
    """Every kind of mask, for ``b`` examples and ``h`` heads; the first few without data."""
    near = t // 10 + 1
    lens = (s - near) // (1 + 4 * jnp.arange(b))  # a long example, and shorter ones

    def packed(seed: int, count: int, n: int) -> jax.Array:
        return jnp.sort(integers(seed, count, b, n))

    return {
        "none": None,
        "causal": masks.causal(),
        "offset": masks.causal(offset=3),
        "empty rows": masks.causal(offset=-4),
        "lower right": masks.causal_lower_right(t, s),
        "window of the past": masks.sliding_window(near, 0),
        "window": masks.sliding_window(near, 2),
        "window past the keys": masks.sliding_window(1, 1, offset=s - 1),
        "window before the keys": masks.sliding_window(0, 1, offset=-4),
        "dilated": masks.dilated_window(3, 1, 2),
        "neighbourhood": masks.neighbourhood((2, -(-max(t, s) // 2)), (1, 0)),
        "one length": masks.lengths(s - 1),
        "no keys": masks.lengths(0),
        "prefix": masks.prefix(2),
        "prefix LM": masks.causal() | masks.prefix(3),
        "two windows": masks.sliding_window(near, 0) & masks.sliding_window(near // 2, 0),
        "not": ~masks.sliding_window(near, near),
        "disjoint": masks.prefix(2) & ~masks.prefix(4) & masks.sliding_window(0, 0, offset=3),
        "function": masks.where(lambda q, k: k % 3 <= q % 2),
        "function with a span": masks.where(lambda q, k: k // 2 == q // 2, span=lambda a, b: (a - 1, b + 1)),
        "own": Checkered(),
        "own, of two axes": OfTwoAxes(),
        "lengths": masks.lengths(lens),
        "an example without keys": masks.lengths(jnp.where(jnp.arange(b) == 0, 0, s)),
        "lengths per query": masks.lengths(integers(3, s + 1, b, t)),
        "offsets": masks.causal(offset=lens // 3),
        "windows": masks.sliding_window(near, 1, offset=lens // 3),
        "prefixes": masks.causal() | masks.prefix(lens // 3),
        "segments": masks.segments(packed(4, 4, t), packed(5, 5, s)),
        "two segments": masks.segments(packed(4, 2, t), packed(5, 2, s)),
        "causal and lengths": masks.causal() & masks.lengths(lens),
        "window and lengths": masks.lengths(lens) & masks.sliding_window(near, 0),
        "causal and segments": masks.causal() & masks.segments(packed(4, 9, t), packed(5, 9, s)),
        "not causal or lengths": ~(masks.causal() | masks.lengths(lens)),
        "function of heads": masks.where(lambda q, k, step: k % step == 0, step=("h", 1 + jnp.arange(h))),
        "own with data": Below(integers(6, s, b, h)),
        "array": booleans(7, b, h, t, s),
        "array of heads": booleans(8, h, t, s),
        "array of examples": booleans(9, b, 1, t, s),
        "array of keys": booleans(10, b, 1, 1, s),
        "array for all": booleans(11, t, s),
    }


def each_bias(b: int, h: int, t: int, s: int) -> dict[str, biases.Bias | jax.Array]:
    """Every kind of bias; the numbers in them have gradients."""
    return {
        "array": normal(20, b, h, t, s),
        "array of heads": normal(21, h, t, s),
        "array of examples": normal(22, b, 1, t, s),
        "array of keys": normal(23, b, 1, 1, s),
        "array of queries": normal(24, 1, 1, t, 1),
        "array for all": normal(25, t, s),
        "ALiBi": biases.alibi(normal(26, h) ** 2),
        "ALiBi of examples": biases.alibi(normal(27, b, h) ** 2),
        "relative": biases.relative(normal(28, 8, h), max_distance=20),
        "relative, backwards": biases.relative(normal(29, 6, h), bidirectional=False, max_distance=9),
        "function": biases.where(lambda q, k, rate: -rate * jnp.sqrt(1.0 + abs(q - k)), rate=("h", normal(30, h))),
        "own, of two axes": BiasOfTwoAxes(jnp.asarray(0.3)),
        "sum": biases.alibi(normal(31, h) ** 2) + normal(32, t, s),
    }


def each_score(d: int) -> dict[str, scores.Score]:
    """Every score that a part of the logits can be computed by, for queries and keys of the width ``d``."""
    return {
        "dot product": scores.DotProduct(),
        "scaled": scores.DotProduct(0.3),
        "Gaussian": scores.Gaussian(bandwidth=1.5),
        "Gaussian, a factor for each feature": scores.Gaussian(factor=abs(normal(40, d))),
        "boxcar": scores.Boxcar(bandwidth=3.0),
        "Epanechnikov": scores.Epanechnikov(factor=0.3),
        "constant": scores.Constant(),
        "additive": scores.Additive(normal(41, d, 7), normal(42, d, 7), normal(43, 7)),
        "modified": scores.modified(lambda x, q, k, a: jnp.where(k < q, a * x, x), a=jnp.asarray(0.5)),
        "own": Cosine(),
    }
