"""Convolutions over a sequence or an image, channels last."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Module):
    """torch.nn.Conv1d, or Conv2d where kernel_size is a pair, with the features on the last axis."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
    ):
        super().__init__()
        self.image = not isinstance(kernel_size, int)
        kind = nn.Conv2d if self.image else nn.Conv1d
        layer = kind(in_features, out_features, kernel_size, groups=feature_group_count, bias=use_bias)  # type: ignore[arg-type]
        self.weight, self.bias = layer.weight, layer.bias
        self.strides, self.padding = strides, padding
        self.dilation, self.groups = kernel_dilation, feature_group_count

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" or "*b height width m" -> the same axes."""
        n = 2 if self.image else 1
        batch, x = x.shape[: -n - 1], x.reshape(-1, *x.shape[-n - 1 :])
        convolve = F.conv2d if self.image else F.conv1d
        y = convolve(x.movedim(-1, 1), self.weight, self.bias, self.strides, self.padding, self.dilation, self.groups)
        y = y.movedim(1, -1)
        return y.reshape(*batch, *y.shape[1:])
