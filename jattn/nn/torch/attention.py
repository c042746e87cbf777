"""``torch.nn.MultiheadAttention`` with its own arguments and meanings, on the same `jattn.attention` as everything."""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask
from jattn.nn.dropout import Dropout
from jattn.nn.layers import Initializer, Linear, LinearGeneral, default_bias_init, default_kernel_init
from jattn.nn.multi_head import attend_per_head
from jattn.nn.weights import as_pair

__all__ = ["MultiheadAttention", "TorchMask"]

TorchMask = Bool[Array, "..."] | Float[Array, "..."]


class MultiheadAttention(nnx.Module):
    """Multi-head attention with the arguments, masks and state dict of ``torch.nn.MultiheadAttention``.

    For code that is being ported. Its boolean masks are ``True`` where a query may **not** attend, its arrays are
    ``t b m`` unless batch_first, and its weights are those after dropout; everywhere else in jattn it is the other way.

    Args:
        embed_dim: m, the width of queries and output, of all heads together.
        num_heads: h, a divisor of embed_dim.
        dropout: share of the weights to drop in training, in [0, 1).
        bias: whether the projections have biases.
        add_bias_kv: whether there is one more key and value, both learned, that every query may attend to.
        add_zero_attn: whether there is one more key and value, both zero, that every query may attend to.
        kdim, vdim: the widths of keys and values; embed_dim by default.
        batch_first: whether arrays are ``b t m`` instead of ``t b m``.
        empty_rows: what a query that may attend to nothing gets: ``"zeros"``, with zero gradients, or ``"nan"`` where
            PyTorch has it: with need_weights, also in the gradients. (Without need_weights PyTorch has zeros.)
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.LinearGeneral``. For PyTorch's initial
            distribution see `jattn.nn.torch.initialize`.
        rngs: for the initial parameters.

    Example:

        >>> attend = MultiheadAttention(16, 4, batch_first=True, rngs=nnx.Rngs(0))
        >>> x, padding = jnp.ones((2, 5, 16)), jnp.arange(5) >= jnp.array([[3], [5]])
        >>> output, weights = attend(x, x, x, key_padding_mask=padding)
        >>> output.shape, weights.shape
        ((2, 5, 16), (2, 5, 5))
        >>> print(weights[0, 0])
        [0.33333334 0.33333334 0.33333334 0.         0.        ]

    Source: torch.nn.MultiheadAttention; Vaswani et al., Attention Is All You Need, 2017.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        empty_rows: Literal["zeros", "nan"] = "zeros",
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kdim, vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        checks.positive_integers(embed_dim=embed_dim, kdim=kdim, vdim=vdim)
        checks.divides("num_heads", num_heads, "embed_dim", embed_dim)
        checks.one_of("empty_rows", empty_rows, ("zeros", "nan"))
        checks.number("dropout", dropout, "[0, 1)")
        flags = dict(bias=bias, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, batch_first=batch_first)
        for name, flag in flags.items():
            checks.flag(name, flag)
        options: dict[str, Any] = dict(
            use_bias=bias, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        heads = (num_heads, embed_dim // num_heads)
        self.query = LinearGeneral(embed_dim, heads, **options)
        self.key = LinearGeneral(kdim, heads, **options)
        self.value = LinearGeneral(vdim, heads, **options)
        self.out_proj = Linear(embed_dim, embed_dim, **options)
        self.bias_k = nnx.Param(bias_init(rngs.params(), heads, param_dtype)) if add_bias_kv else None
        self.bias_v = nnx.Param(bias_init(rngs.params(), heads, param_dtype)) if add_bias_kv else None
        self.dropout = Dropout(dropout)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.sequence_axis: str | None = None  # which `jattn.sharding.divide_sequence` sets
        self.add_zero_attn, self.batch_first, self.empty_rows = add_zero_attn, batch_first, empty_rows

    _attend = staticmethod(attend_per_head)
    _called_as = ("with_head_weights",)  # for those who record what a module is called with

    def __call__(
        self,
        query: Float[Array, "*bt m"],
        key: Float[Array, "*bs mk"],
        value: Float[Array, "*bs mv"],
        key_padding_mask: TorchMask | None = None,
        need_weights: bool = True,
        attn_mask: TorchMask | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        rng: PRNGKeyArray | None = None,
        **others: Any,
    ) -> tuple[Float[Array, "*bt m"], Float[Array, "..."] | None]:
        """Attend. Nested tensors, and the ``static_k`` and ``static_v`` of torch.nn.functional, are refused.

        Args:
            query: ``t b m``, or ``b t m`` with batch_first, or ``t m`` without a batch; m = embed_dim.
            key: ``s b mk``, ``b s mk`` or ``s mk``; mk = kdim.
            value: ``s b mv``, ``b s mv`` or ``s mv``; mv = vdim.
            key_padding_mask: ``b s``, or ``s`` without a batch: boolean, ``True`` at keys that may **not** be attended
                to; or floating point, added to the scores.
            need_weights: whether to return the weights.
            attn_mask: ``t s``, or ``(b h) t s`` with one matrix for each example and head: boolean, ``True`` where a
                query may **not** attend to a key; or floating point, added to the scores.
            average_attn_weights: whether the weights are averaged over the heads.
            is_causal: says that attn_mask is the causal mask. Nothing but a hint: the mask must be given, and decides.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The output, of query's axes, and the weights: None, ``b t s`` or, not averaged, ``b h t s`` (``t s`` or
            ``h t s`` without a batch), after dropout. There is one more key for add_bias_kv, and then one for
            add_zero_attn.
        """
        _check_no_others(others)
        for name, flag in (("need_weights", need_weights), ("average_attn_weights", average_attn_weights)):
            checks.flag(name, flag)
        output, weights = self.with_head_weights(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            empty_rows=self.empty_rows if need_weights else "zeros",
            return_weights=need_weights,
            rng=rng,
        )
        if weights is None:
            return output, None
        weights = self.dropout(weights, rng)  # the same rng and shape, so the same bits as those of the output
        return output, (weights.mean(axis=-3) if average_attn_weights else weights).astype(output.dtype)

    def with_head_weights(
        self,
        query: Float[Array, "*bt m"],
        key: Float[Array, "*bs mk"],
        value: Float[Array, "*bs mv"],
        *,
        key_padding_mask: TorchMask | None = None,
        attn_mask: TorchMask | None = None,
        is_causal: bool = False,
        empty_rows: str = "zeros",
        return_weights: bool = True,
        names: Mapping[str, str] = MappingProxyType({}),
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], Float[Array, "*b h t s"] | None]:
        """The output, and jattn's weights: those of each head, from before dropout, in float32 or wider; or None.

        Arguments as at the call; ``names`` says by which name an error is to call an argument.
        """
        own = key is query
        query, key, value = self._check_inputs(query, key, value, names)
        batched_last = query.ndim == 3 and not self.batch_first
        if batched_last:
            query, key, value = (jnp.swapaxes(x, 0, 1) for x in (query, key, value))
        *batch, t, _ = query.shape
        shape = (*batch, self.num_heads, t, key.shape[-2])
        mask, bias = self._mask_and_bias(key_padding_mask, attn_mask, is_causal, shape, names)
        if empty_rows == "nan":
            mask, bias = _nan_in_empty_rows(mask, bias)
        keys, values = self._extended(self.key(key), self.value(value))
        padding = jnp.asarray(key_padding_mask) if own and key_padding_mask is not None else None
        attended = self._attend(
            self.query(query),
            keys,
            values,
            real_queries=None if padding is None or padding.dtype != jnp.bool_ else ~padding,
            mask=mask,
            bias=bias,
            sequence_axis=self.sequence_axis,
            return_weights=return_weights,
            **self.dropout.of_weights(rng),
        )
        heads, weights = as_pair(attended, return_weights)
        output = self.out_proj(heads.reshape(*heads.shape[:-2], self.embed_dim))
        return jnp.swapaxes(output, 0, 1) if batched_last else output, weights

    def _check_inputs(self, query: Any, key: Any, value: Any, names: Mapping[str, str]) -> tuple[Array, Array, Array]:
        q, k, v = (names.get(name, name) for name in ("query", "key", "value"))
        axes = "b t m or t m" if self.batch_first else "t b m or t m"
        query, key, value = (checks.floating(name, x, axes, 2) for name, x in ((q, query), (k, key), (v, value)))
        if query.ndim > 3:
            raise ValueError(f"{q} must have the axes {axes}. Got shape {query.shape}.")
        for name, x, projection in ((q, query, self.query), (k, key, self.key), (v, value, self.value)):
            checks.width(name, x, projection.in_features[0])
        batch_axis = 0 if self.batch_first else 1
        if key.ndim != query.ndim or (query.ndim == 3 and key.shape[batch_axis] != query.shape[batch_axis]):
            raise ValueError(f"{k} must have {q}'s batch, axes {axes}. Got shape {key.shape}, {q} {query.shape}.")
        if value.shape[:-1] != key.shape[:-1]:
            raise ValueError(f"{v} must have {k}'s axes but for the last. Got shape {value.shape}, {k} {key.shape}.")
        return query, key, value

    def _mask_and_bias(
        self,
        key_padding_mask: Any,
        attn_mask: Any,
        is_causal: bool,
        shape: tuple[int, ...],
        names: Mapping[str, str],
    ) -> tuple[Array | None, Array | None]:
        """PyTorch's two masks as jattn's mask, ``True`` where attention is allowed, and bias.

        This is where the polarity turns. Both broadcast to ``*b h t s`` with the extra keys, which all may attend to.
        """
        *batch, h, t, s = shape
        padding_name, mask_name, causal_name = (
            names.get(name, name) for name in ("key_padding_mask", "attn_mask", "is_causal")
        )
        if not checks.is_concrete(is_causal):
            raise ValueError(
                f"{causal_name} must be a Python bool. Got a traced one. "
                f"Leave {causal_name} out: {mask_name} decides alone."
            )
        terms = []
        if key_padding_mask is not None:
            x = _mask_array(padding_name, key_padding_mask, {"b s" if batch else "s": (*batch, s)})
            terms.append(x[..., None, None, :])
        if attn_mask is not None:
            x = _mask_array(mask_name, attn_mask, {"t s": (t, s), "(b h) t s": (math.prod(batch) * h, t, s)})
            # PyTorch takes the hint for the mask in one of its paths, and the mask itself in the other.
            if is_causal and checks.is_concrete(x) and not _is_causal_mask(np.asarray(x)):
                raise ValueError(
                    f"{causal_name} must be False unless {mask_name} is the causal mask. Got another. "
                    f"Leave {causal_name} out: {mask_name} decides alone."
                )
            terms.append(x if x.ndim == 2 else x.reshape(shape))
        elif is_causal:
            raise ValueError(
                f"{causal_name} must come with the causal {mask_name}, of which it is a hint. Got {mask_name} None. "
                f"Pass {mask_name}=~jnp.tri({t}, {s}, dtype=bool)."
            )
        mask, bias = None, None
        for x in terms:
            x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, (self.bias_k is not None) + self.add_zero_attn)])
            if x.dtype == jnp.bool_:
                mask = ~x if mask is None else mask & ~x
            else:
                bias = x if bias is None else bias + x
        return mask, bias

    def _extended(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Keys ``*b s h d`` and values with the learned one and the zero one at the end."""
        extra: list[tuple[Any, Any]] = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self.bias_k[...], self.bias_v[...]))
        if self.add_zero_attn:
            extra.append((jnp.zeros(keys.shape[-2:]), jnp.zeros(values.shape[-2:])))
        for one_key, one_value in extra:
            keys, values = _append(keys, one_key), _append(values, one_value)
        return keys, values


def _append(x: Float[Array, "*b s h d"], last: Float[Array, "h d"]) -> Float[Array, "*b s1 h d"]:
    shape = (*x.shape[:-3], 1, *x.shape[-2:])
    return jnp.concatenate([x, jnp.broadcast_to(last.astype(x.dtype), shape)], axis=-3)


def _mask_array(name: str, x: Any, shapes: dict[str, tuple[int, ...]]) -> Array:
    """A boolean or floating-point array of one of the shapes, which are named by their axes."""
    if isinstance(x, Mask):
        raise ValueError(
            f"{name} must be an array, True where a query may not attend. Got a mask, {x!r:.80}. "
            "Pass ~mask.as_array(t, s) of it."
        )
    x = checks.array(name, x)
    if x.dtype != jnp.bool_ and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be boolean, True where a query may not attend, or floating point, added to the scores. "
            f"Got {x.dtype}. Convert it with .astype(bool)."
        )
    if x.shape not in shapes.values():
        allowed = " or ".join(f"{shape}, the axes {axes}" for axes, shape in shapes.items())
        raise ValueError(f"{name} must have shape {allowed}. Got shape {x.shape}.")
    return x


def _is_causal_mask(attn_mask: np.ndarray) -> bool:
    future = ~np.tri(*attn_mask.shape[-2:], dtype=np.bool_)
    causal = future if attn_mask.dtype == np.bool_ else np.where(future, -np.inf, 0.0)
    return np.array_equal(attn_mask, np.broadcast_to(causal, attn_mask.shape))


def _nan_in_empty_rows(mask: Array | None, bias: Array | None) -> tuple[Array | None, Array | None]:
    """Mask and bias that make a row with nothing to attend to NaN, gradients included: it may, at a score of NaN."""
    if mask is None and bias is None:
        return None, None
    reachable = jnp.asarray(True)
    reachable = reachable if mask is None else reachable & mask
    reachable = reachable if bias is None else reachable & (bias != -jnp.inf)
    empty = ~reachable.any(axis=-1, keepdims=True)
    nan = jnp.where(empty, jnp.nan, 0.0)
    return None if mask is None else mask | empty, nan if bias is None else bias + nan


def _check_no_others(others: Mapping[str, Any]) -> None:
    """Raise for arguments that `MultiheadAttention` does not take."""
    for name in others.keys() & {"static_k", "static_v"}:
        raise ValueError(
            f"{name} must be left out, as the layer projects keys and values itself. Got it. Heads that are projected "
            "once are what jattn.nn.MultiHeadAttention.project makes, and that layer takes."
        )
    checks.keywords("MultiheadAttention", others, inspect.signature(MultiheadAttention.__call__).parameters)
