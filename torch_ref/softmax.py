"""Softmax and log-sum-exp over the keys that a query may attend to."""

import math

import torch
from torch import Tensor

from torch_ref.scores import at_least_float32


def masked_softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weights over the allowed keys: exp(logit_s) / sum over allowed j of exp(logit_j), and 0 elsewhere.

    Shapes: logits "*b h t s", mask broadcastable to it -> "*b h t s". A logit of -inf is not allowed either;
    a row with nothing allowed is zeros, with zero gradient.
    """
    logits, allowed = _only_allowed(logits, mask)
    return torch.where(allowed, torch.softmax(logits, dim=-1), 0.0)


def masked_logsumexp(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log of the softmax's denominator, log sum over allowed s of exp(logit_s).

    Shapes: logits "*b h t s", mask broadcastable to it -> "*b h t". A row with nothing allowed is -inf, with
    zero gradient.
    """
    logits, allowed = _only_allowed(logits, mask)
    return torch.where(allowed.any(-1), torch.logsumexp(logits, dim=-1), -math.inf)


def softmax_beside_sinks(logits: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    """The weights "*b h t s", with the sinks as the logits of one more key, which every query may attend to."""
    if sinks is None:
        return masked_softmax(logits, mask)
    one_more = sinks.to(logits.dtype)[..., None, None].expand(*logits.shape[:-1], 1)
    if mask is not None:
        mask = torch.cat([mask.expand(logits.shape), torch.ones_like(one_more, dtype=torch.bool)], dim=-1)
    return masked_softmax(torch.cat([logits, one_more], dim=-1), mask)[..., :-1]


def _only_allowed(logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits with -inf at the keys that are not allowed, and where they are allowed."""
    logits = at_least_float32(logits)
    allowed = logits != -math.inf
    if mask is not None:
        allowed = allowed & mask
    # A row of nothing but -inf would have NaN for its softmax and its gradient, so it gets zeros instead.
    elsewhere = torch.where(allowed.any(-1, keepdim=True), -math.inf, 0.0).to(logits.dtype)
    return torch.where(allowed, logits, elsewhere), allowed
