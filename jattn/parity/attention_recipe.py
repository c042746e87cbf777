"""Attention recomputed plainly from its projections, with every setting that ports get wrong as one value."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jattn.parity.rotary_recipe import RotaryRecipe

__all__ = [
    "AttentionRecipe",
    "Heads",
    "Projections",
    "allowed_by",
    "attend",
    "logits_of",
    "recompute_attention",
    "split_heads",
]

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionRecipe:
    """How attention is made from query, key and value ``b t (h d)``."""

    heads: int
    scale: float
    source: str = "as they are"  # which queries, keys and values, of those there may be
    split: str = "features"  # what is split into heads: features, their other order, or (wrongly) time
    swapped: str = ""  # two of query, key and value
    rotary: RotaryRecipe | None = None
    group: str = "repeat"  # which query heads share a key and value head: neighbours, or those so many apart
    cap: float | None = None  # logits = cap * tanh(logits / cap)
    bias: np.ndarray | None = None  # b|1 h|1 t s
    bias_scaled: bool = False  # whether it is added before the scale
    causal: int | None = None  # the last key that the first query sees
    upper: bool = False  # causality the wrong way round: keys from the query on
    window: int | None = None  # the keys that a query sees to either side, itself among them
    padding: np.ndarray | None = None  # b|1 s, which keys are real
    padding_of: str = "keys"  # or (wrongly) "queries"
    mask: np.ndarray | None = None  # b|1 h|1 t s, what else hides keys
    turned: bool = False  # all of this together, the other way round
    sinks: np.ndarray | None = None  # h
    axis: str = "keys"  # what the softmax is over
    empty: str = "nan"  # what a query with nothing to attend to gets
    merged: str = "features"
    seen: str = "output"  # what is observed, or the weights: of "each" head or their "mean"


class Projections(NamedTuple):
    """Queries, keys and values, before they are split into heads, and what follows the heads."""

    sources: dict[str, Triple]  # b t (h d) each
    out: "tuple[np.ndarray, np.ndarray] | None" = None  # weight and bias of a projection of the heads
    time_first: bool = False  # whether the output is t b m

    def of_examples(self, n: int) -> "Projections":
        """Of the first examples alone."""
        return self._replace(sources={name: (q[:n], k[:n], v[:n]) for name, (q, k, v) in self.sources.items()})


class Heads(NamedTuple):
    """``b h t d``, turned, as many keys and values as queries."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray


def recompute_attention(x: Projections, recipe: AttentionRecipe) -> np.ndarray:
    """Attention, plainly."""
    heads = split_heads(x, recipe)
    return attend(logits_of(heads, recipe), heads.value, x, recipe)


def split_heads(x: Projections, recipe: AttentionRecipe) -> Heads:
    """Queries, keys and values as they meet."""
    query, key, value = x.sources[recipe.source]
    if recipe.swapped == "key and value":
        key, value = value, key
    d = query.shape[-1] // recipe.heads
    groups = key.shape[-1] // d
    q, k, v = (_split(y, h, recipe.split) for y, h in ((query, recipe.heads), (key, groups), (value, groups)))
    if recipe.rotary is not None:
        q, k = recipe.rotary.turned(q, "q"), recipe.rotary.turned(k, "k")
    if k.shape[1] != recipe.heads:
        k, v = (_share(y, recipe.heads, recipe.group) for y in (k, v))
    return Heads(k, q, v) if recipe.swapped == "query and key" else Heads(q, k, v)


def logits_of(x: Heads, recipe: AttentionRecipe, rows: slice = slice(None)) -> np.ndarray:
    """Of some queries, with what is added to them, but before they are masked."""
    logits = x.query[:, :, rows] @ x.key.swapaxes(-1, -2)
    bias = None if recipe.bias is None else _rows(recipe.bias, rows)
    if bias is not None and recipe.bias_scaled:
        logits = logits + bias
    logits = recipe.scale * logits
    if recipe.cap is not None:
        logits = recipe.cap * np.tanh(logits / recipe.cap)
    return logits + bias if bias is not None and not recipe.bias_scaled else logits


def attend(
    logits: np.ndarray, value: np.ndarray, x: Projections, recipe: AttentionRecipe, rows: slice = slice(None)
) -> np.ndarray:
    """The softmax and what follows."""
    t, s = recipe_length(x, recipe), logits.shape[-1]
    allowed = allowed_by(recipe, t, s)
    allowed = np.broadcast_to(_rows(allowed, rows), logits.shape)
    masked = np.where(allowed, logits, -np.inf)
    axis = {"keys": -1, "queries": -2, "heads": 1}[recipe.axis]
    weights = _softmax_along(masked, axis, recipe.sinks)
    empty = ~allowed.any(axis, keepdims=True)
    if recipe.sinks is None and recipe.empty != "nan" and empty.any():
        instead: float | np.ndarray = 0.0 if recipe.empty == "zeros" else 1 / logits.shape[axis]
        if recipe.empty == "unmasked":
            instead = _softmax_along(logits, axis, None)
        weights = np.where(empty, instead, weights)
    if recipe.seen != "output":
        return weights if recipe.seen == "each" else weights.mean(1)
    merged = _merge(weights @ value, recipe.merged)
    if x.out is not None:
        merged = merged @ x.out[0].T + x.out[1]
    return merged.swapaxes(0, 1) if x.time_first else merged


def recipe_length(x: Projections, recipe: AttentionRecipe) -> int:
    """Of the queries."""
    return x.sources[recipe.source][0].shape[1]


def allowed_by(recipe: AttentionRecipe, t: int, s: int) -> np.ndarray:
    """Who may attend to whom, b|1 h|1 t s."""
    allowed = np.ones((1, 1, t, s), bool)
    # Where the first query stands among the keys.
    start = recipe.causal or 0
    away = np.arange(s) - np.arange(t)[:, None] - start
    if recipe.causal is not None:
        allowed = allowed & (away >= 0 if recipe.upper else away <= 0)
    if recipe.window is not None:
        allowed = allowed & (abs(away) < recipe.window)
    if recipe.padding is not None:
        keys = recipe.padding_of == "keys"
        allowed = allowed & (recipe.padding[:, None, None] if keys else recipe.padding[:, None, :, None])
    if recipe.mask is not None:
        allowed = allowed & recipe.mask
    return allowed ^ recipe.turned


def _rows(x: np.ndarray, rows: slice) -> np.ndarray:
    return x if x.shape[-2] == 1 else x[..., rows, :]


def _split(x: np.ndarray, heads: int, how: str) -> np.ndarray:
    b, t, _ = x.shape
    if how == "time":
        return x.reshape(b, heads, t, -1)
    if how == "features":
        return x.reshape(b, t, heads, -1).swapaxes(1, 2)
    return np.moveaxis(x.reshape(b, t, -1, heads), -1, 1)


def _merge(x: np.ndarray, how: str) -> np.ndarray:
    b, h, t, d = x.shape
    if how == "heads apart":
        return x
    if how == "features":
        x = x.swapaxes(1, 2)
    elif how == "interleaved":
        x = np.moveaxis(x, 1, -1)
    return x.reshape(b, t, h * d)


def _share(x: np.ndarray, heads: int, how: str) -> np.ndarray:
    times = heads // x.shape[1]
    return np.repeat(x, times, 1) if how == "repeat" else np.tile(x, (1, times, 1, 1))


def _softmax_along(logits: np.ndarray, axis: int, sinks: np.ndarray | None) -> np.ndarray:
    top = logits.max(axis, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    e = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    return e / total
