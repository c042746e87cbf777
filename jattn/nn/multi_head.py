"""Multi-head attention as Flax modules: they hold the parameters, project, and call `jattn.attention`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask, all_of, lengths
from jattn.multi_head import attention
from jattn.nn.dropout import Dropout
from jattn.nn.layers import Initializer, LayerNorm, LinearGeneral, default_bias_init, default_kernel_init
from jattn.nn.positions import rotary
from jattn.nn.weights import as_pair

__all__ = ["MultiHeadAttention", "WideMultiHeadSelfAttention", "attend_per_head"]


def attend_per_head(
    query: Float[Array, "*b t h d"],
    key: Float[Array, "*b s k d"],
    value: Float[Array, "*b s k e"],
    *,
    real_queries: int | Int[Array, "*b"] | Bool[Array, "*b t"] | None,
    **options: Any,
) -> Any:
    """What a module with heads does with them: `jattn.attention`.

    Each such module calls it as its attribute ``_attend``, so that on a copy `jattn.heads` can put in its place one
    that also looks at the heads. That is who needs to know which queries are no padding: how many, or which ones.
    """
    return attention(query, key, value, **options)


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: several attentions side by side, each on its own projection of the inputs.

    ``output = sum over heads of attention(x W_q, x W_k, x W_v) W_o``

    The parameters are those of ``flax.nnx.MultiHeadAttention``, name for name: ``query``, ``key``, ``value`` with
    kernels ``m h d``, ``out`` with kernel ``h e m``, ``query_ln`` and ``key_ln`` where they are normalised. After
    `jattn.heads.prune` the groups of query heads may be of unequal sizes; ``kv_heads`` then holds the key and value
    head of each query head, and is None otherwise.

    Args:
        num_heads: how many query heads, h.
        in_features: the query's width, m.
        num_kv_heads: how many key and value heads, k; a divisor of num_heads, which it is by default. Query heads
            0 to h / k - 1 share key and value head 0.
        qkv_features: ``h * d``, the width of all query heads together; in_features by default.
        key_features, value_features: the widths of the key and value inputs; in_features by default.
        value_head_features: e, the width of one value head; d by default.
        out_features: the output's width; in_features by default.
        use_bias: whether the projections have biases; by default they don't, unlike Flax's and PyTorch's.
        normalize_qk: whether to layer-normalise each query and key head (Dehghani et al., 2023).
        qk_norm_epsilon: for it; Flax's value by default (PyTorch's LayerNorm has 1e-5).
        rotary_base: rotate query and key heads by their positions (`jattn.nn.rotary`) with this base.
        dropout_rate: share of the weights to drop in training, in [0, 1).
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.LinearGeneral``.
        rngs: for the initial parameters.

    Raises:
        ValueError: if the heads don't divide the widths.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.2.2.

    Example:

        >>> attend = MultiHeadAttention(num_heads=5, in_features=100, rngs=nnx.Rngs(0))
        >>> queries, keys = jnp.ones((2, 4, 100)), jnp.ones((2, 6, 100))
        >>> output, weights = attend(queries, keys, valid_lens=jnp.array([3, 2]), return_weights=True)
        >>> output.shape, weights.shape
        ((2, 4, 100), (2, 5, 4, 6))
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        *,
        num_kv_heads: int | None = None,
        qkv_features: int | None = None,
        key_features: int | None = None,
        value_features: int | None = None,
        value_head_features: int | None = None,
        out_features: int | None = None,
        use_bias: bool = False,
        normalize_qk: bool = False,
        qk_norm_epsilon: float = 1e-6,
        rotary_base: float | None = None,
        dropout_rate: float = 0.0,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        qkv_features = in_features if qkv_features is None else qkv_features
        out_features = in_features if out_features is None else out_features
        checks.divides("num_heads", num_heads, "qkv_features", qkv_features)
        checks.divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
        head = qkv_features // num_heads
        value_head = head if value_head_features is None else value_head_features

        def project(width: int | None, heads: int, features: int) -> LinearGeneral:
            return LinearGeneral(in_features if width is None else width, (heads, features), **options)

        def norm() -> LayerNorm | None:
            types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            return LayerNorm(head, epsilon=qk_norm_epsilon, use_bias=False, **types) if normalize_qk else None

        options: dict[str, Any] = dict(
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.query = project(in_features, num_heads, head)
        self.key = project(key_features, num_kv_heads, head)
        self.value = project(value_features, num_kv_heads, value_head)
        self.query_ln = norm()
        self.key_ln = norm()
        self.out = LinearGeneral((num_heads, value_head), out_features, axis=(-2, -1), **options)
        self.kv_heads: tuple[int, ...] | None = None
        self.rotary_base = rotary_base
        self.dropout = Dropout(dropout_rate)

    _attend = staticmethod(attend_per_head)

    def __call__(
        self,
        query: Float[Array, "*b t m"],
        key: Float[Array, "*b s mk"] | None = None,
        value: Float[Array, "*b s mv"] | None = None,
        valid_lens: int | Int[Array, "..."] | None = None,
        *,
        mask: Mask | Bool[Array, "..."] | None = None,
        head_gates: Float[Array, "..."] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b t o"] | Any:
        """Attend.

        Args:
            query: ``*b t m``, with m = in_features.
            key: ``*b s mk``, with mk = key_features; query by default (self-attention).
            value: ``*b s mv``, with mv = value_features; key by default.
            valid_lens: how many keys are real, one per example or one per query (two axes).
            mask: a value of `jattn.masks` or a boolean array that broadcasts to ``*b h t s``.
            head_gates: a factor on each head's output, ``h`` or ``*b h``.
            return_weights: also return the weights ``*b h t s``, from before dropout.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``*b t o``, with o = out_features; with return_weights also the weights.
        """
        key = query if key is None else key
        value = key if value is None else value
        own_lens = valid_lens if key is query and np.ndim(valid_lens) < 2 else None  # type: ignore[arg-type]
        query, key, value = checks.query_key_value(query, key, value, heads=False)
        for name, x, projection in (("query", query, self.query), ("key", key, self.key), ("value", value, self.value)):
            checks.width(name, x, projection.in_features[0])
        queries, keys, values = self.query(query), self.key(key), self.value(value)
        if self.query_ln is not None and self.key_ln is not None:
            queries, keys = self.query_ln(queries), self.key_ln(keys)
        if self.rotary_base is not None:
            queries, keys = rotary(queries, base=self.rotary_base), rotary(keys, base=self.rotary_base)
        if self.kv_heads is not None:
            keys, values = (x[..., np.array(self.kv_heads), :] for x in (keys, values))
        attended = self._attend(
            queries,
            keys,
            values,
            real_queries=own_lens,
            mask=all_of(mask, None if valid_lens is None else lengths(valid_lens)),
            head_gates=head_gates,
            return_weights=return_weights,
            **self.dropout.of_weights(rng),
        )
        heads, weights = as_pair(attended, return_weights)
        output = self.out(heads)
        return (output, weights) if return_weights else output


class WideMultiHeadSelfAttention(MultiHeadAttention):
    """Multi-head self-attention in which every head has the full width, and the output maps heads * width back.

    ``output = concat over heads of softmax(x W_q (x W_k)^T / sqrt(m)) x W_v, times W_o``, all with biases. It is
    `MultiHeadAttention` with ``qkv_features = num_heads * features``.

    Args:
        features: m, the width of the input, of each head and of the output.
        num_heads: how many heads.
        options: the other arguments of `MultiHeadAttention`.

    Example:

        >>> attend = WideMultiHeadSelfAttention(8, num_heads=3, rngs=nnx.Rngs(0))
        >>> attend(jnp.ones((2, 5, 8))).shape, attend.out.kernel.shape
        ((2, 5, 8), (3, 8, 8))
    """

    def __init__(self, features: int, num_heads: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(
            num_heads, features, qkv_features=num_heads * features, **{"use_bias": True, **options}, rngs=rngs
        )

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "*b t m"],
        valid_lens: int | Int[Array, "..."] | None = None,
        *,
        mask: Mask | Bool[Array, "..."] | None = None,
        head_gates: Float[Array, "..."] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*b t m"] | Any:
        """Attend within ``x``; the other arguments as in `MultiHeadAttention`."""
        options: dict[str, Any] = dict(mask=mask, head_gates=head_gates, return_weights=return_weights, rng=rng)
        return super().__call__(x, valid_lens=valid_lens, **options)
