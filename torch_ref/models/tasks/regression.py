"""Regression of one scalar per token: y_i from x_i, seen among the other x."""

from torch import Tensor, nn

from torch_ref.nn import LearnedPositions, TransformerBlock
from torch_ref.single_head import single_head_attention


class AttentionRegressor(nn.Module):
    """One head of scaled dot-product attention over scalars, W_out attention(W_q x, W_k x, W_v x)."""

    def __init__(self, hidden_features: int = 64):
        super().__init__()
        self.query = nn.Linear(1, hidden_features)
        self.key = nn.Linear(1, hidden_features)
        self.value = nn.Linear(1, hidden_features)
        self.out = nn.Linear(hidden_features, 1)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x "b t" -> "b t" [, weights "b t s"]."""
        x = x[..., None]
        q, k, v = self.query(x), self.key(x), self.value(x)
        hidden, weights = single_head_attention(q, k, v, return_weights=True)
        output = self.out(hidden).squeeze(-1)
        return (output, weights) if return_weights else output


class TransformerRegressor(nn.Module):
    """A pre-norm transformer block over scalars and their positions, without a norm at the end."""

    def __init__(self, input_size: int = 50, features: int = 64, num_heads: int = 4, dropout_rate: float = 0.1):
        super().__init__()
        self.input = nn.Linear(1, features)
        self.positions = LearnedPositions(input_size, features)
        self.block = TransformerBlock(
            num_heads,
            features,
            4 * features,
            norm="pre",
            activation="gelu",
            dropout_rate=dropout_rate,
            attention_dropout_rate=dropout_rate,
        )
        self.output = nn.Linear(features, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x "b t" -> "b t" [, weights "b h t s"]."""
        hidden = self.positions(self.input(x[..., None]))
        hidden, weights = self.block(hidden, return_weights=True)
        output = self.output(hidden).squeeze(-1)
        return (output, weights) if return_weights else output
