"""What the multi-head attention of Flax, NNX and Linen, passes to its ``attention_fn``, in jattn's words.

Source: ``flax.nnx.dot_product_attention`` and ``flax.linen.dot_product_attention``.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from jattn._engine import checks
from jattn._mask import Mask
from jattn.masks import all_of, causal

__all__ = ["FlaxOptions", "as_flax_means"]


class FlaxOptions(TypedDict, total=False):
    """Arguments that only Flax has."""

    is_causal: bool
    deterministic: bool
    dtype: Any
    precision: Any
    module: Any
    force_fp32_for_softmax: bool
    qk_attn_weights_einsum: None
    attn_weights_value_einsum: None


def as_flax_means(
    attend: Callable[..., Any],
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    qk_attn_weights_einsum: None = None,
    attn_weights_value_einsum: None = None,
    return_weights: bool = False,
    **options: Any,
) -> Any:
    """``attend(query, key, value, ...)`` with arguments as Flax means them.

    Args:
        attend: `jattn.attention`.
        query, key, value: of any floating-point dtypes, which are promoted.
        mask: of any dtype; 0 is where a query may not attend, as in the float32 that ``nnx.make_causal_mask`` makes.
        is_causal: whether query i sees the keys up to i, beside the mask.
        dropout_rate, dropout_rng: as in `attend`; ``broadcast_dropout`` too, which Flax's modules always pass.
        deterministic: no dropout.
        dtype: that of the computation and of the output.
        precision: of the products, as in ``jax.lax.dot``.
        module: where to leave the weights, as its intermediate ``attention_weights``, in the dtype of the computation.
        force_fp32_for_softmax: leave them in float32 or wider, as they are computed in any case.
        return_weights, options: as in `attend`.
    """
    for name, given in (
        ("qk_attn_weights_einsum", qk_attn_weights_einsum),
        ("attn_weights_value_einsum", attn_weights_value_einsum),
    ):
        if given is not None:
            raise ValueError(f"{name} must be None, as jattn.attention has products of its own. Got {given!r:.80}.")
    checks.flag("deterministic", deterministic)
    if module is not None and not hasattr(module, "sow"):
        raise ValueError(f"module must be a module of Flax's, to leave the weights in. Got {module!r:.80}.")
    arrays = [checks.array(name, x) for name, x in (("query", query), ("key", key), ("value", value))]
    dtype = jnp.result_type(*arrays) if dtype is None else dtype
    if mask is not None and not isinstance(mask, Mask):
        mask = checks.array("mask", mask)
        mask = mask if mask.dtype == jnp.bool_ else mask != 0
    with _products_of(precision):
        result = attend(
            *(x.astype(dtype) for x in arrays),
            mask=all_of(mask, causal() if checks.flag("is_causal", is_causal) else None),
            dropout_rate=0.0 if deterministic else dropout_rate,
            dropout_rng=None if deterministic else dropout_rng,
            return_weights=return_weights or module is not None,
            **options,
        )
    if module is None:
        return result
    from flax import nnx  # which `import jattn` leaves out

    output, weights = result
    collection: Any = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(collection, "attention_weights", weights if force_fp32_for_softmax else weights.astype(dtype))
    return (output, weights) if return_weights else output


def _products_of(precision: Any) -> contextlib.AbstractContextManager[Any]:
    """Products of matrices with this precision."""
    if precision is None:
        return contextlib.nullcontext()
    names = {lax.Precision: lambda one: one.name.lower(), lax.DotAlgorithmPreset: lambda one: one.name}
    try:
        (one,) = set(precision) if isinstance(precision, tuple) else {precision}
        return jax.default_matmul_precision(names.get(type(one), str)(one))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"precision must be None or a precision of jax.lax.dot, one for both operands. Got {precision!r:.80}."
        ) from error
