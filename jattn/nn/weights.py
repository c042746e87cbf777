"""Weights on request: a layer asks its attention for them only if it was asked itself, as they cost a matrix."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, PRNGKeyArray

__all__ = ["Cached", "Outputs", "as_pair", "in_turn", "outputs"]


class Outputs(NamedTuple):
    """What a layer returns where more than its output is asked for; take its parts by name."""

    output: Array
    weights: Any  # *b h t s; of several attentions, in the order in which they run


class Cached(NamedTuple):
    """What a layer or a model returns that was given a cache; take its parts by name."""

    output: Array
    cache: Any  # with the new tokens; of a model one for each block
    weights: Any = None  # as in `Outputs`, if they were asked for
    hidden: Any = None  # of a model, likewise


def outputs(output: Array, weights: Any, return_weights: bool) -> Any:
    """What a layer called with this ``return_weights`` returns."""
    return Outputs(output, weights) if return_weights else output


def as_pair(result: Any, return_weights: bool) -> tuple[Array, Any]:
    """What a layer called with this ``return_weights`` returned, as output and weights, None if not asked for."""
    return result if return_weights else (result, None)


def in_turn(
    layers: Sequence[Any],
    x: Array,
    *rest: Any,
    return_weights: bool,
    rngs: Sequence[PRNGKeyArray | None],
    **options: Any,
) -> tuple[Array, list[Any]]:
    """Each layer on its predecessor's output, and on the rest of the arguments; and the list of their weights."""
    weights = []
    for layer, rng in zip(layers, rngs, strict=True):
        result = layer(x, *rest, return_weights=return_weights, rng=rng, **options)
        x, layer_weights = as_pair(result, return_weights)
        weights.append(layer_weights)
    return x, weights
