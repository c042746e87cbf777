"""One side of an encoder-decoder: positions, blocks and a norm."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn import biases
from jattn.cache import Cache
from jattn.models.hugging_face.stack import StackOutput, blocks_of, looked_up, next_tokens, run_blocks
from jattn.nn import LearnedPositions, Norm
from jattn.nn.dropout import Dropout, split

__all__ = ["BlockStack"]


class BlockStack(nnx.Module):
    """Vectors through blocks and a norm: the encoder or the decoder of an `EncoderDecoder`.

    Args:
        features: m, the width.
        decodes: whether tokens see the past only, and a memory beside it.
        layers: for each block its arguments, those of `TransformerBlock`, and ``window``.
        norm: what follows the last block, if anything.
        max_length: how many learned positions there are; none by default.
        first_position: how many rows the table of positions has before that of the first token; 2 in BART.
        fixed_positions: whether they are Whisper's sines and cosines at first, and are not trained.
        relative_buckets: of how many distances the blocks add a learned bias, the same in all, as in T5; none by
            default.
        relative_distance: from where on all distances have one bucket.
        embedding_norm: what norms the vectors and positions, if anything.
        dropout_rate: of these, in training.
        output_dropout_rate: of what comes out.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        features: int,
        *,
        decodes: bool,
        layers: Sequence[Mapping[str, Any]],
        norm: Norm | None = None,
        max_length: int | None = None,
        first_position: int = 0,
        fixed_positions: bool = False,
        relative_buckets: int | None = None,
        relative_distance: int = 128,
        embedding_norm: Norm | None = None,
        dropout_rate: float = 0.0,
        output_dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        init: dict[str, Any] = {"embedding_init": _whisper_sinusoids} if fixed_positions else {}
        self.positions = (
            None
            if max_length is None
            else LearnedPositions(first_position + max_length, features, first=first_position, **init, **types)
        )
        self.embedding_norm = None if embedding_norm is None else embedding_norm(features, **types)
        self.dropout = Dropout(dropout_rate)
        blocks, self.windows = blocks_of(
            features, [{"cross_attention": decodes, **layer} for layer in layers], causal=decodes, **types
        )
        self.blocks = nnx.List(blocks)
        shape = (relative_buckets, blocks[0].attention.query.kernel.shape[1])
        drawn = nnx.initializers.normal(features**-0.5)
        self.relative_bias = None if relative_buckets is None else nnx.Param(drawn(rngs.params(), shape, param_dtype))
        self.norm = None if norm is None else norm(features, **types)
        self.output_dropout = Dropout(output_dropout_rate)
        self.decodes, self.max_length, self.relative_distance = decodes, max_length, relative_distance
        self.fixed_positions = fixed_positions

    def __call__(
        self,
        x: Float[Array, "b t m"],
        memory: Any = None,
        *,
        real: Bool[Array, "b t"] | None,
        valid_lens: int | Int[Array, "b"] | None,
        positions: Int[Array, "b t"] | None,
        caches: Sequence[Cache] | None = None,
        rng: PRNGKeyArray | None,
        **options: Any,
    ) -> StackOutput:
        """What the blocks give, ``x`` normed; the other arguments as in `run_blocks`."""
        if caches is not None:
            real, positions = next_tokens(caches, self.blocks, x.shape[:2], real, valid_lens, positions)
            valid_lens = None
        first, last, *rngs = split(rng, len(self.blocks) + 2)
        ran = run_blocks(
            self.blocks,
            self.windows,
            self.dropout(self._placed(x, real, positions), first),
            memory,
            real=real,
            bias_of=None if self.relative_bias is None else self._bias_of,
            valid_lens=valid_lens,
            positions=positions,
            caches=caches,
            rngs=rngs,
            **options,
        )
        x = ran.x if self.norm is None else self.norm(ran.x)
        return ran._replace(x=self.output_dropout(x, last))

    @property
    def biased_by_head(self) -> bool:
        """Whether each head's logits have a bias of their own, the same in all blocks."""
        return self.relative_bias is not None

    def _bias_of(self, heads: Any) -> biases.Bias:
        assert self.relative_bias is not None
        return biases.relative(
            self.relative_bias[:, heads], bidirectional=not self.decodes, max_distance=self.relative_distance
        )

    def _placed(self, x: Array, real: Array | None, positions: Array | None) -> Array:
        """Vectors with their positions, normed."""
        if self.positions is not None:
            name = "target" if self.decodes else "source"
            positions = looked_up(name, x.shape[1], self.max_length, real, positions)
            if self.fixed_positions:
                x = x + jax.lax.stop_gradient(self.positions(jnp.zeros_like(x), positions))
            else:
                x = self.positions(x, positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)


def _whisper_sinusoids(_: Any, shape: tuple[int, int], dtype: Any = jnp.float32) -> Float[Array, "t m"]:
    """Whisper's positions, as an initializer: sines in the first half of the columns, cosines in the second."""
    t, features = shape
    half = features // 2
    angles = np.arange(t)[:, None] * 10000.0 ** (-np.arange(half) / max(half - 1, 1))
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], -1), dtype)
