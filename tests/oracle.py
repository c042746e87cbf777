"""Attention in float64 NumPy, written one query at a time: what jattn's results are compared with.

A score here takes one query's features ``d`` and all keys' ``s d``, and gives the logits ``s``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Attended(NamedTuple):
    output: np.ndarray  # *b t h e
    weights: np.ndarray  # *b h t s
    log_sum_exp: np.ndarray  # *b t h


def float64(x) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def attend(query, key, value, *, score: Score | None = None, mask=True, bias=0.0, soft_cap=None) -> Attended:
    """The definition, for a mask and a bias that broadcast to ``*b h t s``."""
    query, key, value, bias = map(float64, (query, key, value, bias))
    *batch, t, h, d = query.shape
    s, k = key.shape[-3:-1]
    score = dot_product(d**-0.5) if score is None else score
    full = (*batch, h, t, s)
    mask, bias = np.broadcast_to(np.asarray(mask), full), np.broadcast_to(bias, full)
    output, weights = np.zeros((*batch, t, h, value.shape[-1])), np.zeros(full)
    log_sum_exp = np.full((*batch, t, h), -np.inf)
    for index in np.ndindex(full[:-1]):
        *b, head, row = index
        shared = (*b, slice(None), head // (h // k))  # the keys and values of this head's group
        logits = score(query[(*b, row, head)], key[shared]) + bias[index]
        if soft_cap is not None:
            logits = np.where(logits == -np.inf, logits, soft_cap * np.tanh(logits / soft_cap))
        allowed = mask[index] & (logits > -np.inf)
        if allowed.any():
            peak = logits[allowed].max()
            exponentials = np.exp(logits[allowed] - peak)
            weights[(*index, allowed)] = exponentials / exponentials.sum()
            output[(*b, row, head)] = weights[index] @ value[shared]
            log_sum_exp[(*b, row, head)] = peak + np.log(exponentials.sum())
    return Attended(output, weights, log_sum_exp)


def logits(query, key, score: Score) -> np.ndarray:
    """The score of every query with every key, ``*b h t s``, where both have the same heads."""
    query, key = float64(query), float64(key)
    *batch, t, h, _ = query.shape
    result = np.zeros((*batch, h, t, key.shape[-3]))
    for *b, head, row in np.ndindex(result.shape[:-1]):
        result[(*b, head, row)] = score(query[(*b, row, head)], key[(*b, slice(None), head)])
    return result


def dot_product(scale) -> Score:
    return lambda query, key: scale * (key @ query)


def additive(w_query, w_key, w_value) -> Score:
    w_query, w_key, w_value = map(float64, (w_query, w_key, w_value))
    return lambda query, key: np.tanh(query @ w_query + key @ w_key) @ w_value


def constant(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return np.zeros(len(key))


def kernel(name: str, bandwidth=1.0) -> Score:
    """The logarithm of a kernel of ``u = |query - key| / bandwidth``."""

    def score(query: np.ndarray, key: np.ndarray) -> np.ndarray:
        squared = (((query - key) / float64(bandwidth)) ** 2).sum(axis=-1)
        with np.errstate(divide="ignore"):
            return {
                "gaussian": -squared / 2,
                "boxcar": np.log((squared <= 1).astype(float)),
                "epanechnikov": np.log(np.maximum(0, 1 - squared)),
                "constant": np.zeros_like(squared),
            }[name]

    return score
