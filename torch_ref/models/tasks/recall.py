"""Recall of a token seen long ago: the answer is read from the last position."""

from torch import Tensor, nn

from torch_ref.nn import LearnedPositions, TransformerBlock


class RecallClassifier(nn.Module):
    """Post-norm transformer blocks over a sequence of tokens, with logits from the last position."""

    def __init__(
        self,
        vocab_size: int,
        features: int = 32,
        num_heads: int = 4,
        num_layers: int = 1,
        *,
        feedforward_expansion: int = 2,
        max_length: int = 20,
        positions: bool = True,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, features)
        self.positions = LearnedPositions(max_length, features) if positions else None
        self.blocks = nn.ModuleList(
            TransformerBlock(num_heads, features, feedforward_expansion * features, dropout_rate=dropout_rate)
            for _ in range(num_layers)
        )
        self.output = nn.Linear(features, vocab_size)

    def forward(self, tokens: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens "b t" -> logits "b v" [, weights "b h t s" of each layer]."""
        x, weights = self.embedding(tokens), []
        if self.positions is not None:
            x = self.positions(x)
        for block in self.blocks:
            x, layer_weights = block(x, return_weights=True)
            weights.append(layer_weights)
        logits = self.output(x[:, -1])
        return (logits, weights) if return_weights else logits
