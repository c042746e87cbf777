"""The layers of PyTorch's transformer, with its own arguments, masks and state dict.

Masks are `MultiheadAttention`'s: ``True`` where a query may **not** attend. ``return_weights=True``, which PyTorch
does not have, also returns the weights of each layer and head, ``b h t s``, from before dropout.
"""

from typing import Any, ClassVar, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.nn.dropout import Dropout, split
from jattn.nn.feed_forward import Activation, activation_function
from jattn.nn.layers import LayerNorm, Linear
from jattn.nn.torch.attention import MultiheadAttention, TorchMask

__all__ = ["TransformerDecoderLayer", "TransformerEncoderLayer"]

# Arguments of an attention, in the order in which each layer lists its own ones for it.
_MASKS = ("attn_mask", "key_padding_mask", "is_causal")


class _Layer(nnx.Module):
    """What the layers of encoder and decoder share: their parts, and residuals with the norm before or after."""

    _attends_to_memory: ClassVar[bool]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        activation_function(activation)
        checks.divides("nhead", nhead, "d_model", d_model)
        checks.positive_integers(dim_feedforward=dim_feedforward)
        checks.number("layer_norm_eps", layer_norm_eps, "[0, inf)")
        checks.flag("norm_first", norm_first)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def attend() -> MultiheadAttention:
            return MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **types)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, epsilon=layer_norm_eps, use_bias=bias, **types)

        self.self_attn = attend()
        if self._attends_to_memory:
            self.multihead_attn = attend()
        self.linear1 = Linear(d_model, dim_feedforward, use_bias=bias, **types)
        self.linear2 = Linear(dim_feedforward, d_model, use_bias=bias, **types)
        self.norm1, self.norm2 = norm(), norm()
        if self._attends_to_memory:
            self.norm3 = norm()
        self.dropout = Dropout(dropout)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        if self._attends_to_memory:
            self.dropout3 = Dropout(dropout)
        self.activation: Activation = activation
        self.norm_first = norm_first

    def _attend(
        self,
        i: int,
        attend: MultiheadAttention,
        x: Array,
        memory: Array | None,
        rngs: list[PRNGKeyArray | None],
        masks: dict[str, Any],
        name: str,
        return_weights: bool,
    ) -> tuple[Array, Array | None]:
        """x with an attention to memory, or to itself, added, and weights if asked for; masks by the caller's names.

        i is the number of the sublayer, of its norm and of its dropout.
        """
        query = self._before(i, x)
        key = query if memory is None else memory
        arguments: dict[str, Any] = dict(zip(_MASKS, masks.values(), strict=True), return_weights=return_weights)
        names = {"query": name, "key": "memory", "value": "memory", **dict(zip(_MASKS, masks, strict=True))}
        y, weights = attend.with_head_weights(query, key, key, names=names, rng=rngs[0], **arguments)
        return self._after(i, x, y, rngs[1]), weights

    def _feed_forward(self, i: int, x: Array, rngs: list[PRNGKeyArray | None]) -> Array:
        """x with the two-layer network's output added."""
        y = self.dropout(activation_function(self.activation)(self.linear1(self._before(i, x))), rngs[0])
        return self._after(i, x, self.linear2(y), rngs[1])

    def _before(self, i: int, x: Array) -> Array:
        """What a sublayer sees of x."""
        return getattr(self, f"norm{i}")(x) if self.norm_first else x

    def _after(self, i: int, x: Array, y: Array, rng: PRNGKeyArray | None) -> Array:
        """x with a sublayer's output y added."""
        x = x + getattr(self, f"dropout{i}")(y, rng)
        return x if self.norm_first else getattr(self, f"norm{i}")(x)


class TransformerEncoderLayer(_Layer):
    """``torch.nn.TransformerEncoderLayer``: self-attention and a feed-forward network, each with a residual.

    ``x = norm(x + dropout(f(x)))``, or, with norm_first, ``x = x + dropout(f(norm(x)))``; dropout also inside f. It
    differs from `TransformerBlock` in its arguments, its masks and where dropout is.

    Args:
        d_model: m, the width.
        nhead: h, a divisor of d_model.
        dim_feedforward: the feed-forward network's inner width.
        dropout: in training, in [0, 1); of the attention weights too.
        activation: ``"relu"``, ``"gelu"`` (the exact one), or a function of one array.
        layer_norm_eps: added to the variance.
        batch_first: whether arrays are ``b t m`` instead of ``t b m``.
        norm_first: whether the norm is before a sublayer, instead of after the sum.
        bias: whether linear layers and norms have biases.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Example:

        >>> layer = TransformerEncoderLayer(8, nhead=2, dropout=0.0, batch_first=True, rngs=nnx.Rngs(0))
        >>> x, weights = layer(jnp.ones((2, 5, 8)), return_weights=True)
        >>> x.shape, weights.shape
        ((2, 5, 8), (2, 2, 5, 5))
    """

    _attends_to_memory = False

    @overload
    def __call__(
        self,
        src: Array,
        src_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool = False,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], Array]: ...
    @overload
    def __call__(
        self,
        src: Array,
        src_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool = False,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"]: ...
    @overload
    def __call__(
        self,
        src: Array,
        src_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool = False,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], Array]: ...

    def __call__(
        self,
        src: Float[Array, "*bt m"],
        src_mask: TorchMask | None = None,
        src_key_padding_mask: TorchMask | None = None,
        is_causal: bool = False,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], Array]:
        """Run the layer.

        Args:
            src: ``t b m``, or ``b t m`` with batch_first, or ``t m`` without a batch.
            src_mask, src_key_padding_mask, is_causal: as attn_mask, key_padding_mask and is_causal of
                `MultiheadAttention`.
            return_weights: also return the weights ``*b h t t``.
            rng: a ``jax.random.key`` for dropout in training.
        """
        src = _sequence("src", src, self.norm1)
        rngs = split(rng, 4)
        masks = dict(
            src_mask=src_mask,
            src_key_padding_mask=src_key_padding_mask,
            is_causal=is_causal,
        )
        x, weights = self._attend(1, self.self_attn, src, None, rngs[:2], masks, "src", return_weights)
        x = self._feed_forward(2, x, rngs[2:])
        return x if weights is None else (x, weights)


class TransformerDecoderLayer(_Layer):
    """``torch.nn.TransformerDecoderLayer``: self-attention, attention to a memory, and a feed-forward network.

    Arguments as in `TransformerEncoderLayer`.

    Example:

        >>> layer = TransformerDecoderLayer(8, nhead=2, dropout=0.0, batch_first=True, rngs=nnx.Rngs(0))
        >>> future = ~jnp.tri(5, dtype=bool)
        >>> x, (weights, memory_weights) = layer(
        ...     jnp.ones((2, 5, 8)), jnp.ones((2, 7, 8)), tgt_mask=future, return_weights=True
        ... )
        >>> x.shape, weights.shape, memory_weights.shape
        ((2, 5, 8), (2, 2, 5, 5), (2, 2, 5, 7))
    """

    _attends_to_memory = True

    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[True],
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*bt m"], tuple[Array, Array]]: ...
    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        return_weights: Literal[False] = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"]: ...
    @overload
    def __call__(
        self,
        tgt: Array,
        memory: Array,
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        return_weights: bool,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Array, Array]]: ...

    def __call__(
        self,
        tgt: Float[Array, "*bt m"],
        memory: Float[Array, "*bs m"],
        tgt_mask: TorchMask | None = None,
        memory_mask: TorchMask | None = None,
        tgt_key_padding_mask: TorchMask | None = None,
        memory_key_padding_mask: TorchMask | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        return_weights: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "*bt m"] | tuple[Float[Array, "*bt m"], tuple[Array, Array]]:
        """Run the layer.

        Args:
            tgt: ``t b m``, or ``b t m`` with batch_first, or ``t m`` without a batch.
            memory: ``s b m``, ``b s m`` or ``s m``.
            tgt_mask, tgt_key_padding_mask, tgt_is_causal: as attn_mask, key_padding_mask and is_causal of
                `MultiheadAttention`, for self-attention.
            memory_mask, memory_key_padding_mask, memory_is_causal: likewise, for the attention to the memory.
            return_weights: also return the pair of weights, self-attention's ``*b h t t`` and the memory's
                ``*b h t s``.
            rng: a ``jax.random.key`` for dropout in training.
        """
        tgt, memory = _sequence("tgt", tgt, self.norm1), _sequence("memory", memory, self.norm1)
        rngs = split(rng, 6)
        masks = dict(
            tgt_mask=tgt_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
        )
        x, weights = self._attend(1, self.self_attn, tgt, None, rngs[:2], masks, "tgt", return_weights)
        masks = dict(
            memory_mask=memory_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            memory_is_causal=memory_is_causal,
        )
        x, memory_weights = self._attend(2, self.multihead_attn, x, memory, rngs[2:4], masks, "tgt", return_weights)
        x = self._feed_forward(3, x, rngs[4:])
        return x if weights is None or memory_weights is None else (x, (weights, memory_weights))


def _sequence(name: str, x: Any, norm: LayerNorm) -> Array:
    x = checks.floating(name, x, "t b m, b t m or t m", 2)
    checks.width(name, x, norm.num_features)
    return x
