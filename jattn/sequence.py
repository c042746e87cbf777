"""The order of tokens in which a causal sequence, divided over the devices of a mesh axis, is as much work for each.

Cut into consecutive parts, a causal sequence leaves the device with the first tokens almost nothing to attend to, and
all wait for the one with the last. In the zigzag order of n parts each has two pieces of 2 n, one of the early and one
of the late tokens, and all have the same number of pairs to compute, in each step of a ring. Only the order in the
arrays changes: attention looks at positions, so that they are said::

    order = zigzag(x.shape[1], 4)
    x = reorder(x, 4)  # once, of a model's tokens
    attention(query, key, value, mask=causal(), query_positions=order, key_positions=order, sequence_axis="seq")
    logits = restore(logits, 4)

What counts keys by their numbers in the arrays is about the new order: `lengths`, arrays for a mask or a bias, dropout.

Source: Grattafiori et al., The Llama 3 Herd of Models, 2024, section 3.3.2, whose pieces these are.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jattn._engine import checks

__all__ = ["reorder", "restore", "zigzag"]


def zigzag(n_tokens: int, parts: int) -> Int[Array, "t"]:
    """The positions of the tokens in zigzag order: part i has the pieces i and ``2 parts - 1 - i``.

    Args:
        n_tokens: how many tokens, a multiple of ``2 parts``.
        parts: how many devices have a part each.

    Example:

        >>> print(zigzag(8, 2))
        [0 1 6 7 2 3 4 5]
    """
    return jnp.asarray(_zigzag_order(n_tokens, parts))


def reorder(x: Shaped[Array, "..."], parts: int, axis: int = 1) -> Shaped[Array, "..."]:
    """The tokens along an axis, which lie in the order of their positions, in zigzag order.

    Devices send each other an array's tokens, so it is best done before there are features.

    Example:

        >>> print(reorder(jnp.array([list("ABCDEFGH".encode())]), 2))
        [[65 66 71 72 67 68 69 70]]
    """
    return _taken(x, parts, axis, lambda order: order)


def restore(x: Shaped[Array, "..."], parts: int, axis: int = 1) -> Shaped[Array, "..."]:
    """What `reorder` has put in zigzag order, in the order of its positions.

    Example:

        >>> print(restore(zigzag(8, 2), 2, axis=0))
        [0 1 2 3 4 5 6 7]
    """
    return _taken(x, parts, axis, np.argsort)


def _taken(x: Any, parts: int, axis: int, of: Any) -> Array:
    x = checks.array("x", x)
    if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be one of the {x.ndim} axes of x, that of its tokens. Got {axis!r}.")
    return jnp.take(x, of(_zigzag_order(x.shape[axis], parts)), axis=axis)


def _zigzag_order(n_tokens: int, parts: int) -> np.ndarray:
    parts = checks.number("parts", parts, "[1, inf)", integer=True)
    n_tokens = checks.count("n_tokens", n_tokens)
    if n_tokens % (2 * parts):
        raise ValueError(
            f"n_tokens must be a multiple of {2 * parts}, two pieces for each of {parts} parts. Got {n_tokens}. Pad "
            "the sequence, and say by a mask what is padding."
        )
    pieces = np.arange(n_tokens).reshape(2 * parts, -1)
    return np.stack([pieces[:parts], pieces[: parts - 1 : -1]], axis=1).reshape(-1)
