"""A text encoder of the BERT family (Devlin et al. 2019), without its pooler."""

import torch
from torch import Tensor, nn

from torch_ref.nn import LearnedPositions, TransformerBlock


class Bert(nn.Module):
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
            TransformerBlock(
                num_heads,
                features,
                feedforward_features,
                activation=activation,
                norm_epsilon=norm_epsilon,
                residual_dropout_rate=dropout_rate,
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
            x, layer_weights = block(x, valid_lens=valid_lens, return_weights=True)
            weights.append(layer_weights)
        return (x, weights) if return_weights else x
