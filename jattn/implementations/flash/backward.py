"""Which kernel gives which gradient, on any machine.

    d logit = weight (d weight - mean of d weight + d log-sum-exp)

The weights are computed once more from the log-sum-exp, and what a logit's cotangent means for what masks and biases
hold is the derivative of the tile.
"""

from typing import Any

from jaxtyping import Array, Float

from jattn.implementations.flash.tiles import Field, Ranges, Tiles, learned_fields, summed

__all__ = ["run_backward"]


def run_backward(
    kernels: Any,
    query: Float[Array, "n *ht c"],
    key: Float[Array, "n *ks d"],
    value: Float[Array, "n *ks e"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
    result: tuple[Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, Array, list[Array]]:
    """Those of query, key, value, and of the fields that are learned; ``kernels`` is `tpu` or `gpu`."""
    inputs = (query, key, value, *tiles.for_gradients(value, result, cotangents))
    learned, by_query, by_key, by_pair = learned_fields(fields)
    of_query, of_by_query = kernels.gradients_of_queries(inputs, fields, by_query, ranges, tiles)
    of_key, of_value, of_by_key = kernels.gradients_of_keys(inputs, fields, by_key, ranges, tiles)
    of_by_pair = [kernels.gradient_of_pairs(inputs, fields, i, ranges, tiles) for i in by_pair]
    of_field = dict(zip((*by_query, *by_key, *by_pair), (*of_by_query, *of_by_key, *of_by_pair), strict=True))
    return of_query, of_key, of_value, [summed(of_field[i], fields[i].array) for i in learned]
