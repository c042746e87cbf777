"""What the softmax is taken of."""

from collections.abc import Callable

import torch
from torch import Tensor

from torch_ref.scores import at_least_float32, dot_product

Score = Callable[[Tensor, Tensor], Tensor]


def logits_of(
    query: Tensor,
    key: Tensor,
    score: Score | None,
    bias: Tensor | None,
    scale: float | None,
    logits_soft_cap: float | None,
) -> Tensor:
    """The logits "*b h t s": cap * tanh(x / cap), x = scale * score(query, key) + bias."""
    key = repeat_heads(key, query.shape[-2])
    if score is None:
        logits = dot_product(query, key, scale)
    else:
        logits = at_least_float32(score(query, key)) * (1.0 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    if logits_soft_cap is not None:
        capped = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
        logits = torch.where(logits == -torch.inf, logits, capped)  # what is out of reach stays so
    return logits


def repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """One key/value head per query head, "*b s k d" -> "*b s h d": each is repeated h / k times in a row."""
    return x.repeat_interleave(num_heads // x.shape[-2], dim=-2)
