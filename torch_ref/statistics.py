"""What the weights of attention look like: numbers of each row and column."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ref.multi_head import attention_weights


class AttentionStatistics(NamedTuple):
    """Shapes: entropy, largest and norm "*b h t", received "*b h s"."""

    entropy: Tensor
    largest: Tensor
    norm: Tensor
    received: Tensor


def attention_statistics(query: Tensor, key: Tensor, **rest: Any) -> AttentionStatistics:
    """Entropy, largest weight and norm of each query's weights, and what each key receives of all queries.

    Shapes and arguments as in attention_weights.
    """
    weights = attention_weights(query, key, **rest)
    logarithms = torch.log(torch.where(weights > 0, weights, 1))
    squared = (weights**2).sum(-1)
    return AttentionStatistics(
        entropy=-(weights * logarithms).sum(-1),
        largest=weights.amax(-1),
        norm=torch.where(squared > 0, torch.sqrt(torch.where(squared > 0, squared, 1)), 0),
        received=weights.sum(-2),
    )
