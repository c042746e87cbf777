"""Where a token stands: learned and sinusoidal positions, which are added."""

import torch
from torch import Tensor, nn

from torch_ref.scores import at_least_float32


class LearnedPositions(nn.Module):
    """Adds a learned vector per position, x + table[:t]."""

    def __init__(self, max_length: int, features: int):
        super().__init__()
        self.embedding = nn.Embedding(max_length, features)

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        return x + self.embedding.weight[: x.shape[-2]]


def sinusoidal_positions(t: int, features: int, base: float = 10000.0, dtype: torch.dtype | None = None) -> Tensor:
    """A wave per pair of features (Vaswani et al. 2017), from fast to slow.

        table[p, 2i] = sin(p * base^(-2i / features)),    table[p, 2i + 1] = cos(p * base^(-2i / features))

    Returns "t m".
    """
    positions = torch.arange(t, dtype=dtype or torch.get_default_dtype())
    even = torch.arange(0, features, 2, dtype=positions.dtype)
    angles = positions[:, None] * base ** (-even / features)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[:, :features]


class SinusoidalPositions(nn.Module):
    """Adds the sinusoidal positions, x + sinusoidal_positions(t, features)."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        table = sinusoidal_positions(x.shape[-2], self.features, dtype=at_least_float32(x).dtype)
        return x + table.to(x)
