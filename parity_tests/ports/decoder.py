"""A decoder out of parts of `jattn.nn`, as one would port Mistral, Gemma 2, gpt-oss or BLOOM; its settings are data."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jattn import biases, masks
from jattn.nn import Embed, Linear, Norm, TransformerBlock

__all__ = ["Decoder"]

CAUSAL = masks.causal()


class Decoder(nnx.Module):
    """Tokens in, logits out.

    Args:
        v, features: the vocabulary and the width.
        layers: the settings of each block, and its ``window``, how many tokens it sees.
        norm: after the last block.
        padding_idx: the token whose embedding has no gradient from being looked up.
        embedding_scale: what embeddings are multiplied by.
        embedding_norm: what they are normed by, if anything.
        alibi: the slopes of heads, if there are any.
        alibi_sign: of what is added.
        tied: whether the embeddings make the logits.
        logits_soft_cap: of the logits.
        causal: the mask of every block.
    """

    def __init__(
        self,
        v: int,
        features: int,
        layers: Sequence[Mapping[str, Any]],
        *,
        norm: Norm,
        padding_idx: int | None = None,
        embedding_scale: float | None = None,
        embedding_norm: Norm | None = None,
        alibi: Any = None,
        alibi_sign: float = 1.0,
        tied: bool = True,
        logits_soft_cap: float | None = None,
        causal: masks.Mask | None = CAUSAL,
        hidden: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.embedding = Embed(v, features, padding_idx=padding_idx, scale=embedding_scale, rngs=rngs)
        self.embedding_norm = None if embedding_norm is None else embedding_norm(features, rngs=rngs)
        settings = [{name: x for name, x in layer.items() if name != "window"} for layer in layers]
        self.blocks = nnx.List([TransformerBlock(features=features, **each, rngs=rngs) for each in settings])
        self.norm = norm(features, rngs=rngs)
        self.output = None if tied or hidden else Linear(features, v, use_bias=False, rngs=rngs)
        self.windows = tuple(layer.get("window") for layer in layers)
        self.alibi, self.alibi_sign = alibi, alibi_sign
        self.logits_soft_cap, self.causal, self.hidden = logits_soft_cap, causal, hidden

    def __call__(self, tokens: Any, attention_mask: Any = None) -> Any:
        x = self.embedding(tokens)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        bias = None if self.alibi is None else self._alibi()
        real = None if attention_mask is None else masks.dense(attention_mask[:, None, None, :] != 0)
        for block, window in zip(self.blocks, self.windows, strict=True):
            rules = [real, self.causal]
            if window is not None:
                rules.append(masks.sliding_window(window - 1, window - 1))
            x = block(x, mask=masks.all_of(*rules), bias=bias)
        x = self.norm(x)
        if self.hidden:
            return x
        logits = self.embedding.attend(x) if self.output is None else self.output(x)
        cap = self.logits_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _alibi(self) -> Any:
        slopes = jnp.asarray(self.alibi) * self.alibi_sign
        return biases.where(lambda q, k, slopes: slopes * (k - q), slopes=("h", slopes))
