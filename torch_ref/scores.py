"""How well a key matches a query: functions (query "*b t h d", key "*b s h d") -> logits "*b h t s".

The score of a kernel smoother is the log of its kernel, up to a constant per query.
"""

import math

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 if it is half or bfloat16, else x."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dot_product(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Dot product of query and key, scale * q . k, where scale is 1 / sqrt(d) unless given."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.einsum("...thd,...shd->...hts", at_least_float32(query), at_least_float32(key)) * scale


def additive(query: Tensor, key: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor) -> Tensor:
    """A one-layer network on query and key (Bahdanau et al. 2015): w_value . tanh(q W_query + k W_key).

    Shapes: query "*b t h c", key "*b s h d", w_query "c n", w_key "d n", w_value "n" -> "*b h t s".
    """
    q, k = _pairs(query @ w_query, key @ w_key)
    return torch.tanh(q + k) @ at_least_float32(w_value)


def squared_distance(query: Tensor, key: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """Squared distance of query and key, sum over d of ((q - k) * factor)^2; factor is () or "d"."""
    q, k = _pairs(query, key)
    return ((q - k) * factor).square().sum(-1)


def gaussian(
    query: Tensor, key: Tensor, bandwidth: float | Tensor | None = None, factor: float | Tensor | None = None
) -> Tensor:
    """Log of the Gaussian kernel, -u^2 / 2 with u = |(q - k) / bandwidth| = |(q - k) * factor|."""
    return -squared_distance(query, key, _factor(bandwidth, factor)) / 2


def boxcar(
    query: Tensor, key: Tensor, bandwidth: float | Tensor | None = None, factor: float | Tensor | None = None
) -> Tensor:
    """Log of the boxcar kernel, 0 where u <= 1 and -inf elsewhere, u as for gaussian."""
    u_squared = squared_distance(query, key, _factor(bandwidth, factor))
    return torch.zeros_like(u_squared).masked_fill(u_squared > 1, -math.inf)


def epanechnikov(
    query: Tensor, key: Tensor, bandwidth: float | Tensor | None = None, factor: float | Tensor | None = None
) -> Tensor:
    """Log of the Epanechnikov kernel, log(max(0, 1 - u^2)), u as for gaussian."""
    u_squared = squared_distance(query, key, _factor(bandwidth, factor))
    outside = u_squared >= 1
    # The log must not see what lies outside: its infinite slope times a zero cotangent would be NaN.
    return torch.log1p(-u_squared.masked_fill(outside, 0.0)).masked_fill(outside, -math.inf)


def constant(query: Tensor, key: Tensor) -> Tensor:
    """The same logit, 0, for every key: average pooling."""
    return torch.zeros_like(dot_product(query, key))


def _pairs(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Every query beside every key: "*b t h d", "*b s h d" -> "*b h t 1 d", "*b h 1 s d"."""
    query, key = at_least_float32(query).transpose(-3, -2), at_least_float32(key).transpose(-3, -2)
    return query.unsqueeze(-2), key.unsqueeze(-3)


def _factor(bandwidth: float | Tensor | None, factor: float | Tensor | None) -> float | Tensor:
    """The factor on differences: as given, else 1 / bandwidth, else 1."""
    if factor is not None:
        return factor
    if bandwidth is None:
        return 1.0
    return 1 / (at_least_float32(bandwidth) if isinstance(bandwidth, Tensor) else bandwidth)
