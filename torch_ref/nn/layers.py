"""The root mean square norm."""

import torch
from torch import Tensor, nn

from torch_ref.scores import at_least_float32


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019), (scale_offset + w) x / sqrt(mean(x^2) + epsilon).

    Computed in float32 or wider, the sum with the offset too; Gemma's offset is 1.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-6, scale_offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((features,), 1 - scale_offset))
        self.epsilon, self.scale_offset = epsilon, scale_offset

    def forward(self, x: Tensor) -> Tensor:
        """x "... m" -> "... m"."""
        wide = at_least_float32(x)
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (y * (self.scale_offset + at_least_float32(self.weight))).to(x.dtype)
