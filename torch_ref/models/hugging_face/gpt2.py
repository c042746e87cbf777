"""GPT-2: a decoder with learned positions (Radford et al. 2019)."""

from torch import Tensor, nn

from torch_ref.nn import LearnedPositions, TransformerBlock


class GPT2(nn.Module):
    """Token and position embeddings, pre-norm blocks, a norm, and logits by the token embedding, which is tied."""

    def __init__(
        self,
        vocab_size: int,
        *,
        max_length: int = 1024,
        features: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        feedforward_features: int | None = None,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float | None = None,
        norm_epsilon: float = 1e-5,
    ):
        super().__init__()
        hidden = 4 * features if feedforward_features is None else feedforward_features
        self.embedding = nn.Embedding(vocab_size, features)
        self.positions = LearnedPositions(max_length, features)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                num_heads,
                features,
                hidden,
                norm="pre",
                norm_epsilon=norm_epsilon,
                activation="gelu_tanh",
                residual_dropout_rate=dropout_rate,
                attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
                causal=True,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(features, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self, tokens: Tensor, *, valid_lens: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens "b t" -> logits "b t v" [, weights "b h t t" of each layer]."""
        x, weights = self.dropout(self.positions(self.embedding(tokens))), []
        for block in self.blocks:
            x, layer_weights = block(x, valid_lens=valid_lens, return_weights=True)
            weights.append(layer_weights)
        logits = self.norm(x) @ self.embedding.weight.T
        return (logits, weights) if return_weights else logits
