"""Nadaraya-Watson kernel regression, written from the estimator and not as attention."""

import math

import torch
from torch import Tensor

from torch_ref.scores import at_least_float32


def nadaraya_watson(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bandwidth: float | Tensor = 1.0,
    factor: float | Tensor | None = None,
    kernel: str = "gaussian",
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Average of the values near a query (Nadaraya 1964, Watson 1964).

        f(x) = sum_i K(u_i) y_i / sum_j K(u_j),    u_i = |x - x_i| / bandwidth

    Shapes: query "*b t d", key "*b s d", value "*b s e" -> "*b t e", where value "*b s" gives "*b t" and
    query "t", key "s" mean d = 1; weights "*b t s"; bandwidth () or "d"; mask broadcastable to "*b t s".
    factor, if given, is 1 / bandwidth. Zeros where no key is within reach.
    """
    x, x_i, y_i = at_least_float32(query), at_least_float32(key), at_least_float32(value)
    if x_i.ndim == 1:
        x, x_i = x[:, None], x_i[:, None]
    scalar_values = y_i.ndim < x_i.ndim
    if scalar_values:
        y_i = y_i[..., None]

    differences = x.unsqueeze(-2) - x_i.unsqueeze(-3)  # "*b t s d"
    u_squared = (differences / bandwidth if factor is None else differences * factor).square().sum(-1)
    allowed = torch.ones_like(u_squared, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & mask

    k = KERNELS[kernel](u_squared, allowed) * allowed
    total = k.sum(-1, keepdim=True)
    weights = k / torch.where(total > 0, total, 1.0)
    output = (weights @ y_i).to(value.dtype)
    if scalar_values:
        output = output.squeeze(-1)
    return (output, weights) if return_weights else output


def _gaussian(u_squared: Tensor, allowed: Tensor) -> Tensor:
    """exp(-u^2 / 2), times a constant per query that the quotient does not see.

    The nearest key gets 1, so that the denominator cannot vanish however far all keys are.
    """
    nearest = torch.where(allowed, u_squared, math.inf).amin(-1, keepdim=True).detach()
    return torch.exp(-torch.where(allowed, u_squared - nearest, 0.0) / 2)


def _boxcar(u_squared: Tensor, allowed: Tensor) -> Tensor:
    """1 where u <= 1, else 0."""
    return (u_squared <= 1).to(u_squared.dtype)


def _epanechnikov(u_squared: Tensor, allowed: Tensor) -> Tensor:
    """max(0, 1 - u^2)."""
    return torch.relu(1 - u_squared)


def _constant(u_squared: Tensor, allowed: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(u_squared)


KERNELS = {"gaussian": _gaussian, "boxcar": _boxcar, "epanechnikov": _epanechnikov, "constant": _constant}
