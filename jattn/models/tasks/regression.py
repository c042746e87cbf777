"""A curve from points of it: each scalar is a token, and its output is the curve's value there."""

from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.nn import DotProductAttention, LearnedPositions, Linear, TransformerBlock
from jattn.nn.weights import Outputs, as_pair, outputs
from jattn.portable import Exportable, Inputs

__all__ = ["AttentionRegressor", "TransformerRegressor"]

xavier = nnx.initializers.xavier_uniform()


def _uniform_bias(fan_in: int) -> Any:
    """PyTorch's: uniform within 1 / sqrt(fan_in). With zeros, a token of value 0 would start without features."""
    bound = fan_in**-0.5

    def init(rng: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return nnx.initializers.uniform(2 * bound)(rng, shape, dtype) - bound

    return init


class AttentionRegressor(Exportable, nnx.Module):
    """One attention with one head, and nothing else: the smallest model that learns a curve.

    ``output = attention(x W_q, x W_k, x W_v) W_out``, all with biases; Xavier-uniform kernels.

    Args:
        hidden_features: the width of query, key and value.
        param_dtype: of the parameters.
        rngs: for the initial parameters.

    Example:

        >>> model = AttentionRegressor(rngs=nnx.Rngs(0))
        >>> y, weights = model(jnp.ones((2, 50)), return_weights=True)
        >>> y.shape, weights.shape
        ((2, 50), (2, 50, 50))
    """

    def __init__(self, hidden_features: int = 64, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        def linear(width: int, features: int) -> Linear:
            return Linear(
                width, features, kernel_init=xavier, bias_init=_uniform_bias(width), param_dtype=param_dtype, rngs=rngs
            )

        self.query = linear(1, hidden_features)
        self.key = linear(1, hidden_features)
        self.value = linear(1, hidden_features)
        self.out = linear(hidden_features, 1)
        self.attention = DotProductAttention()

    @overload
    def __call__(self, x: Array, *, return_weights: Literal[True]) -> Outputs: ...
    @overload
    def __call__(self, x: Array, *, return_weights: Literal[False] = False) -> Float[Array, "*b t"]: ...
    @overload
    def __call__(self, x: Array, *, return_weights: bool) -> Float[Array, "*b t"] | Outputs: ...

    def __call__(self, x: Float[Array, "*b t"], *, return_weights: bool = False) -> Float[Array, "*b t"] | Outputs:
        """The curve's values at ``x``, ``*b t``; with return_weights also the weights ``*b t t``."""
        tokens = checks.floating("x", x, "*b t", 1)[..., None]
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        pooled, weights = as_pair(self.attention(query, key, value, return_weights=return_weights), return_weights)
        output = self.out(pooled)[..., 0]
        return outputs(output, weights, return_weights)

    def inputs(self) -> Inputs:
        """What a program of it is called with: points."""
        return Inputs({"x": "float[b,t]"})


class TransformerRegressor(Exportable, nnx.Module):
    """A pre-norm transformer block on the points, with a learned vector for each position.

    Every linear kernel is Xavier-uniform, every bias zero, every position standard normal.

    Args:
        input_size: t, how many points at most.
        features: m, the width.
        num_heads: how many heads.
        dropout_rate: in training, also of the attention weights.
        param_dtype: of the parameters.
        rngs: for the initial parameters.

    Example:

        >>> model = TransformerRegressor(rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> model(jnp.ones((2, 50))).shape
        (2, 50)
    """

    def __init__(
        self,
        input_size: int = 50,
        features: int = 64,
        num_heads: int = 4,
        dropout_rate: float = 0.1,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.input = Linear(1, features, kernel_init=xavier, **options)
        self.positions = LearnedPositions(input_size, features, embedding_init=nnx.initializers.normal(1.0), **options)
        self.block = TransformerBlock(
            num_heads,
            features,
            4 * features,
            norm="pre",
            activation="gelu",
            dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate,
            kernel_init=xavier,
            **options,
        )
        self.output = Linear(features, 1, kernel_init=xavier, **options)

    @overload
    def __call__(self, x: Array, *, return_weights: Literal[True], rng: PRNGKeyArray | None = None) -> Outputs: ...
    @overload
    def __call__(
        self, x: Array, *, return_weights: Literal[False] = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b t"]: ...
    @overload
    def __call__(
        self, x: Array, *, return_weights: bool, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b t"] | Outputs: ...

    def __call__(
        self, x: Float[Array, "*b t"], *, return_weights: bool = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "*b t"] | Outputs:
        """The curve's values at ``x``, ``*b t``; with return_weights also the weights ``*b h t t``."""
        tokens = checks.floating("x", x, "*b t", 1)[..., None]
        x = self.positions(self.input(tokens))
        hidden, weights = as_pair(self.block(x, return_weights=return_weights, rng=rng), return_weights)
        output = self.output(hidden)[..., 0]
        return outputs(output, weights, return_weights)

    def inputs(self) -> Inputs:
        """What a program of it is called with: points."""
        return Inputs({"x": "float[b,t]"}, (f"t <= {self.positions.embedding.num_embeddings}",))
