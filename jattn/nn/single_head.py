"""Attention modules without heads: they hold the parameters and call `jattn.single_head`."""

from typing import Any, Literal, TypedDict, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask
from jattn.nn.dropout import Dropout
from jattn.nn.layers import Initializer, Linear, default_kernel_init
from jattn.scores import Additive, DotProduct
from jattn.single_head import single_head_attention

__all__ = ["AdditiveAttention", "DotProductAttention"]

_Pooled = Float[Array, "*b t e"]
_PooledAndWeights = tuple[_Pooled, Float[Array, "*b t s"]]


class _Pooling(TypedDict, total=False):
    valid_lens: int | Int[Array, "..."] | None
    mask: Mask | Bool[Array, "..."] | None
    rng: PRNGKeyArray | None


class DotProductAttention(nnx.Module):
    """Scaled dot-product attention without heads and without parameters, as in Dive into Deep Learning.

    Args:
        dropout_rate: share of the weights to drop in training, in [0, 1).
        scale: what the products are multiplied by; ``1 / sqrt(d)`` by default.

    Example (two examples, of which 2 and 6 keys are real):

        >>> attend = DotProductAttention()
        >>> query, key, value = jnp.ones((2, 1, 2)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
        >>> attend(query, key, value, valid_lens=jnp.array([2, 6])).shape
        (2, 1, 4)
    """

    def __init__(self, dropout_rate: float = 0.0, *, scale: float | None = None) -> None:
        self.dropout = Dropout(dropout_rate)
        self.scale = scale

    @overload
    def __call__(
        self, query: Array, key: Array, value: Array, *, return_weights: Literal[True], **options: Unpack[_Pooling]
    ) -> _PooledAndWeights: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_Pooling],
    ) -> _Pooled: ...
    @overload
    def __call__(
        self, query: Array, key: Array, value: Array, *, return_weights: bool, **options: Unpack[_Pooling]
    ) -> _Pooled | _PooledAndWeights: ...

    def __call__(
        self,
        query: Float[Array, "*b t d"],
        key: Float[Array, "*b s d"],
        value: Float[Array, "*b s e"],
        *,
        valid_lens: int | Int[Array, "..."] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> _Pooled | _PooledAndWeights:
        """Pool the values.

        Args:
            query: ``*b t d``.
            key: ``*b s d``.
            value: ``*b s e``.
            valid_lens: how many keys are real, one per example or one per query (two axes).
            mask: a value of `jattn.masks` (an array inside it as ``*b 1 t s``) or a boolean array that broadcasts to
                ``*b t s``.
            return_weights: also return the weights ``*b t s``, from before dropout.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            ``*b t e``; with return_weights also the weights.
        """
        return single_head_attention(
            query,
            key,
            value,
            score=DotProduct(self.scale),
            mask=mask,
            valid_lens=valid_lens,
            return_weights=return_weights,
            **self.dropout.of_weights(rng),
        )


class AdditiveAttention(nnx.Module):
    """Additive (Bahdanau) attention without heads: queries and keys may differ in width.

    ``score(query, key) = w_v . tanh(W_q query + W_k key)``, the three of them parameters without bias: ``query``,
    ``key`` and ``score``.

    Args:
        query_features: the query's width.
        key_features: the key's width.
        hidden_features: the width of the network that compares them.
        dropout_rate: share of the weights to drop in training, in [0, 1).
        kernel_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Bahdanau, Cho and Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015.

    Example:

        >>> attend = AdditiveAttention(20, 2, 8, rngs=nnx.Rngs(0))
        >>> attend(jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))).shape
        (2, 1, 4)
    """

    def __init__(
        self,
        query_features: int,
        key_features: int,
        hidden_features: int,
        dropout_rate: float = 0.0,
        *,
        kernel_init: Initializer = default_kernel_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.rngs(rngs)
        checks.positive_integers(
            query_features=query_features, key_features=key_features, hidden_features=hidden_features
        )
        options: dict[str, Any] = dict(
            use_bias=False, kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.query = Linear(query_features, hidden_features, **options)
        self.key = Linear(key_features, hidden_features, **options)
        self.score = Linear(hidden_features, 1, **options)
        self.dropout = Dropout(dropout_rate)

    @overload
    def __call__(
        self, query: Array, key: Array, value: Array, *, return_weights: Literal[True], **options: Unpack[_Pooling]
    ) -> _PooledAndWeights: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[_Pooling],
    ) -> _Pooled: ...
    @overload
    def __call__(
        self, query: Array, key: Array, value: Array, *, return_weights: bool, **options: Unpack[_Pooling]
    ) -> _Pooled | _PooledAndWeights: ...

    def __call__(
        self,
        query: Float[Array, "*b t c"],
        key: Float[Array, "*b s d"],
        value: Float[Array, "*b s e"],
        *,
        valid_lens: int | Int[Array, "..."] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> _Pooled | _PooledAndWeights:
        """Pool the values; arguments and result as in `DotProductAttention`, query and key of their own widths."""
        checks.width("query", query, self.query.in_features)
        checks.width("key", key, self.key.in_features)
        score = Additive(self.query.kernel[...], self.key.kernel[...], self.score.kernel[..., 0])
        return single_head_attention(
            query,
            key,
            value,
            score=score,
            mask=mask,
            valid_lens=valid_lens,
            return_weights=return_weights,
            **self.dropout.of_weights(rng),
        )
