"""Llama: a decoder with rotary positions, grouped heads and no biases (Touvron et al. 2023)."""

from typing import Any

from torch import Tensor, nn

from torch_ref.nn import TransformerBlock


class Llama(nn.Module):
    """Token embeddings, pre-norm blocks without biases, a norm, and logits."""

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        num_kv_heads: int | None = None,
        head_features: int | None = None,
        rotary_base: float = 10000.0,
        tied: bool = False,
        attention_dropout_rate: float = 0.0,
        norm_epsilon: float = 1e-6,
    ):
        super().__init__()
        block: dict[str, Any] = dict(
            norm="pre",
            norm_kind="rms",
            norm_epsilon=norm_epsilon,
            activation="silu",
            gated=True,
            feedforward_bias=False,
            use_bias=False,
            attention_dropout_rate=attention_dropout_rate,
            causal=True,
            num_kv_heads=num_kv_heads,
            rotary_base=rotary_base,
            attention_options={"qkv_features": None if head_features is None else num_heads * head_features},
        )
        self.embedding = nn.Embedding(vocab_size, features)
        self.blocks = nn.ModuleList(
            TransformerBlock(num_heads, features, feedforward_features, **block) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(features, eps=norm_epsilon)
        self.output = None if tied else nn.Linear(features, vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, *, valid_lens: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens "b t" -> logits "b t v" [, weights "b h t t" of each layer]."""
        x, weights = self.embedding(tokens), []
        for block in self.blocks:
            x, layer_weights = block(x, valid_lens=valid_lens, return_weights=True)
            weights.append(layer_weights)
        output = self.embedding if self.output is None else self.output
        logits = self.norm(x) @ output.weight.T
        return (logits, weights) if return_weights else logits
