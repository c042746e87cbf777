"""Attention weights, in the forms in which models return them, as layers of heads: ``h t s``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jattn._engine import checks
from jattn.plots import arrays

__all__ = ["Kind", "head_weights", "kinds"]

# Which tokens the queries and the keys of a kind of attention are: 0 are the keys' tokens, 1 the queries' own.
SELF, CROSS = "decoder self-attention", "cross-attention"
SIDES = {"encoder self-attention": (0, 0), SELF: (1, 1), CROSS: (1, 0)}
ASK = 'Ask the model for its weights: return_weights=True; of transformers output_attentions and "eager" attention.'


class Kind(NamedTuple):
    """One kind of attention, such as a decoder's attention to the encoder's output."""

    name: str
    queries: int  # 0 or 1, see SIDES
    keys: int
    layers: list[Any]  # as the user gave them


def kinds(weights: Any) -> list[Kind]:
    """What there is to choose from, in order: the entries of a mapping, two for pairs, else one."""
    if isinstance(weights, Mapping):
        if not weights:
            raise ValueError("weights must have at least one entry. Got an empty mapping.")
        entries = arrays.named("weights", weights)
        named = {name: _layers(f"weights[{name!r}]", value) for name, value in entries.items()}
    else:
        layers = _layers("weights", weights)
        pairs = [isinstance(layer, (list, tuple)) for layer in layers]
        if not any(pairs):
            named = {"attention": layers}
        elif all(pairs) and all(len(layer) == 2 for layer in layers):
            named = {SELF: [layer[0] for layer in layers], CROSS: [layer[1] for layer in layers]}
        else:
            raise ValueError(
                "weights must have one array for each layer, or one pair (self-attention, cross-attention) for each. "
                f"Got {', '.join(type(layer).__name__ for layer in layers[:6])}. Name others by a mapping."
            )
    return [Kind(name, *SIDES.get(name, (1, 0)), layers) for name, layers in named.items()]


def _layers(name: str, weights: Any) -> list[Any]:
    """One entry for each layer; an array of one layer is a list of itself."""
    if isinstance(weights, (list, tuple)):
        if not weights:
            raise ValueError(f"{name} must have at least one layer. Got none. {ASK}")
        for layer in weights:
            for part in layer if isinstance(layer, (list, tuple)) else [layer]:
                if isinstance(part, (list, tuple)) or np.isscalar(part):
                    raise ValueError(
                        f"{name} must be an array, or a list of arrays. Got a {type(part).__name__} within the "
                        f"{type(weights).__name__}. Make an array of nested lists: np.asarray({name})."
                    )
        return list(weights)
    array = as_array(name, weights)
    if array.ndim < 2 or array.ndim > 5:
        raise ValueError(f"{name} must have the axes t s, h t s, l h t s or l b h t s. Got shape {array.shape}.")
    if array.ndim > 3 and not len(array):
        raise ValueError(f"{name} must have at least one layer. Got shape {array.shape}.")
    return list(array) if array.ndim > 3 else [array]


def head_weights(name: str, layer: Any, t: int, s: int, example: int | None) -> np.ndarray:
    """One layer's weights ``h t s`` in float32, of one example, found to be weights of so many tokens."""
    array = as_array(name, layer)
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{name} must have the axes t s, h t s or b h t s. Got shape {array.shape}.")
    if array.ndim == 4:
        b = len(array)
        if example is None and b != 1:
            raise ValueError(f"example must choose one of the batch of {b} that {name} has. Got None.")
        array = array[0 if example is None else checks.number("example", example, f"[0, {b})", integer=True)]
    elif example is not None:
        raise ValueError(
            f"example must be None for weights without a batch. Got {example}; {name} has {array.shape}. "
            "Three axes are h t s: of alignments b t s, such as Seq2Seq's, give weights[example]."
        )
    if array.ndim == 2:
        array = array[None]
    if array.shape[1:] != (t, s):
        raise ValueError(
            f"{name} must have {t} rows and {s} columns, one for each query token and key token. "
            f"Got {array.shape[1]} and {array.shape[2]}. Give the tokens of both sides (tokens, query_tokens), or cut "
            "padding off the weights."
        )
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} must be finite and at least 0. Got {array[at]} at {at}.")
    return array


def as_array(name: str, x: Any) -> np.ndarray:
    """Real numbers in float32 from an array; lists are layers or pairs, so none is an array."""
    if x is None:
        raise ValueError(f"{name} must be an array. Got None. {ASK}")
    if isinstance(x, (list, tuple)):
        raise ValueError(f"{name} must be an array. Got a {type(x).__name__} of {len(x)}.")
    return arrays.real_numbers(name, x, np.float32)
