"""How much of each input reaches each state, through all layers with heads."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jattn._engine import checks

__all__ = ["attention_rollout"]


def attention_rollout(weights: Sequence[Float[Array, "*b h t t"]], *, residual: float = 0.5) -> Float[Array, "*b t t"]:
    """The shares of the input tokens in each token's last state, if all that layers did were to mix tokens.

    ``R = A_L ... A_1,  A = residual I + (1 - residual) mean over h of W``

    A sketch, not a measurement: it knows nothing of values, networks and norms, and takes all heads for equal.

    Args:
        weights: of each layer, the first one first, as models return them with ``return_weights``.
        residual: the share of the residual connection in what a layer gives.

    Returns:
        ``*b t t``, a row for each last state, whose sum is 1 where those of the weights are.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020.

    Example (both tokens look at the first, twice):

        >>> layer = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
        >>> attention_rollout([layer, layer])
        Array([[1.  , 0.  ],
               [0.75, 0.25]], dtype=float32)
    """
    residual = checks.number("residual", residual, "[0, 1]")
    if len(weights) == 0:
        raise ValueError("weights must have at least one layer. Got none.")
    rolled = None
    for i, layer in enumerate(weights):
        layer = checks.floating(f"weights[{i}]", layer, "*b h t t", 3)
        t = layer.shape[-1]
        if layer.shape[-2] != t or (rolled is not None and rolled.shape != (*layer.shape[:-3], t, t)):
            raise ValueError(
                f"weights must be of self-attention, *b h t t with the same b and t in all layers. "
                f"Got shape {layer.shape} of layer {i}."
            )
        mixed = residual * jnp.eye(t, dtype=layer.dtype) + (1 - residual) * layer.mean(axis=-3)
        rolled = mixed if rolled is None else mixed @ rolled
    assert rolled is not None
    return rolled
