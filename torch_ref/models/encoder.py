"""A text encoder of the BERT family (Devlin et al. 2019), without its pooler."""

import torch
from torch import Tensor, nn

from torch_ref.nn import FeedForward, LearnedPositions, MultiHeadAttention


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward network f, each with a residual: x = norm(x + dropout(f(x)))."""

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        activation: str,
        norm_epsilon: float,
        dropout_rate: float,
        attention_dropout_rate: float,
    ):
        super().__init__()
        self.attention = MultiHeadAttention(num_heads, features, use_bias=True, dropout_rate=attention_dropout_rate)
        self.norm1 = nn.LayerNorm(features, eps=norm_epsilon)
        self.feed_forward = FeedForward(features, feedforward_features, activation=activation)
        self.norm2 = nn.LayerNorm(features, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor, valid_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x "*b t m" -> "*b t m", weights "*b h t t"."""
        y, weights = self.attention(x, valid_lens=valid_lens, return_weights=True)
        x = self.norm1(x + self.dropout(y))
        x = self.norm2(x + self.dropout(self.feed_forward(x)))
        return x, weights


class TextEncoder(nn.Module):
    """norm(words + token types + positions), then post-norm blocks."""

    def __init__(
        self,
        *,
        vocab_size: int,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        max_length: int = 512,
        num_token_types: int = 2,
        activation: str = "gelu",
        norm_epsilon: float = 1e-12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.words = nn.Embedding(vocab_size, features)
        self.positions = LearnedPositions(max_length, features)
        self.token_types = nn.Embedding(num_token_types, features)
        self.norm = nn.LayerNorm(features, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout_rate)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                num_heads,
                features,
                feedforward_features,
                activation=activation,
                norm_epsilon=norm_epsilon,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        tokens: Tensor,
        valid_lens: Tensor | None = None,
        *,
        token_types: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens "b t" -> "b t m" [, weights "b h t t" of each layer]."""
        if token_types is None:
            token_types = torch.zeros_like(tokens)
        x = self.positions(self.words(tokens) + self.token_types(token_types))
        x, weights = self.dropout(self.norm(x)), []
        for block in self.blocks:
            x, layer_weights = block(x, valid_lens)
            weights.append(layer_weights)
        return (x, weights) if return_weights else x
