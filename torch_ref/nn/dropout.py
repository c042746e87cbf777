"""Which attention weights are dropped."""

import torch
from torch import Tensor


def draw_keep(dropout_rate: float, training: bool, like: Tensor, *shape: int) -> Tensor | None:
    """Which weights survive dropout, each with probability 1 - dropout_rate; None when none is dropped."""
    if not training or dropout_rate == 0:
        return None
    return torch.rand(shape, device=like.device) >= dropout_rate
