"""Weights on request: a layer asks its attention for them only if it was asked itself, as they cost a matrix."""

from typing import Any

from jaxtyping import Array


def as_pair(result: Any, return_weights: bool) -> tuple[Array, Any]:
    """What a layer called with this ``return_weights`` returned, as output and weights, None if not asked for."""
    return result if return_weights else (result, None)
