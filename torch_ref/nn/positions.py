"""Where a token stands: learned and sinusoidal positions to add, and rotary ones to turn by."""

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


def rotary(x: Tensor, positions: Tensor | None = None, base: float = 10000.0) -> Tensor:
    """Rotates features by the position, so that dot products know only distances (Su et al. 2021).

        (x_i, x_{i + d/2}) is rotated by the angle position * base^(-2i / d),    i = 0 ... d/2 - 1

    The halves are paired as in GPT-NeoX and Llama. Shapes: x "*b t h d", positions "t" or "*b t", by default
    0 ... t - 1 -> "*b t h d".
    """
    t, half = x.shape[-3], x.shape[-1] // 2
    first, second = at_least_float32(x).split(half, dim=-1)
    positions = torch.arange(t, device=x.device) if positions is None else positions
    frequencies = base ** (-torch.arange(half, dtype=first.dtype, device=x.device) / half)
    angles = (positions[..., None] * frequencies).unsqueeze(-2)  # "*b t 1 d/2"
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
