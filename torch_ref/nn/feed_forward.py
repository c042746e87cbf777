"""The network on each position of a transformer."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # the exact one, x * Phi(x)
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """The same two-layer network on each position, dropout(W_2 dropout(activation(W_1 x))).

    Gated, its inside is activation(W_gate x) * W_1 x (Shazeer 2020).
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation: str = "relu",
        gated: bool = False,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.linear1 = nn.Linear(features, hidden_features, bias=use_bias)
        self.gate = nn.Linear(features, hidden_features, bias=use_bias) if gated else None
        self.linear2 = nn.Linear(hidden_features, features, bias=use_bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        inner = self.activation(self.linear1(x))
        if self.gate is not None:
            inner = self.activation(self.gate(x)) * self.linear1(x)
        return self.dropout(self.linear2(self.dropout(inner)))
