"""Causes in what is made of all tokens: one of them, their mean, their maximum."""

from collections.abc import Iterator

import numpy as np

from jattn.parity.cause import Cause, outermost
from jattn.parity.locate import Site

__all__ = ["POOLING_CAUSES"]


def _pooled(site: Site, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """One vector for each example from vectors ``b t m``, by what it is."""
    b, t, _ = x.shape
    yield "the first token", x[:, 0]
    yield "the last token", x[:, -1]
    yield "the mean of all tokens", x.mean(1)
    yield "the mean of all tokens but the first", x[:, 1:].mean(1)
    yield "the maximum over tokens", x.max(1)
    yield "the sum of all tokens", x.sum(1)
    yield "the second token", x[:, 1]
    for mask in (y for y in site.arguments if y.shape == (b, t) and set(np.unique(y)) == {0, 1}):
        for what, real in (("that the mask has", mask != 0), ("that the mask leaves out", mask == 0)):
            weight = real[..., None] / np.maximum(real.sum(1), 1)[:, None, None]
            yield f"the mean of the tokens {what}", (weight * x).sum(1)
            yield f"the last of the tokens {what}", x[np.arange(b), t - 1 - np.argmax(real[:, ::-1], axis=1)]
            yield f"the maximum over the tokens {what}", np.where(real[..., None], x, -np.inf).max(1)


def another_pooling(site: Site) -> str | None:
    for x in (x for x in outermost(site) if x.array.ndim == 3 and x.array.shape[1] > 1):
        ways = list(_pooled(site, x.array))
        theirs, ours = ([way for way, y in ways if _is_same(site, y, seen)] for seen in (site.torch, site.flax))
        if theirs and ours and not set(theirs) & set(ours):
            return f"The port takes {ours[0]}, PyTorch {theirs[0]}."
    return None


def _is_same(site: Site, x: np.ndarray, seen: np.ndarray) -> bool:
    return x.size == seen.size and site.same(x, seen.reshape(x.shape))


POOLING_CAUSES = [
    Cause(
        "pooling",
        "A classifier gets one token, or a mean over all or over those that are no padding.",
        "Take what PyTorch's model takes; under padding, the mask says which tokens are real.",
        another_pooling,
    ),
]
