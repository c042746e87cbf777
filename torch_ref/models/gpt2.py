"""GPT-2: a decoder with learned positions (Radford et al. 2019)."""

from torch import Tensor, nn

from torch_ref.masks import causal
from torch_ref.nn import FeedForward, LearnedPositions, MultiHeadAttention


class GPT2Block(nn.Module):
    """Causal self-attention and a tanh-GELU network, each f with a residual, x + dropout(f(norm(x)))."""

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm_epsilon: float,
        dropout_rate: float,
        attention_dropout_rate: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(features, eps=norm_epsilon)
        self.attention = MultiHeadAttention(num_heads, features, use_bias=True, dropout_rate=attention_dropout_rate)
        self.norm2 = nn.LayerNorm(features, eps=norm_epsilon)
        self.feed_forward = FeedForward(features, feedforward_features, activation="gelu_tanh")
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor, valid_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x "b t m" -> "b t m", weights "b h t t"."""
        t = x.shape[-2]
        y, weights = self.attention(self.norm1(x), valid_lens=valid_lens, mask=causal(t, t), return_weights=True)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm2(x))), weights


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
            GPT2Block(
                num_heads,
                features,
                hidden,
                norm_epsilon=norm_epsilon,
                dropout_rate=dropout_rate,
                attention_dropout_rate=dropout_rate if attention_dropout_rate is None else attention_dropout_rate,
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
            x, layer_weights = block(x, valid_lens)
            weights.append(layer_weights)
        logits = self.norm(x) @ self.embedding.weight.T
        return (logits, weights) if return_weights else logits
