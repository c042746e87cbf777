"""Scaled dot-product attention as jax.nn has it, argument for argument."""

import dataclasses
from typing import Any, Literal, TypedDict, Unpack, overload

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn import masks
from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn._mask import Mask
from jattn._masks import Lengths
from jattn.bound import Bound, Output, bind
from jattn.scores import Number

__all__ = ["dot_product_attention"]

_OutputAndResidual = tuple[Output, Float[Array, "*b t h"]]


class _JaxOptions(TypedDict, total=False):
    scale: Number | None
    is_causal: bool
    query_seq_lengths: Int[Array, "..."] | None
    key_value_seq_lengths: Int[Array, "..."] | None
    local_window_size: int | tuple[int, int] | None
    implementation: Literal["xla", "cudnn"] | None


@overload
def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Mask | Array | None = None,
    *,
    return_residual: Literal[True],
    **options: Unpack[_JaxOptions],
) -> _OutputAndResidual: ...
@overload
def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Mask | Array | None = None,
    *,
    return_residual: Literal[False] = False,
    **options: Unpack[_JaxOptions],
) -> Output: ...
@overload
def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Mask | Array | None = None,
    *,
    return_residual: bool,
    **options: Unpack[_JaxOptions],
) -> Output | _OutputAndResidual: ...


def dot_product_attention(
    query: Float[Array, "*b t h d"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    *,
    scale: Number | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> Output | _OutputAndResidual:
    """Scaled dot-product attention with the signature of ``jax.nn.dot_product_attention``: a drop-in for it.

    What differs: a query that may attend to nothing gives zeros instead of an average of all values; the residual is
    float32 and has its gradient; value may have a width of its own; mask may also be a value of `jattn.masks`.

    Args:
        query: ``*b t h d``.
        key: ``*b s k d``; k divides h.
        value: ``*b s k e``.
        bias: broadcasts to ``*b h t s``.
        mask: boolean, broadcasts to ``*b h t s``, ``True`` where a query may attend to a key.
        scale: ``1 / sqrt(d)`` by default.
        is_causal: query i sees the keys up to i, aligned top-left.
        query_seq_lengths: integers ``*b``; the output of later queries is zero.
        key_value_seq_lengths: integers ``*b``; later keys are padding.
        local_window_size: how many keys to see on each side of one's own position, or (left, right).
        implementation: None for jattn's choice, ``"cudnn"`` as in `attention`, or ``"xla"`` for anything else.
        return_residual: also return the logarithm of the sum of the exponentials under the softmax.

    Returns:
        The output ``*b t h e`` in value's dtype; with return_residual also the log-sum-exp ``*b t h`` in float32 or
        wider, minus infinity for a query with nothing to attend to.

    Example:

        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 8, 16))
        >>> ours = dot_product_attention(x, x, x, is_causal=True)
        >>> bool(jnp.allclose(ours, jax.nn.dot_product_attention(x, x, x, is_causal=True), atol=1e-5))
        True
    """
    checks.one_of("implementation", implementation, (None, "xla", "cudnn"))
    query, key, value = checks.query_key_value(query, key, value)
    t, s, batch = query.shape[-3], key.shape[-3], query.shape[:-3]
    if not batch:  # jax.nn then takes one length, and a bias and a mask with a batch axis of 1
        bias, mask = _without_batch(bias, 4), _without_batch(mask, 4)
        query_seq_lengths = _without_batch(query_seq_lengths, 1)
        key_value_seq_lengths = _without_batch(key_value_seq_lengths, 1)
    rules = [mask, masks.causal() if is_causal else None]
    if local_window_size is not None:
        rules.append(masks.sliding_window(*checks.window("local_window_size", local_window_size)))
    if key_value_seq_lengths is not None:
        rules.append(_sequence_lengths("key_value_seq_lengths", key_value_seq_lengths, s, batch))
    if query_seq_lengths is not None:
        real = _sequence_lengths("query_seq_lengths", query_seq_lengths, t, batch).as_array(1, t)
        rules.append(masks.dense(jnp.swapaxes(real, -1, -2)))
    bound = bind(query, key, value, mask=masks.all_of(*rules), bias=bias, scale=scale)
    bound = Bound(dataclasses.replace(bound.call, xla_only=implementation == "xla"))
    result = bound.result("cudnn" if implementation == "cudnn" else None, return_log_sum_exp=return_residual)
    if not return_residual:
        return result.output
    assert result.log_sum_exp is not None
    return result.output, result.log_sum_exp


def _sequence_lengths(name: str, valid_lens: Array, n: int, batch: tuple[int, ...]) -> Mask:
    rule = Lengths(checks.integers(name, valid_lens), name, by_position=False)
    rule.check(Shape(batch, None, 1, n))
    return rule


def _without_batch(x: Any, ndim: int) -> Any:
    """An array of ``ndim`` axes whose first has length 1, without it; anything else as it is."""
    if x is None or isinstance(x, Mask) or jnp.ndim(x) != ndim or jnp.shape(x)[0] != 1:
        return x
    return jnp.asarray(x)[0]
