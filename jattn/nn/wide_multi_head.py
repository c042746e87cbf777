"""Multi-head self-attention whose heads are as wide as the model."""

from typing import Any, Literal, Unpack, overload

from flax import nnx
from jaxtyping import Array, Float, Int

from jattn._engine import checks
from jattn.nn.multi_head import MultiHeadAttention, SelfOptions
from jattn.nn.weights import Outputs

__all__ = ["WideMultiHeadSelfAttention"]


class WideMultiHeadSelfAttention(MultiHeadAttention):
    """Multi-head self-attention in which every head has the full width, and the output maps heads * width back.

    ``output = concat over heads of softmax(x W_q (x W_k)^T / sqrt(m)) x W_v, times W_o``, all with biases. It is
    `MultiHeadAttention` with ``qkv_features = num_heads * features``.

    Args:
        features: m, the width of the input, of each head and of the output.
        num_heads: how many heads.
        options: the other arguments of `MultiHeadAttention`.

    Example:

        >>> import jax.numpy as jnp
        >>> attend = WideMultiHeadSelfAttention(8, num_heads=3, rngs=nnx.Rngs(0))
        >>> attend(jnp.ones((2, 5, 8))).shape, attend.out.kernel.shape
        ((2, 5, 8), (3, 8, 8))
    """

    def __init__(self, features: int, num_heads: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        checks.positive_integers(features=features, num_heads=num_heads)
        super().__init__(
            num_heads, features, qkv_features=num_heads * features, **{"use_bias": True, **options}, rngs=rngs
        )

    @overload  # type: ignore[override]
    def __call__(
        self,
        x: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[True],
        **options: Unpack[SelfOptions],
    ) -> Outputs: ...
    @overload
    def __call__(
        self,
        x: Array,
        valid_lens: int | Array | None = None,
        *,
        return_weights: Literal[False] = False,
        **options: Unpack[SelfOptions],
    ) -> Float[Array, "*b t m"]: ...
    @overload
    def __call__(
        self, x: Array, valid_lens: int | Array | None = None, *, return_weights: bool, **options: Unpack[SelfOptions]
    ) -> Float[Array, "*b t m"] | Outputs: ...

    def __call__(
        self, x: Float[Array, "*b t m"], valid_lens: int | Int[Array, "..."] | None = None, **options: Any
    ) -> Float[Array, "*b t m"] | Outputs:
        """Attend within ``x``; the other arguments as in `MultiHeadAttention`, without those of keys and values."""
        checks.keywords(type(self).__name__, options, [*SelfOptions.__annotations__, "return_weights"])
        return super().__call__(x, valid_lens=valid_lens, **options)
