"""Attention for arrays without a head axis."""

from typing import Any, Literal, overload

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn import masks
from jattn._engine import checks
from jattn._mask import Mask, as_mask
from jattn.multi_head import attention
from jattn.scores import Additive

__all__ = ["additive_attention", "single_head_attention"]

_Output = Float[Array, "*b t e"]
_OutputAndWeights = tuple[_Output, Float[Array, "*b t s"]]


@overload
def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_value: Array,
    *,
    mask: Mask | Array | None = None,
    return_weights: Literal[True],
) -> _OutputAndWeights: ...
@overload
def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_value: Array,
    *,
    mask: Mask | Array | None = None,
    return_weights: Literal[False] = False,
) -> _Output: ...
@overload
def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_value: Array,
    *,
    mask: Mask | Array | None = None,
    return_weights: bool,
) -> _Output | _OutputAndWeights: ...


def additive_attention(
    query: Float[Array, "*b t c"],
    key: Float[Array, "*b s d"],
    value: Float[Array, "*b s e"],
    w_query: Float[Array, "c n"],
    w_key: Float[Array, "d n"],
    w_value: Float[Array, "n"],
    *,
    mask: Mask | Bool[Array, "..."] | None = None,
    return_weights: bool = False,
) -> _Output | _OutputAndWeights:
    """Additive attention: queries and keys of different widths, compared by a small network.

    ``score(query, key) = w_value . tanh(query @ w_query + key @ w_key)``

    There is no head axis here; for heads, call `attention` with ``score=Additive(...)``.

    Args:
        query: ``*b t c``.
        key: ``*b s d``.
        value: ``*b s e``.
        w_query, w_key, w_value: ``c n``, ``d n`` and ``n``, with n the hidden width.
        mask: a value of `jattn.masks` (an array inside it as ``*b 1 t s``) or a boolean array that broadcasts to
            ``*b t s``.
        return_weights: also return the weights ``*b t s``.

    Returns:
        The output ``*b t e``; with return_weights also the weights.

    Example:

        >>> query, key, value = jnp.ones((2, 3, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
        >>> additive_attention(query, key, value, jnp.ones((20, 8)), jnp.ones((2, 8)), jnp.ones(8)).shape
        (2, 3, 4)

    Source: Bahdanau, Cho and Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015.
    """
    weights = {"w_query": w_query, "w_key": w_key, "w_value": w_value}
    score = Additive(**{name: checks.array(name, w) for name, w in weights.items()})
    return single_head_attention(query, key, value, score=score, mask=mask, return_weights=return_weights)


def single_head_attention(
    query: Float[Array, "*b t c"],
    key: Float[Array, "*b s d"],
    value: Float[Array, "*b s e"],
    *,
    mask: Mask | Bool[Array, "..."] | None = None,
    valid_lens: int | Int[Array, "..."] | None = None,
    return_weights: bool = False,
    **rest: Any,
) -> Any:
    """`attention` for arrays without a head axis; a mask that is an array broadcasts to ``*b t s``."""
    query, key, value = checks.query_key_value(query, key, value, heads=False)
    if mask is not None and not isinstance(mask, Mask):
        shape = (*query.shape[:-1], key.shape[-2])
        if not checks.broadcasts_to(jnp.shape(mask), shape):
            raise ValueError(f"mask must broadcast to {shape}, the axes *b t s. Got shape {jnp.shape(mask)}.")
        mask = as_mask(mask if jnp.ndim(mask) <= 2 else jnp.expand_dims(mask, -3))
    result: Any = attention(
        query[..., None, :],
        key[..., None, :],
        value[..., None, :],
        mask=masks.all_of(mask, None if valid_lens is None else masks.lengths(valid_lens)),
        return_weights=return_weights,
        **rest,
    )
    return (result[0][..., 0, :], result[1][..., 0, :, :]) if return_weights else result[..., 0, :]
