"""Nadaraya-Watson regression with a kernel width that is learned."""

import torch
from torch import Tensor, nn

from torch_ref.kernel_regression import nadaraya_watson


class NadarayaWatson(nn.Module):
    """Kernel regression whose factor on distances is learned.

        f(x) = sum_i K(|x - x_i| * factor) y_i / sum_j K(|x - x_j| * factor)

    keys and values may be given here once, or with every call.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        factor: float = 1.0,
        kernel: str = "gaussian",
    ):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.kernel = kernel
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        leave_one_out: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Shapes as in nadaraya_watson; with leave_one_out, query i does not see key i."""
        key = self.keys if key is None else key
        value = self.values if value is None else value
        mask = None
        if leave_one_out:
            axis = 0 if key.ndim == 1 else -2
            mask = ~torch.eye(query.shape[axis], key.shape[axis], dtype=torch.bool, device=query.device)
        return nadaraya_watson(
            query,
            key,
            value,
            factor=self.factor,
            kernel=self.kernel,
            mask=mask,
            return_weights=return_weights,
        )
